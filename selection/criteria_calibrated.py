"""Confidence that means what it says: the expected share of correct joints. Cost: one pass of the 2D net, as `kp_conf`,
and one over a labelled slice it was not trained on, from which `calibrate` draws the curve.

The curve holds where it was drawn: labels that are easier than the web make it too sure of the web (in the sandbox, the
calibration error on the web is 0.10 before and 0.20 after; the ranking hardly moves).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from selection.columns import confidences
from selection.criteria import criterion
from tables import InputError

IDENTITY = ((0.0, 0.0), (1.0, 1.0))


@criterion("keypoints", higher_is_better=True)
def calibrated_conf(table: pa.Table, curve: Sequence[Sequence[float]] = IDENTITY) -> np.ndarray:
    """s_i = 1/J sum_j P(joint j is correct | c_ij), the curve's straight lines between its (confidence, P) knots."""
    knots = np.array(curve, np.float64)
    if knots.ndim != 2 or knots.shape[1] != 2 or not (np.diff(knots[:, 0]) > 0).all():
        raise InputError("curve", curve, "give pairs (confidence, probability) of rising confidence")
    return np.interp(confidences(table), knots[:, 0], knots[:, 1]).mean(axis=1)


def calibrate(confidence: np.ndarray, correct: np.ndarray) -> list[list[float]]:
    """The monotone curve of P(correct | confidence) closest to what was seen, as `calibrated_conf` takes it.

    Isotonic regression by pooling adjacent violators (Zadrozny and Elkan 2002); a knot at the mean confidence of
    each pool.

    Args:
        confidence: [M] of joints of labelled animals that the net was not trained on.
        correct: [M] bool, say within 0.1 of the box's longer side of the truth.

    Raises:
        InputError: there is nothing to learn from.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if not len(confidence) or not np.isfinite(confidence).all():
        raise InputError("confidence", f"{len(confidence)} values", "give the finite confidences of labelled joints")
    values, which = np.unique(confidence, return_inverse=True)
    pools: list[tuple[float, float, float]] = []  # joints, sum of confidences, sum of correct
    counts, hits = np.bincount(which), np.bincount(which, correct)
    for value, count, hit in zip(values.tolist(), counts.tolist(), hits.tolist(), strict=True):
        pools.append((count, value * count, hit))
        while len(pools) > 1 and pools[-2][2] * pools[-1][0] >= pools[-1][2] * pools[-2][0]:
            last, before = pools.pop(), pools.pop()
            pools.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    return [[c / n, p / n] for n, c, p in pools]
