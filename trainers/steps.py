"""The three tasks of the loop engine: pose heatmaps, ACSM, detector. Needs no Ray."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from models.acsm import ACSMOutput
from models.crops import SEEN, STORED, affine, apply_affine, invert_affine, sample
from models.heatmap import gaussian_targets
from models.losses import detector_loss, heatmap_loss, keypoint_loss
from tables import QUADRUPED
from trainers.data import Instances
from trainers.stepper import Drawn


def _uniform(n: int, spread: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(n, generator=generator) * 2 - 1) * spread


def draw_colour(n: int, strength: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random `gain` [n,3,1,1], of each channel and common to all, and `offset` [n,1,1,1] of normalised images.

    Images are `images * gain + offset`; 0 is the mean colour.
    """
    gain = torch.exp(_uniform(n * 3, strength / 2, generator).view(n, 3, 1, 1))
    gain = gain * torch.exp(_uniform(n, strength, generator).view(n, 1, 1, 1))
    return {"gain": gain, "offset": _uniform(n, strength, generator).view(n, 1, 1, 1)}


def fits(nbytes: int, device: str) -> bool:
    """Whether so much data may stay on a device: half of what is free there is left to the network."""
    return torch.device(device).type != "cuda" or nbytes < torch.cuda.mem_get_info(device)[0] // 2


class CropTask:
    """Shared by the networks that look at crops: data on the device, augmentation there, mirrored joints.

    Args:
        data: instances; their crops are moved to the device whole, if they fit.
        image_size: S, the network's input.
        labels: the first so many instances are labelled, the others pseudo-labelled.
        label_share: share of each batch that is drawn from the labels; None: all instances alike.
        labels_from: from this share of the steps on, batches hold labels alone.
        augment: `rotate` degrees, `zoom` and `shift` fractions, `flip` probability, `colour` strength.

    Attributes:
        terms: of the last loss, by name, where it has more than one.
    """

    replay = True

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
        self.label_share = label_share
        crops = torch.from_numpy(data.crops)
        self.resident = fits(crops.nbytes, device)
        self.crops = crops.to(device) if self.resident else crops
        self.keypoints = torch.from_numpy(data.keypoints)
        self.terms: dict[str, torch.Tensor] = {}
        self.flip = torch.tensor(QUADRUPED.flip)

    def groups(self, progress: float) -> Sequence[tuple[int, float]]:
        if self.labels == self.items or progress >= self.labels_from:
            return [(self.labels, 1.0)]
        if self.label_share is None:
            return [(self.items, 1.0)]
        return [(self.labels, self.label_share), (self.items - self.labels, 1 - self.label_share)]

    def phase(self, progress: float) -> Hashable:
        return None

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """What `images` needs, and keypoints `points` [B,K,2] in the network's frame with `weight` [B,K]."""
        a, b = self.augment, len(index)
        zoom = torch.exp(_uniform(b, math.log1p(a["zoom"]), generator))
        angle = _uniform(b, math.radians(a["rotate"]), generator)
        shift = _uniform(b * 2, 2 * a["shift"], generator).view(b, 2)
        flip = torch.where(torch.rand(b, generator=generator) < a["flip"], -1.0, 1.0)
        matrix = affine(b, zoom, angle, shift, flip)
        colour = draw_colour(b, a["colour"], generator) if a["colour"] else {}
        joints = self.keypoints[index]
        points = apply_affine(invert_affine(matrix), joints[..., :2] * (SEEN / STORED))
        mirrored = (flip < 0)[:, None]
        points = torch.where(mirrored[..., None], points[:, self.flip], points)
        weight = torch.where(mirrored, joints[:, self.flip, 2], joints[..., 2])
        source = {"index": index} if self.resident else {"crops": self.crops[index]}
        return {**source, "matrix": matrix, **colour, "points": points, "weight": weight}

    def images(self, drawn: Drawn) -> torch.Tensor:
        """Augmented images [B,3,S,S] on the device."""
        crops = self.crops[drawn["index"]] if self.resident else drawn["crops"]
        images = sample(crops, drawn["matrix"].float(), self.image_size).to(drawn["matrix"].dtype)
        return images * drawn["gain"] + drawn["offset"] if "gain" in drawn else images


