"""Diagnostics alone: the sandbox's truth of its web photos, joined with the instances that the detector found."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tables import Dataset, to_column, to_numpy
from trainers.data import Instances, instances_from


def wild_instances(instances: Dataset, truth_file: str, image_size: int, overlap: float = 0.5) -> Instances:
    """Detected animals that are one of the species, with their true keypoints.

    Args:
        truth_file: `truth.parquet` of the sandbox.
        overlap: lowest IoU of the detected and the true box.
    """
    truth: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for animal in pq.read_table(truth_file).to_pylist():
        if animal["is_target"]:
            truth[animal["photo_id"]].append(animal)
    rows = instances.read()
    rows = rows.filter(pc.is_null(rows["duplicate_of"]))
    kept, joints = [], []
    for i, (photo, box) in enumerate(zip(rows["photo_id"].to_pylist(), to_numpy(rows["bbox"], 4), strict=True)):
        best = max(truth[photo], key=lambda a: _iou(box, np.array(a["bbox"])), default=None)
        if best is not None and _iou(box, np.array(best["bbox"])) > overlap:
            kept.append(i)
            joints.append(np.array(best["keypoints"], np.float32).reshape(-1, 3))
    found = rows.take(pa.array(kept, pa.int64())).append_column("keypoints", to_column(np.stack(joints)))
    data = instances_from(found, image_size)
    data.keypoints[..., 2] = data.keypoints[..., 2] > 0
    return data


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    lo, hi = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    inter = float(np.clip(hi - lo, 0, None).prod())
    return inter / (float(a[2:].prod() + b[2:].prod()) - inter)
