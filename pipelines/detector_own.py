"""The trainable centre-and-size network (`trainers.detector`): any species, one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from models.checkpoint import image_size_of, load_checkpoint, weights_digest
from models.heatmap import decode_boxes
from models.photo import letterbox, normalise
from pipelines.detect_rules import Rules
from pipelines.detectors import Found


def identity(model: str) -> dict[str, Any]:
    return {"weights": weights_digest(model)}


def load(model: str, rules: Rules, device: str) -> Own:
    return Own(model, rules, device)


class Own:
    names = ("animal",)

    def __init__(self, model: str, rules: Rules, device: str) -> None:
        self.net = load_checkpoint(model).to(device)
        self.size = image_size_of(self.net)
        self.rules, self.device = rules, device

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    @torch.inference_mode()
    def __call__(self, photos: Sequence[np.ndarray]) -> list[Found]:
        boxed = [letterbox(photo, self.size) for photo in photos]
        images = normalise(torch.from_numpy(np.stack([b[0] for b in boxed])).to(self.device))
        # Four candidates for each box that may stay, and none dropped for overlapping here.
        peaks = decode_boxes(self.net(images).float().cpu(), self.rules.score, 4 * self.rules.most, overlap=1.0)
        return [
            Found(boxes.double().numpy() / scale, scores.numpy(), np.zeros(len(scores), int))
            for (boxes, scores), (_, scale) in zip(peaks, boxed, strict=True)
        ]
