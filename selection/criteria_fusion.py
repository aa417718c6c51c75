"""Several criteria at once, by rank: units and outliers of one cannot drown another. Cost: the sum of its parts.

An instance's rank is among all rows of its round, so that the scores of all of them must be held: some 60 bytes a row.
"""

from __future__ import annotations

import numpy as np

from selection.criteria import CRITERIA, Criterion, register


def fuse_ranks(*costs: np.ndarray) -> np.ndarray:
    """Mean over criteria of the rank [N] in (0, 1], ties sharing their mean rank (Borda count).

    Args:
        costs: [N] each, lower is better; infinite where a row cannot be scored, and then the fusion is NaN.
    """
    finite = np.logical_and.reduce([np.isfinite(cost) for cost in costs])
    total = np.zeros(finite.sum())
    for cost in costs:
        total += _rank(cost[finite])
    out = np.full(len(finite), np.nan)
    out[finite] = total / (len(costs) * max(1, len(total)))
    return out


def _rank(cost: np.ndarray) -> np.ndarray:
    """Ranks 1 .. N, tied rows at the middle of theirs."""
    _, group, count = np.unique(cost, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[group]


# The method's criteria that need no second 2D net: confidence, stability under transforms, agreement with 3D.
FUSED = ("kp_conf", "cf_mt", "cf_cm2")
COLUMNS = tuple(dict.fromkeys(column for name in FUSED for column in CRITERIA[name].columns))
register("rank_fusion", Criterion(fuse_ranks, higher_is_better=False, columns=COLUMNS, params=(), fuses=FUSED))