class PoseTask(CropTask):
    """Heatmap regression with Gaussians of `sigma` heatmap pixels at sub-pixel places."""

    def __init__(self, *args: Any, sigma: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sigma = sigma

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        drawn = super().draw(index, generator)
        return {**drawn, "count": shares(int((_inside(drawn) > 0).sum()), len(index))}

    def loss(self, drawn: Drawn, phase: Hashable) -> torch.Tensor:
        points, inside = drawn["points"], _inside(drawn)
        maps = self.model(self.images(drawn)).to(points.dtype)
        target = gaussian_targets(points, inside, maps.shape[-1], self.sigma)
        return heatmap_loss(maps, target, inside, drawn["count"].sum())


def _inside(drawn: Drawn) -> torch.Tensor:
    """Weights [B,K] of the joints that the network sees."""
    return drawn["weight"] * (drawn["points"].abs().amax(-1) < 1)


def shares(count: int, batch: int) -> torch.Tensor:
    """What a loss is divided by, spread over the rows of the whole batch: [B] float64, which sum to `count`, or to 1.

    So the losses of a batch's parts are parts of its loss, whatever each part holds.
    """
    return torch.full((batch,), max(1, count) / batch, dtype=torch.float64)


class ACSMTask(CropTask):
    """Keypoint reprojection; the template stays rigid for the first `rigid` share of the steps.

    Args:
        weight: of the loss.
        image_weights: float32 [N], what each instance's loss counts; None: all alike.
    """

    def __init__(
        self,
        *args: Any,
        rigid: float,
        weight: float,
        robust: float,
        image_weights: np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rigid, self.weight, self.robust = rigid, weight, robust
        self.image_weights = None if image_weights is None else torch.from_numpy(image_weights)

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        drawn = super().draw(index, generator)
        return drawn if self.image_weights is None else {**drawn, "image_weight": self.image_weights[index]}

    def phase(self, progress: float) -> Hashable:
        return progress >= self.rigid

    def loss(self, drawn: Drawn, phase: Hashable) -> torch.Tensor:
        out = self.model(self.images(drawn), articulate=bool(phase), mesh=False)
        return self.reprojection(out, drawn)

    def reprojection(self, out: ACSMOutput, drawn: Drawn) -> torch.Tensor:
        """The keypoint loss with its weight."""
        points, seen, counts = drawn["points"], drawn["weight"], drawn.get("image_weight")
        return self.weight * keypoint_loss(out.keypoints, points, seen, out.prob, self.robust, counts)


class DetectorTask:
    """Centres and sizes of boxes in letterboxed photos.

    Args:
        photos: uint8 [N,S,S,3], letterboxed to the top left.
        boxes: N arrays [n,4] of [x,y,w,h] in those pixels.
    """

    replay = False  # the box loss looks up the cells that have a box

    def __init__(
        self, model: nn.Module, photos: np.ndarray, boxes: list[np.ndarray], augment: Mapping[str, float], device: str
    ) -> None:
        self.model, self.augment, self.boxes = model, augment, boxes
        self.photos = torch.from_numpy(photos).to(device)
        self.terms: dict[str, torch.Tensor] = {}

    def groups(self, progress: float) -> Sequence[tuple[int, float]]:
        return [(len(self.photos), 1.0)]

    def phase(self, progress: float) -> Hashable:
        return None

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        b, size = len(index), self.photos.shape[1]
        zoom = torch.exp(_uniform(b, math.log1p(self.augment["zoom"]), generator))
        shift = _uniform(b * 2, 2 * self.augment["shift"], generator).view(b, 2)
        flip = torch.where(torch.rand(b, generator=generator) < self.augment["flip"], -1.0, 1.0)
        # Out of the photo is the mean colour, as at letterboxing.
        matrix = affine(b, zoom * (STORED / SEEN), 0.0, shift * (STORED / SEEN), flip)
        colour = draw_colour(b, self.augment["colour"], generator)
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
        count = shares(int(target.eq(1).sum()), b)
        maps = {"target": target, "owner": owner, "weight": weight, "count": count}
        return {"index": index, "matrix": matrix, **colour, **maps}

    def loss(self, drawn: Drawn, phase: Hashable) -> torch.Tensor:
        photos, target = self.photos[drawn["index"]], drawn["target"]
        images = sample(photos, drawn["matrix"].float(), photos.shape[1]).to(target.dtype)
        maps = self.model(images * drawn["gain"] + drawn["offset"]).to(target.dtype)
        centre, box = detector_loss(maps, target, drawn["owner"], drawn["weight"], drawn["count"].sum())
        self.terms = {"centre": centre.detach(), "box": box.detach()}
        return centre + box


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
