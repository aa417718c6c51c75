"""The three tasks of the loop engine: pose heatmaps, ACSM, detector. Needs no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from models.crops import SEEN, STORED, affine, apply_affine, invert_affine, sample
from models.heatmap import gaussian_targets
from models.losses import detector_loss, heatmap_loss, keypoint_loss
from tables import QUADRUPED
from trainers.data import Instances


def _uniform(n: int, spread: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(n, generator=generator) * 2 - 1) * spread


def colour_jitter(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Random gain of each channel, common gain and offset; images [B,3,S,S] are normalised, 0 is the mean colour."""
    b = len(images)
    gain = torch.exp(_uniform(b * 3, strength / 2, generator).view(b, 3, 1, 1))
    gain = gain * torch.exp(_uniform(b, strength, generator).view(b, 1, 1, 1))
    offset = _uniform(b, strength, generator).view(b, 1, 1, 1)
    return images * gain.to(images.device) + offset.to(images.device)


class CropTask:
    """Shared by the networks that look at crops: data on the device, augmentation, mirrored joints.

    Args:
        data: instances; moved to the device whole.
        image_size: S, the network's input.
        labels: the first so many instances are labelled, the others pseudo-labelled.
        label_share: share of each batch that is drawn from the labels; None: all instances alike.
        labels_from: from this share of the steps on, batches hold labels alone.
        augment: `rotate` degrees, `zoom` and `shift` fractions, `flip` probability, `colour` strength.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Instances,
        image_size: int,
        augment: Mapping[str, float],
        device: str,
        labels: int | None = None,
        label_share: float | None = None,
        labels_from: float = 1.0,
    ) -> None:
        self.model, self.image_size, self.augment = model, image_size, augment
        self.items, self.labels, self.labels_from = len(data), len(data) if labels is None else labels, labels_from
        self.label_share = self.labels / max(1, self.items) if label_share is None else label_share
        self.crops = torch.from_numpy(data.crops).to(device)
        self.keypoints = torch.from_numpy(data.keypoints).to(device)
        self.flip = torch.tensor(QUADRUPED.flip, device=device)

    def groups(self, progress: float) -> Sequence[tuple[int, float]]:
        if self.labels == self.items or progress >= self.labels_from:
            return [(self.labels, 1.0)]
        return [(self.labels, self.label_share), (self.items - self.labels, 1 - self.label_share)]

    def batch(self, index: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Augmented images [B,3,S,S], keypoints [B,K,2] in the network's frame and weights [B,K]."""
        a, b, device = self.augment, len(index), self.crops.device
        zoom = torch.exp(_uniform(b, math.log1p(a["zoom"]), generator))
        angle = _uniform(b, math.radians(a["rotate"]), generator)
        shift = _uniform(b * 2, 2 * a["shift"], generator).view(b, 2)
        flip = torch.where(torch.rand(b, generator=generator) < a["flip"], -1.0, 1.0)
        matrix = affine(b, zoom, angle, shift, flip).to(device)
        images = sample(self.crops[index.to(device)], matrix, self.image_size)
        if a["colour"]:
            images = colour_jitter(images, a["colour"], generator)
        joints = self.keypoints[index.to(device)]
        points = apply_affine(invert_affine(matrix), joints[..., :2] * (SEEN / STORED))
        weight = joints[..., 2]
        mirrored = (flip < 0).to(device)[:, None]
        points = torch.where(mirrored[..., None], points[:, self.flip], points)
        weight = torch.where(mirrored, weight[:, self.flip], weight)
        return images, points, weight


