"""Labelled masks as arrays: as a window sees them, and what the mask losses need of them. Needs no Ray."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import cv2
import numpy as np

from models.crops import SEEN, STORED, cut
from trainers.data import Instances

CONTOUR = 1000  # points on the outline of each mask (the reference's n_contour)


class MaskTargets(NamedTuple):
    """Masks of M of N instances, in the frame [-1,1] of their stored crops.

    Attributes:
        place: int64 [N] row of an instance below, -1 where it has no mask.
        masks: uint8 [M,C,C] in {0,1}.
        distances: float16 [M,C,C] to the mask, 0 inside.
        contours: float32 [M,CONTOUR,2].
    """

    place: np.ndarray
    masks: np.ndarray
    distances: np.ndarray
    contours: np.ndarray


def mask_targets(data: Instances) -> MaskTargets:
    """What the mask losses need of the instances that have a mask with something in it."""
    pixels = data.crops.shape[1]
    place = np.full(len(data), -1, np.int64)
    masks: list[np.ndarray] = []
    distances: list[np.ndarray] = []
    contours: list[np.ndarray] = []
    for i, png in enumerate(data.masks):
        x0, y0, side = data.windows[i]
        grown = side * STORED / SEEN
        seen = mask_in_window(png, (x0 - (grown - side) / 2, y0 - (grown - side) / 2, grown), pixels) if png else None
        if seen is None or not seen.any():
            continue
        place[i] = len(masks)
        mask = seen.astype(np.uint8)
        masks.append(mask)
        distances.append(cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * (2 / pixels))
        lines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        points = np.concatenate(lines)[:, 0]
        chosen = points[np.linspace(0, len(points) - 1, CONTOUR).round().astype(int)]
        contours.append((chosen + 0.5) * (2 / pixels) - 1)
    shape = (len(masks), pixels, pixels)
    return MaskTargets(
        place,
        np.array(masks, np.uint8).reshape(shape),
        np.array(distances, np.float16).reshape(shape),
        np.array(contours, np.float32).reshape(-1, CONTOUR, 2),
    )


def masks_digest(data: Instances) -> str:
    """Hash of the masks, 16 hex digits."""
    h = hashlib.sha256()
    for png in data.masks:
        h.update(hashlib.sha256(png or b"").digest())
    return h.hexdigest()[:16]


def mask_in_window(png: bytes, window: Any, size: int) -> np.ndarray:
    """A photo's mask seen through a window [x0,y0,side], bool [size,size]."""
    photo: Any = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    seen = cut(cv2.merge([(photo > 0).astype(np.uint8) * 255] * 3), window, size, fill=(0, 0, 0))
    return seen[..., 0] > 127
