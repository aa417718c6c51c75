"""Leaks: web photos that look like one that networks are evaluated on may not train them, whatever the selection."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tables import Lake, splits

RADIUS = 4  # bits in which difference hashes of one picture may differ, as detect.radius
_MOST = 1 << 22  # pairs compared at once


def evaluation_photos(lake: Lake, category: str) -> pa.Table:
    """`photo_id, dhash` of the photos of the splits that networks are judged by (val, test), by id; maybe none."""
    rows = []
    for labels in lake.datasets("labels", category) if lake.files.names(f"labels/category={category}") else ():
        made = lake.dataset("instances", category, labels.identity, labels.slot)
        known = made.read(["instance_id", "photo_id", "dhash"])
        label = labels.read(["instance_id", "split"])
        where = pc.index_in(label["instance_id"], known["instance_id"])
        rows.append(known.take(where).append_column("split", label["split"]))
    if not rows:
        return pa.table({"photo_id": pa.array([], pa.string()), "dhash": pa.array([], pa.uint64())})
    table = pa.concat_tables(rows)
    held = [split in ("val", "test") for split in splits(table)]
    photos = table.filter(pa.array(held)).group_by("photo_id").aggregate([("dhash", "min")])
    return photos.rename_columns({"dhash_min": "dhash"}).sort_by("photo_id")


def leaks(instances: pa.Table, held: pa.Table) -> pa.Array:
    """The evaluation photo that each instance's photo is, or looks like: the nearest's id; null where it is none.

    Args:
        instances, held: `photo_id, dhash`. A hash of zeros or null says nothing of what a photo shows.
    """
    ids, theirs = held["photo_id"], held["dhash"].fill_null(0).to_numpy()
    ours = instances["dhash"].fill_null(0).to_numpy()
    found = pc.fill_null(pc.index_in(instances["photo_id"], ids), -1).to_numpy().copy()
    known = np.flatnonzero(theirs)
    seen, which = np.unique(ours, return_inverse=True)
    nearest = np.full(len(seen), -1)
    step = max(1, _MOST // max(1, len(known)))
    for at in range(0, len(seen) if len(known) else 0, step):
        apart = np.bitwise_count(seen[at : at + step, None] ^ theirs[known])
        best = apart.argmin(1)
        near = (apart[np.arange(len(best)), best] <= RADIUS) & (seen[at : at + step] != 0)
        nearest[at : at + step][near] = known[best[near]]
    found = np.where(found >= 0, found, nearest[which])
    return ids.combine_chunks().take(pa.array(found, mask=found < 0))