class PoseTask(CropTask):
    """Heatmap regression with Gaussians of `sigma` heatmap pixels at sub-pixel places."""

    def __init__(self, *args: Any, sigma: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sigma = sigma

    def loss(self, model: nn.Module, index: torch.Tensor, generator: torch.Generator, progress: float) -> torch.Tensor:
        images, points, weight = self.batch(index, generator)
        inside = weight * (points.abs().amax(-1) < 1)
        maps = model(images).float()
        return heatmap_loss(maps, gaussian_targets(points, inside, maps.shape[-1], self.sigma), inside)


class ACSMTask(CropTask):
    """Keypoint reprojection; the template stays rigid for the first `rigid` share of the steps."""

    def __init__(self, *args: Any, rigid: float, weight: float, robust: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rigid, self.weight, self.robust = rigid, weight, robust

    def loss(self, model: nn.Module, index: torch.Tensor, generator: torch.Generator, progress: float) -> torch.Tensor:
        images, points, weight = self.batch(index, generator)
        out = model(images, articulate=progress >= self.rigid, mesh=False)
        return self.weight * keypoint_loss(out.keypoints, points, weight, out.prob, self.robust)


class DetectorTask:
    """Centres and sizes of boxes in letterboxed photos.

    Args:
        photos: uint8 [N,S,S,3], letterboxed to the top left.
        boxes: N arrays [n,4] of [x,y,w,h] in those pixels.
    """

    def __init__(
        self, model: nn.Module, photos: np.ndarray, boxes: list[np.ndarray], augment: Mapping[str, float], device: str
    ) -> None:
        self.model, self.augment, self.boxes = model, augment, boxes
        self.photos = torch.from_numpy(photos).to(device)

    def groups(self, progress: float) -> Sequence[tuple[int, float]]:
        return [(len(self.photos), 1.0)]

    def loss(self, model: nn.Module, index: torch.Tensor, generator: torch.Generator, progress: float) -> torch.Tensor:
        photos = self.photos[index.to(self.photos.device)]
        b, size = len(index), photos.shape[1]
        zoom = torch.exp(_uniform(b, math.log1p(self.augment["zoom"]), generator))
        shift = _uniform(b * 2, 2 * self.augment["shift"], generator).view(b, 2)
        flip = torch.where(torch.rand(b, generator=generator) < self.augment["flip"], -1.0, 1.0)
        # Out of the photo is the mean colour, as at letterboxing.
        matrix = affine(b, zoom * (STORED / SEEN), 0.0, shift * (STORED / SEEN), flip)
        images = colour_jitter(sample(photos, matrix.to(photos.device), size), self.augment["colour"], generator)
        inverse = invert_affine(matrix)
        cells = size // 4
        target, owner = torch.zeros(b, 1, cells, cells), torch.zeros(b, 4, cells, cells)
        weight = torch.zeros(b, cells, cells)
        for i, item in enumerate(index.tolist()):
            box = torch.from_numpy(self.boxes[item]).float()
            corners = torch.stack([box[:, :2], box[:, :2] + box[:, 2:]], 1) / size * 2 - 1  # [n,2,2]
            moved = apply_affine(inverse[i : i + 1], corners.reshape(1, -1, 2)).view(-1, 2, 2)
            moved = ((moved + 1) / 2 * size).clamp(0, size)
            draw_boxes(target[i, 0], owner[i], weight[i], torch.cat([moved.amin(1), moved.amax(1)], 1))
        where = images.device
        return detector_loss(model(images).float(), target.to(where), owner.to(where), weight.to(where))


def draw_boxes(target: torch.Tensor, owner: torch.Tensor, weight: torch.Tensor, boxes: torch.Tensor) -> None:
    """Write a photo's boxes [n,4] (x1, y1, x2, y2 in input pixels) into maps of its cells.

    `target` [h,w] gets a Gaussian around each centre, with 0.54 / 3 of half the side as sigma on each axis
    (Liu et al. 2020); `owner` [4,h,w] the box a cell belongs to, the smaller one where boxes overlap; `weight` [h,w]
    the Gaussian where it is above a tenth, summing to 1 for each box.
    """
    h, w = target.shape
    ys, xs = torch.arange(h)[:, None], torch.arange(w)[None]
    sides = boxes[:, 2:] - boxes[:, :2]
    for i in sides.prod(1).argsort(descending=True).tolist():
        bw, bh = sides[i].tolist()
        if min(bw, bh) < 4:
            continue
        cx, cy = ((boxes[i, :2] + boxes[i, 2:]) / 8).tolist()
        col, row = min(int(cx), w - 1), min(int(cy), h - 1)
        spread_x, spread_y = (max(0.6, 0.54 * s / 8 / 3 * 2) for s in (bw, bh))
        bump = torch.exp(-((xs - col) ** 2) / (2 * spread_x**2) - (ys - row) ** 2 / (2 * spread_y**2))
        torch.maximum(target, bump, out=target)
        target[row, col] = 1.0
        mine = bump > 0.1
        owner[:, mine] = boxes[i][:, None]
        weight[mine] = bump[mine] / bump[mine].sum()
