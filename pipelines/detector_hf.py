"""RT-DETR and RT-DETRv2 (Lv et al. 2024) through transformers: a folder, or a name on the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from pipelines.detect_rules import Rules
from pipelines.detectors import Found, need
from tables import InputError, file_digest

FAMILY = ("rt_detr", "rt_detr_v2")
SIDE = 640  # of the square that these networks are trained on, whatever the photo's shape


def identity(model: str) -> dict[str, Any]:
    """Of a folder its weights, in one file or more, and its configuration, which names the classes."""
    if not os.path.isdir(model):
        return {"hf": model}
    names = sorted(n for n in os.listdir(model) if n == "config.json" or n.endswith((".safetensors", ".bin")))
    return {"hf": {name: file_digest(os.path.join(model, name)) for name in names}}


def load(model: str, rules: Rules, device: str) -> Transformer:
    return Transformer(model, rules, device)


class Transformer:
    def __init__(self, model: str, rules: Rules, device: str) -> None:
        library = need("transformers", "hf", "pip install 'wildshape[hf]'")
        try:
            self.net = library.AutoModelForObjectDetection.from_pretrained(model).eval().to(device)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n", 1)[0]
            raise InputError("model", model, f"transformers cannot load it ({reason})") from error
        config = self.net.config
        if config.model_type not in FAMILY:
            raise InputError("model", model, f"is a {config.model_type}: use one of {', '.join(FAMILY)}")
        self.names = [config.id2label[i] for i in range(len(config.id2label))]
        self.score, self.device = rules.score, torch.device(device)
        if self.device.type == "cuda":
            self.net.to(memory_format=torch.channels_last)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return SIDE, SIDE

    @torch.inference_mode()
    def __call__(self, photos: Sequence[np.ndarray]) -> list[Found]:
        small = [cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for photo in photos]
        images = torch.from_numpy(np.stack(small))
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            images = images.pin_memory().to(self.device, non_blocking=True)
        # Where a box lies is summed in float32: bfloat16 holds the corrections alone.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            output = self.net(pixel_values=images.permute(0, 3, 1, 2).float() / 255)
        scores, classes = output.logits.float().sigmoid().max(-1)  # [B,Q]
        boxes = output.pred_boxes.double()  # middle and size in shares of the photo
        boxes = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]], -1)
        found = []
        for photo, *answer in zip(photos, *(t.cpu().numpy() for t in (boxes, scores, classes)), strict=True):
            good = answer[1] >= self.score
            size = np.array([photo.shape[1], photo.shape[0]] * 2)
            found.append(Found(answer[0][good] * size, answer[1][good], answer[2][good]))
        return found
