"""Labelled photos as letterboxed arrays for the detector."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.photo import decode_photo, letterbox
from tables import Lake, join_rows, to_numpy
from trainers.data import label_table


def labelled_photos(lake: Lake, category: str, split: str, size: int) -> tuple[np.ndarray, list[np.ndarray], str]:
    """Photos of a split: uint8 [N,size,size,3], boxes [n,4] of each in those pixels, and a digest."""
    labels = label_table(lake, category)
    labels = labels.filter(pc.equal(labels["split"], split))
    photos = []
    for ds in lake.datasets("labels", category):
        photos.append(lake.dataset("photos", category, ds.identity, ds.slot).read(["photo_id", "bytes"]))
    rows = join_rows(labels, pa.concat_tables(photos), "photo_id").sort_by([("photo_id", "ascending")])
    digest = hashlib.sha256()
    images: list[np.ndarray] = []
    boxes: list[list[np.ndarray]] = []
    last = None
    for photo, data, box in zip(
        rows["photo_id"].to_pylist(), rows["bytes"].to_pylist(), to_numpy(rows["bbox"], 4), strict=True
    ):
        if photo != last:
            image, scale = letterbox(decode_photo(data), size)  # type: ignore[arg-type]
            images.append(image)
            boxes.append([])
            last = photo
        boxes[-1].append(box * scale)
        digest.update(photo.encode() + box.tobytes())
    stacked = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return stacked, [np.stack(b) for b in boxes], digest.hexdigest()[:16]
