"""Which detections become instances: the `detect` section of the config, and every reason for a no counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np

from pipelines.detectors import Found
from tables import InputError


@dataclass(frozen=True)
class Rules:
    """The `detect` section; conf/detect/default.yaml explains each. A rule with a default is off unless given."""

    score: float
    overlap: float
    most: int
    min_side: float
    crop_px: int
    radius: int
    classes: Sequence[str] | None = None
    border: float = 0.0
    crowd: float = 1.0

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Rules:
        """Raises InputError naming the rule that is missing, unknown or out of range."""
        names = {f.name for f in fields(cls)}
        for name in given.keys() - names:
            raise InputError(f"detect.{name}", given[name], f"no such rule: use {', '.join(sorted(names))}")
        for name in {f.name for f in fields(cls) if f.default is MISSING} - given.keys():
            raise InputError(f"detect.{name}", "null", "must be given")
        for name, (low, high, whole) in _RANGES.items():
            value = given.get(name, low)
            right = type(value) is int or (type(value) is float and not whole)
            if not right or not low <= value <= high:
                what = "a whole number of bits" if name == "radius" else "a whole number" if whole else "a number"
                raise InputError(f"detect.{name}", value, f"{what} between {low} and {high}")
        classes = given.get("classes")
        if classes is not None and (isinstance(classes, str) or not classes):
            raise InputError("detect.classes", classes, "a list of class names, or null")
        return cls(**given)


_RANGES = {
    "score": (0, 1, False), "overlap": (0, 1, False), "most": (1, 10_000, True), "min_side": (1, 10_000, False),
    "crop_px": (16, 10_000, True), "radius": (0, 63, True), "border": (0, 10_000, False), "crowd": (0, 1, False),
}  # fmt: skip


def in_force(given: Mapping[str, Any]) -> dict[str, Any]:
    """The rules as they name a dataset: one that is off leaves no trace, so that lakes outlive a new rule."""
    off = {f.name: f.default for f in fields(Rules)}
    return {name: value for name, value in given.items() if value != off[name]}


def wanted_classes(names: Sequence[str], classes: Sequence[str] | None, category: str) -> np.ndarray:
    """bool [C]: which of a detector's classes are the animal.

    Without `classes` it is the one that is named as the category, or the only one there is.

    Raises:
        InputError: the detector knows none of that name.
    """
    chosen = list(classes) if classes is not None else [names[0] if len(names) == 1 else category]
    if unknown := sorted(set(chosen) - set(names)):
        fix = f"the detector does not know {', '.join(unknown)}; it knows {', '.join(names)}"
        raise InputError("detect.classes", "null" if classes is None else chosen, fix)
    return np.isin(names, chosen)


def sift(found: Found, wanted: np.ndarray, size: tuple[int, int], rules: Rules, counts: Counter[str]) -> Found:
    """The detections of one photo that the rules leave, best first, boxes clipped to the photo as float32.

    Whatever class of the wanted ones, an animal is one animal: overlapping boxes are told apart by their score alone.

    Args:
        wanted: bool [C], `wanted_classes`.
        size: width and height of the photo.
        counts: how many went for which reason is added here.
    """
    kept = np.argsort(-found.scores, kind="stable")

    def keep(reason: str, good: np.ndarray) -> np.ndarray:
        counts[reason] += int(len(good) - good.sum())
        return kept[good]

    kept = keep("not_finite", np.isfinite(found.boxes[kept]).all(1) & np.isfinite(found.scores[kept]))
    kept = keep("other_class", wanted[found.classes[kept]])
    best, overlapping = _best(found.boxes[kept], rules.overlap, rules.most)
    counts["overlapping"] += overlapping
    counts["too_many"] += len(kept) - overlapping - len(best)
    kept = kept[best]
    low = np.clip(found.boxes[:, :2], 0, size)
    high = np.clip(found.boxes[:, :2] + found.boxes[:, 2:], 0, size)
    boxes = np.concatenate([low, high - low], 1).astype(np.float32)
    kept = keep("too_small", boxes[kept, 2:].min(1, initial=np.inf) >= float(rules.min_side))
    inside = (low >= rules.border) & (high <= np.subtract(size, rules.border))
    kept = keep("cut_off", inside[kept].all(1))
    kept = keep("crowded", _covered(boxes[kept]) <= rules.crowd)
    return Found(boxes[kept], found.scores[kept], found.classes[kept])


def _best(boxes: np.ndarray, overlap: float, most: int) -> tuple[list[int], int]:
    """Indices of the first `most` boxes that overlap no earlier one of them by more than an IoU; how many did."""
    kept: list[int] = []
    dropped = 0
    areas = boxes[:, 2:].prod(1)
    for i in range(len(boxes)):
        if len(kept) == most:
            break
        shared = _shared(boxes[i], boxes[kept])
        if (shared <= overlap * (areas[i] + areas[kept] - shared)).all():
            kept.append(i)
        else:
            dropped += 1
    return kept, dropped


def _covered(boxes: np.ndarray) -> np.ndarray:
    """[N] share of each box that the one other box covers that covers most of it."""
    covered = np.zeros(len(boxes))
    for i, box in enumerate(boxes.astype(np.float64)):
        others = np.delete(boxes, i, 0)
        covered[i] = (_shared(box, others) / max(box[2] * box[3], 1e-9)).max(initial=0)
    return covered


def _shared(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N] area that a box [4] shares with others [N,4], all [x,y,w,h]."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    return (high - low).clip(0).prod(1)
