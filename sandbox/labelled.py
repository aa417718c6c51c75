"""The labelled set as COCO keypoint JSON, plus a `camera` field of our own."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sandbox.photo import Seen
from sandbox.shots import Shot, Taken
from tables import QUADRUPED

SPLITS = ("train", "val", "test")


def coco(photos: list[tuple[Shot, Taken]], split: str, category: str) -> dict[str, Any]:
    """COCO keypoint JSON of one split; ids count from 1, the skeleton is 1-based, v is in {0, 1, 2}."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (shot, taken) in enumerate(photos, 1):
        name = os.path.basename(shot.path)
        images.append({"id": number, "file_name": name, "width": taken.width, "height": taken.height})
        for seen in taken.animals:
            if seen.target:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **_annotation(seen)})
    kind = {
        "id": 1,
        "name": category,
        "supercategory": "animal",
        "keypoints": list(QUADRUPED.names),
        "skeleton": [[a + 1, b + 1] for a, b in QUADRUPED.edges],
    }
    info = {"description": f"wildshape sandbox, {split}", "version": "1"}
    return {"info": info, "images": images, "annotations": annotations, "categories": [kind]}


def _annotation(seen: Seen) -> dict[str, Any]:
    points = seen.keypoints.astype(np.float64)
    points[points[:, 2] == 0] = 0
    flat = [round(float(v), 3) if i % 3 < 2 else int(v) for i, v in enumerate(points.ravel())]
    return {
        "category_id": 1,
        "bbox": [float(v) for v in seen.bbox],
        "area": int(seen.mask.sum()),
        "iscrowd": 0,
        "keypoints": flat,
        "num_keypoints": int((points[:, 2] > 0).sum()),
        "segmentation": rle(seen.mask),
        "camera": [float(v) for v in seen.camera],
    }


def rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Uncompressed COCO run lengths of a mask [H,W]: column-major, zeros first."""
    flat = np.asarray(mask, bool).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]]))
    counts = [0, *runs] if flat[0] else runs
    return {"counts": [int(c) for c in counts], "size": [int(s) for s in mask.shape]}
