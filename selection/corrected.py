"""Animals of the pool that a person labelled: the labels outrank what networks say of them. Needs no Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tables import Dataset, InputError, Lake, join_rows, to_numpy

SAME = 0.5  # intersection over union from which COCO takes two boxes for one object
_AT_ONCE = 64  # parts of the crawl looked through at once


def labelled_by_hand(instances: Dataset) -> pa.Array:
    """Ids of the instances of a pool that stand in the lake's labels, whatever their split.

    Each label claims the one box of its photo that it overlaps most, by `SAME` or more: labelling tools round boxes,
    and people move them. Photos are the same where their bytes are. Without the crawl that the instances come from
    nobody can tell, and none are claimed.
    """
    lake, category = Lake(instances.files.uri), instances.category
    try:
        labels = lake.datasets("labels", category)
        photos = lake.find("photos", category, str(instances.identity.get("photos")))
    except InputError:
        return pa.array([], pa.string())
    by_hand = pa.concat_tables([_boxes(lake, ds) for ds in labels])
    named = by_hand["sha256"].unique()
    shared = []  # photos of the crawl that somebody labelled: few, of millions
    parts = photos.parts()
    for at in range(0, len(parts), _AT_ONCE):
        rows = photos.read(["photo_id", "sha256"], parts[at : at + _AT_ONCE])
        shared.append(rows.filter(pc.is_in(rows["sha256"], named)))
    known = pa.concat_tables(shared) if shared else pa.table({"photo_id": pa.array([], pa.string())})
    if not len(known):
        return pa.array([], pa.string())
    pool = instances.read(["instance_id", "photo_id", "bbox"])
    pool = join_rows(pool.filter(pc.is_in(pool["photo_id"], known["photo_id"])), known, "photo_id")
    ids, shas, boxes = pool["instance_id"].to_pylist(), np.array(pool["sha256"].to_pylist(), str), _corners(pool)
    claimed = set()
    for sha, box in zip(by_hand["sha256"].to_pylist(), _corners(by_hand), strict=True):
        there = np.flatnonzero(shas == sha)
        shares = overlap(box, boxes[there])
        if len(there) and shares.max() >= SAME:
            claimed.add(ids[there[shares.argmax()]])
    return pa.array(sorted(claimed), pa.string())


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union [N] of a box [4] with boxes [N,4], all x0, y0, x1, y1."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    both = (high - low).clip(0).prod(1)
    union = np.prod(box[2:] - box[:2]) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - both
    return both / np.maximum(union, np.finfo(float).tiny)


def _boxes(lake: Lake, labels: Dataset) -> pa.Table:
    """`bbox, sha256` of the labelled animals of one source."""
    made, photos = (lake.dataset(t, labels.category, labels.identity, labels.slot) for t in ("instances", "photos"))
    rows = join_rows(labels.read(["instance_id"]), made.read(["instance_id", "photo_id", "bbox"]), "instance_id")
    return join_rows(rows, photos.read(["photo_id", "sha256"]), "photo_id").select(["bbox", "sha256"])


def _corners(rows: pa.Table) -> np.ndarray:
    """Boxes [N,4] as x0, y0, x1, y1."""
    box = to_numpy(rows["bbox"], 4).astype(np.float64)
    return np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], 1)
