"""Several criteria at once, by rank: units and outliers of one cannot drown another. Cost: the sum of its parts.

An instance's rank is among all rows, so it cannot be told from the row alone, nor streamed in constant memory.
"""

from __future__ import annotations

import numpy as np

from selection.criteria import CRITERIA, Criterion, register


def fuse_ranks(*costs: np.ndarray) -> np.ndarray:
    """Mean over criteria of the rank [N] in (0, 1], ties sharing their mean rank (Borda count).

    Args:
        costs: [N] each, lower is better; infinite where a row cannot be scored, and then the fusion is NaN.
    """
    stacked = np.stack(costs)
    finite = np.isfinite(stacked).all(axis=0)
    out = np.full(stacked.shape[1], np.nan)
    if finite.any():
        out[finite] = np.mean([_rank(c) for c in stacked[:, finite]], axis=0) / finite.sum()
    return out


def _rank(cost: np.ndarray) -> np.ndarray:
    """Ranks 1 .. N, tied rows at the middle of theirs."""
    _, group, count = np.unique(cost, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[group]


# The method's criteria that need no second 2D net: confidence, stability under transforms, agreement with 3D.
FUSED = ("kp_conf", "cf_mt", "cf_cm2")
COLUMNS = tuple(dict.fromkeys(column for name in FUSED for column in CRITERIA[name].columns))
register("rank_fusion", Criterion(fuse_ranks, higher_is_better=False, columns=COLUMNS, params=(), fuses=FUSED))
