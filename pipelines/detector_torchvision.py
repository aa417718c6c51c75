"""torchvision's detectors with COCO weights, by name: `fasterrcnn_resnet50_fpn_v2` and its kin.

Its wheels are for CUDA and need torch's of the same release: docs/new-species.md says with which it was last executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipelines.detect_rules import Rules
from pipelines.detectors import Found, need
from tables import InputError


def identity(model: str) -> dict[str, Any]:
    return {"torchvision": model}


def load(model: str, rules: Rules, device: str) -> Torchvision:
    return Torchvision(model, rules, device)


class Torchvision:
    def __init__(self, model: str, rules: Rules, device: str) -> None:
        zoo = need("torchvision.models", "torchvision", "the torchvision built for your torch, see pytorch.org")
        known = zoo.list_models(module=zoo.detection)
        if model not in known:
            raise InputError("model", model, f"use one of {', '.join(known)}")
        weights = zoo.get_model_weights(model).DEFAULT
        self.net = zoo.get_model(model, weights=weights).eval().to(device)
        getattr(self.net, "roi_heads", self.net).score_thresh = rules.score  # its own would hide what scores less
        self.names, self.device = weights.meta["categories"], device

    def shape(self, height: int, width: int) -> tuple[int, int]:
        rule = self.net.transform  # what the network does to each photo, before it pads all to the largest
        if rule.fixed_size:
            return rule.fixed_size[::-1]
        scale = min(rule.min_size[-1] / min(height, width), rule.max_size / max(height, width))
        return tuple(-(-int(side * scale) // rule.size_divisible) * rule.size_divisible for side in (height, width))

    @torch.inference_mode()
    def __call__(self, photos: Sequence[np.ndarray]) -> list[Found]:
        images = [torch.from_numpy(p).to(self.device).permute(2, 0, 1).float() / 255 for p in photos]
        found = []
        for answer in self.net(images):
            boxes, scores, labels = (answer[k].cpu().numpy() for k in ("boxes", "scores", "labels"))
            boxes = boxes.astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            found.append(Found(boxes, scores, labels))
        return found
