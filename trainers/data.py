"""Instances as arrays: crops decoded once, keypoints in the network's frame. Needs no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.crops import SEEN, stored_pixels, to_frame, window
from models.photo import decode_photo
from selection import gated, passing
from selection.corrected import labelled_by_hand
from tables import Dataset, Lake, join_rows, schema, splits, to_numpy, unique_rows


@dataclass(frozen=True)
class Instances:
    """N animals, sorted by id.

    Attributes:
        ids: N instance ids.
        crops: uint8 [N,C,C,3] RGB, the stored windows at one resolution.
        windows: [N,3] the network's windows x0, y0, side in photo pixels.
        size: [N] longer side of the box in photo pixels.
        keypoints: [N,K,3] x, y in the network's frame [-1,1], and the weight: v > 0 or the confidence.
        cameras: [N,4] true quaternions wxyz in the template's frame, NaN where unknown.
        masks: N PNG files of the whole photo or None.
    """

    ids: list[str]
    crops: np.ndarray
    windows: np.ndarray
    size: np.ndarray
    keypoints: np.ndarray
    cameras: np.ndarray
    masks: list[bytes | None]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: np.ndarray) -> Instances:
        """The chosen rows, in the order given."""
        fields = {n: getattr(self, n)[index] for n in ("crops", "windows", "size", "keypoints", "cameras")}
        return replace(self, ids=[self.ids[i] for i in index], masks=[self.masks[i] for i in index], **fields)

    @property
    def digest(self) -> str:
        """Hash of ids and keypoints: what training sees."""
        h = hashlib.sha256("\n".join(self.ids).encode())
        h.update(np.ascontiguousarray(self.keypoints, np.float32).tobytes())
        return h.hexdigest()[:16]


def decode_crops(crops: Any, pixels: int) -> np.ndarray:
    """JPEG crops -> uint8 [N,pixels,pixels,3] RGB."""
    out = np.empty((len(crops), pixels, pixels, 3), np.uint8)

    def decode(i: int) -> None:
        image = decode_photo(crops[i])
        if image is None:
            raise ValueError(f"crop {i} of {len(crops)} cannot be decoded")
        if image.shape[0] != pixels:
            shrink = image.shape[0] > pixels
            image = cv2.resize(image, (pixels, pixels), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
        out[i] = image

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # OpenCV decodes outside Python's lock
        list(pool.map(decode, range(len(crops))))
    return out


def instances_from(rows: pa.Table, image_size: int) -> Instances:
    """Arrays of a table with `instance_id, bbox, crop, keypoints`, optionally `camera, mask`."""
    rows = rows.take(pc.sort_indices(rows, sort_keys=[("instance_id", "ascending")]))
    n = len(rows)
    bbox = to_numpy(rows["bbox"], 4).astype(np.float64)
    keypoints = to_numpy(rows["keypoints"], -1, 3).copy()
    seen = window(bbox, SEEN)
    keypoints[..., :2] = to_frame(keypoints[..., :2], seen)
    keypoints[keypoints[..., 2] <= 0] = 0
    names = rows.column_names
    cameras = to_numpy(rows["camera"], 7)[:, 3:] if "camera" in names else np.full((n, 4), np.nan, np.float32)
    masks = rows["mask"].to_pylist() if "mask" in names else [None] * n
    crops = decode_crops(rows["crop"].to_pylist(), stored_pixels(image_size))
    size = bbox[:, 2:].max(1)
    return Instances(rows["instance_id"].to_pylist(), crops, seen, size, keypoints, cameras, masks)


def label_table(lake: Lake, category: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Labels of all sources joined with their instances, sorted by id: every column, or the chosen ones of both.

    The split is that of `tables.splits`.

    Raises:
        InputError: the lake has no labels of the category.
    """
    both = []
    for labels in lake.datasets("labels", category):
        made = lake.dataset("instances", category, labels.identity, labels.slot)
        rows = join_rows(labels.read(), made.read(_of("instances", columns)), "instance_id")
        both.append(rows if columns is None else rows.select(list(columns)))
    rows = unique_rows(pa.concat_tables(both), ["instance_id"]).combine_chunks()
    return rows.set_column(rows.column_names.index("split"), "split", pa.array(splits(rows), pa.string()))


def _of(table: str, columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else [c for c in schema(table).names if c in columns]


def load_labelled(lake: Lake, category: str, split: str, image_size: int) -> Instances:
    """The labelled instances of a split, every labelled joint with weight 1; empty if there are none.

    Raises:
        InputError: the lake has no labels of the category.
    """
    rows = label_table(lake, category)
    data = instances_from(rows.filter(pc.equal(rows["split"], split)), image_size)
    data.keypoints[..., 2] = data.keypoints[..., 2] > 0
    return data


def load_pseudo_labelled(
    instances: Dataset, pseudo: Dataset, selection: Dataset, image_size: int, gate: float | None = None
) -> Instances:
    """The selected instances of a round with their pseudo-labels, weighted by confidence.

    Those that a person labelled are left out: their labels say better what these would.

    Args:
        gate: joints off their 3D reprojection by this share of the box's longer side or more get confidence 0
            (`selection.gate`); None: the gate the selection was made with, if any.
    """
    gate = selection.identity.get("rules", {}).get("gate") if gate is None else gate
    chosen = selection.read(["instance_id", "selected"])
    chosen = chosen.filter(chosen["selected"]).select(["instance_id"])
    chosen = chosen.filter(pc.invert(pc.is_in(chosen["instance_id"], labelled_by_hand(instances))))
    columns = ["instance_id", "keypoints", *(["keypoints_3d"] if gate else [])]
    rows = join_rows(chosen, pseudo.read(columns), "instance_id")
    rows = join_rows(rows, instances.read(["instance_id", "bbox", "crop"]), "instance_id")
    if gate:
        rows = gated(rows, passing(rows, gate))
    return instances_from(rows, image_size)


def image_weights(data: Instances, labels: int, pseudo: float | str) -> np.ndarray | None:
    """What each instance's loss counts, float32 [N]: 1 for the first `labels` rows, `pseudo` for the others.

    Args:
        pseudo: a factor, or `confidence` for the mean confidence of an instance's joints that count.

    Returns:
        None where all count alike, as in the reference (animals3d network.py:369-379, 510-517).
    """
    if pseudo == 1:
        return None
    weights = np.ones(len(data), np.float32)
    sure = data.keypoints[labels:, :, 2]
    mean = sure.sum(1) / np.maximum(1, (sure > 0).sum(1))
    weights[labels:] = mean if pseudo == "confidence" else float(pseudo)
    return weights


def concatenate(first: Instances, second: Instances) -> Instances:
    """The rows of both, one after the other."""
    fields = {
        n: np.concatenate([getattr(first, n), getattr(second, n)])
        for n in ("crops", "windows", "size", "keypoints", "cameras")
    }
    return Instances(first.ids + second.ids, masks=first.masks + second.masks, **fields)
