"""Diagnostics: how good a selection is, where the truth is known. Nothing here feeds training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tables import to_numpy


class RiskCoverage(NamedTuple):
    """Mean error of the best-scored share of the rows, for every share.

    coverage: [N] 1/N .. 1. risk: [N] mean error of the first n rows. aurc: mean of `risk` (lower is better).
    """

    coverage: np.ndarray
    risk: np.ndarray
    aurc: float


def risk_coverage(score: np.ndarray, error: np.ndarray, higher_is_better: bool = False) -> RiskCoverage:
    """Risk-coverage curve of a score [N] against an error [N]; rows where either is not finite are left out.

    Rows of equal score share the mean error of their group, so the order of rows does not matter.
    Area as in Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks" (2017).
    """
    score, error = np.asarray(score, np.float64), np.asarray(error, np.float64)
    known = np.isfinite(score) & np.isfinite(error)
    score, error = score[known], error[known]
    if not len(score):
        return RiskCoverage(np.empty(0), np.empty(0), float("nan"))
    _, group = np.unique(-score if higher_is_better else score, return_inverse=True)
    error = (np.bincount(group, error) / np.bincount(group))[group]
    count = np.arange(1, len(score) + 1)
    risk = np.cumsum(error[np.argsort(group, kind="stable")]) / count
    return RiskCoverage(count / len(score), risk, float(risk.mean()))


def pseudo_label_pck(table: pa.Table, selected: np.ndarray, thresholds: Iterable[float] = (0.05, 0.1)) -> np.ndarray:
    """PCK of pseudo-labels against the truth, percent, one value per threshold.

    Args:
        table: N rows with `keypoints`, `truth_keypoints` (both [K,3]) and `bbox`.
        selected: [N] bool, the rows to look at.
        thresholds: in units of the box's longer side.
    """
    from models.metrics import pck

    keep = table.filter(pa.array(np.asarray(selected, bool)))
    predicted, truth = to_numpy(keep["keypoints"], -1, 3), to_numpy(keep["truth_keypoints"], -1, 3)
    size = to_numpy(keep["bbox"], 4)[:, 2:].max(axis=1)
    return np.asarray(pck(predicted[..., :2], truth[..., :2], truth[..., 2] > 0, size, list(thresholds)))


def jaccard(ids_a: Iterable[str], ids_b: Iterable[str]) -> float:
    """Overlap of two sets of ids: |A and B| / |A or B|; 1 where both are empty."""
    a, b = set(ids_a), set(ids_b)
    return len(a & b) / len(a | b) if a | b else 1.0
