"""The truth of the sandbox's web photos, joined with boxes. Only diagnostics and the control `oracle` open it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tables import to_column, to_numpy


def true_keypoints(rows: pa.Table, truth: str, overlap: float = 0.3) -> pa.Array:
    """The true joints [K,3] of the animal that a box overlaps most; null where it is none of the species.

    Args:
        rows: with `photo_id` and `bbox`.
        truth: path of the world's `truth.parquet`.
        overlap: IoU that a box needs.
    """
    animals: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for animal in pq.read_table(truth, columns=["photo_id", "bbox", "keypoints", "is_target"]).to_pylist():
        animals[animal["photo_id"]].append(animal)
    joints: list[np.ndarray | None] = []
    for photo, box in zip(rows["photo_id"].to_pylist(), to_numpy(rows["bbox"], 4), strict=True):
        shares = [(_iou(box, np.array(a["bbox"])), a) for a in animals[photo]]
        share, best = max(shares, key=lambda s: s[0], default=(0.0, None))
        real = best is not None and share > overlap and best["is_target"]
        joints.append(np.array(best["keypoints"], np.float32) if best is not None and real else None)
    return to_column(joints, 48)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.clip(np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = float(sides.prod())
    return both / (float(a[2:].prod() + b[2:].prod()) - both)
