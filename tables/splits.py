"""Which labels networks are trained on, which they are chosen by, and which they are judged by."""

from __future__ import annotations

import hashlib

import pyarrow as pa


def splits(labels: pa.Table) -> list[str]:
    """The split of each labelled instance (`instance_id, split`, of all sources together).

    Where no source names a `val` split, every fifth training instance by id hash is held out as `val`.
    """
    named = labels["split"].to_pylist()
    if "val" in named:
        return named
    fifth = [int(hashlib.sha256(i.encode()).hexdigest(), 16) % 5 == 0 for i in labels["instance_id"].to_pylist()]
    return ["val" if s == "train" and f else s for s, f in zip(named, fifth, strict=True)]
