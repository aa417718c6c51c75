"""What an actor does with labelled photos: read, cut crops, pack masks, commit."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from models.crops import STORED, cut, window
from models.photo import decode_photo
from pipelines.photo_resize import dhash
from tables import Dataset, InputError, instance_id, photo_id, schema, to_column


class LabelWorker:
    """Commits one block of labelled photos: photos first, labels last, so a labelled block is whole."""

    def __init__(
        self, folder: str, labels: Dataset, instances: Dataset, photos: Dataset, split: str, category: str, crop_px: int
    ) -> None:
        self.folder, self.split, self.category, self.crop_px = folder, split, category, crop_px
        self.labels, self.instances, self.photos = labels, instances, photos

    def __call__(self, part: str, payload: list[dict[str, Any]]) -> dict[str, int]:
        photos, instances, labels = [], [], []
        for photo in payload:
            path = os.path.join(self.folder, photo["file"])
            with open(path, "rb") as f:
                data = f.read()
            image = decode_photo(data)
            if image is None:
                raise InputError("source.images", path, "cannot be decoded as a photo")
            sha = hashlib.sha256(data).hexdigest()
            url = f"file://{path}"
            pid = photo_id(url, "label", sha[:20])
            height, width = image.shape[:2]
            bits = dhash(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
            photos.append({
                "photo_id": pid, "url": url, "status": "ok", "bytes": data, "sha256": sha,
                "width": width, "height": height,
            })  # fmt: skip
            for animal in photo["animals"]:
                iid = instance_id(sha, animal["bbox"], "label")
                instances.append(
                    {"instance_id": iid, "photo_id": pid, "category": self.category, "score": 1.0, "detector": "label",
                     "dhash": bits, **crop_fields(image, animal["bbox"], self.crop_px)}
                )  # fmt: skip
                mask = decode_mask(animal["segmentation"], height, width)
                png = None if mask is None else cv2.imencode(".png", mask * 255)[1].tobytes()
                labels.append({
                    "instance_id": iid, "split": self.split, "mask": png,
                    "keypoints": np.array(animal["keypoints"], np.float32),
                    "camera": None if animal["camera"] is None else np.array(animal["camera"], np.float32),
                })  # fmt: skip
        self.photos.write(part, rows_to_table(photos, "photos"), schema("photos"))
        self.instances.write(part, rows_to_table(instances, "instances"), schema("instances"))
        self.labels.write(part, rows_to_table(labels, "labels"), schema("labels"))
        return {"photos": len(photos), "instances": len(instances)}


def crop_fields(image: np.ndarray, bbox: Any, most: int) -> dict[str, Any]:
    """`bbox, window, crop` of an instance; the crop has the window's own resolution, at most `most` pixels."""
    win = window(bbox, STORED)
    pixels = int(np.clip(np.ceil(win[2]), 16, most))
    crop = cv2.cvtColor(cut(image, win, pixels), cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return {"bbox": np.asarray(bbox, np.float32), "window": win.astype(np.float32), "crop": jpeg}


def rows_to_table(rows: list[dict[str, Any]], table: str) -> pa.Table:
    """Rows as dicts (arrays in NumPy, absent keys null) -> a table of the named schema."""
    columns = {}
    for field in schema(table):
        values = [r.get(field.name) for r in rows]
        if pa.types.is_fixed_size_list(field.type):
            columns[field.name] = to_column(values, field.type.list_size)
        else:
            columns[field.name] = pa.array(values, field.type)
    return pa.table(columns)


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray | None:
    """COCO segmentation (polygons, uncompressed or compressed run lengths) -> uint8 {0,1} [H,W]; None if absent."""
    if not segmentation:
        return None
    mask = np.zeros((height, width), np.uint8)
    if isinstance(segmentation, list):
        for polygon in segmentation:
            mask |= _inside(np.asarray(polygon, np.float64).reshape(-1, 2), height, width)
        return mask
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _decompress(counts)
    values = np.arange(len(runs)) % 2
    flat = np.repeat(values, runs).astype(np.uint8)
    if flat.size != height * width:
        raise InputError("segmentation", segmentation["size"], f"run lengths do not fill {height} x {width} pixels")
    return flat.reshape(width, height).T.copy()


def _inside(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 {0,1} [H,W] of the pixels whose centre lies inside a polygon [N,2] (even-odd rule).

    cv2.fillPoly also takes every pixel that the outline touches: 5 % too many on COCO's animals.
    """
    (x0, y0), (x1, y1) = polygon.T, np.roll(polygon, -1, 0).T
    rows = np.arange(height) + 0.5
    row, edge = np.nonzero((y0 <= rows[:, None]) != (y1 <= rows[:, None]))
    x = x0[edge] + (rows[row] - y0[edge]) / (y1 - y0)[edge] * (x1 - x0)[edge]
    crossings = np.zeros((height, width + 1), np.int32)
    np.add.at(crossings, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return (crossings.cumsum(1)[:, :width] % 2).astype(np.uint8)


def _decompress(text: str) -> list[int]:
    """COCO's compressed run lengths: signed, in 5-bit groups, from the fourth on as differences to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for char in text.encode():
        group = char - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            if group & 0x10:
                value |= -1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
