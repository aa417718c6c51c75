"""Controls: chance, the truth, and everything. They cost nothing to predict; the truth is for diagnostics only."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from selection.columns import distances, places, points
from selection.criteria import Criterion, criterion, register


@criterion("instance_id", higher_is_better=True)
def random(table: pa.Table, seed: int = 0) -> np.ndarray:
    """Uniform in [0, 1) from a hash of seed and id, so the order of rows does not matter."""
    prefix = hashlib.blake2b(f"{seed}|".encode(), digest_size=8)

    def digest(name: str) -> bytes:
        state = prefix.copy()
        state.update(name.encode())
        return state.digest()

    digests = b"".join(map(digest, table["instance_id"].to_pylist()))
    bits = np.frombuffer(digests, dtype=">u8").astype(np.uint64) >> np.uint64(11)
    return bits.astype(np.float64) / 2.0**53


@criterion("keypoints", "truth_keypoints", "bbox", higher_is_better=False)
def oracle(table: pa.Table) -> np.ndarray:
    """Mean error to the truth over its visible joints, by the box's longer side; NaN where none is visible."""
    error = distances(table, places(table, "keypoints", 3), places(table, "truth_keypoints", 3))
    visible = points(table, "truth_keypoints", 3)[..., 2] > 0
    return np.where(visible, error, 0.0).sum(axis=1) / np.where(visible.any(axis=1), visible.sum(axis=1), np.nan)


def _same(table: pa.Table) -> np.ndarray:
    return np.zeros(len(table))


# All instances with a box, whatever `top_n`: what selecting at all is worth.
register("all", Criterion(_same, higher_is_better=False, columns=("instance_id",), params=(), cuts=False))
