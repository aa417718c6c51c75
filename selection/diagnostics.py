"""Diagnostics: how good a selection is, where the truth is known. Nothing here feeds training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from selection.columns import all_null
from selection.criteria import CRITERIA, costs, score
from tables import InputError, to_numpy


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


CONTROLS = ("random", "oracle", "all")


def aurc_table(table: pa.Table, error: np.ndarray | None = None, criteria: Sequence[str] | None = None) -> pa.Table:
    """How well each criterion finds the good rows, best first, between chance and the truth.

    Args:
        table: N rows with `truth_keypoints` (where `error` is not given) and the columns of the criteria.
        error: [N] of each row; None: that of the criterion `oracle`. Rows without one are left out.
        criteria: names; None: all whose columns are there and not empty.

    Returns:
        `criterion, instances, aurc, captured`: area under risk-coverage on the rows that all of these criteria score,
        and its place between random choice (0: the mean error, which is its expectation) and the order of the errors
        themselves (100), percent. Rows `random` and `oracle` are these two.

    Raises:
        InputError: no row has an error and every score.
    """
    error = score("oracle", table) if error is None else np.asarray(error, np.float64)
    if criteria is None:
        there = {name for name in table.column_names if not all_null(table, name)}
        criteria = [c for c, found in CRITERIA.items() if c not in CONTROLS and there.issuperset(found.columns)]
    cost = {name: costs(name, score(name, table)) for name in criteria}
    known = np.isfinite(error) & np.logical_and.reduce([np.isfinite(c) for c in cost.values()])
    if not known.any():
        raise InputError("table", f"{len(table)} rows", "none has an error and a score by every criterion")
    error = error[known]
    chance, best = float(error.mean()), risk_coverage(error, error).aurc
    areas = {name: risk_coverage(c[known], error).aurc for name, c in cost.items()}
    areas = dict(sorted((areas | {"random": chance, "oracle": best}).items(), key=lambda item: item[1]))
    room = chance - best
    return pa.table({
        "criterion": list(areas),
        "instances": [len(error)] * len(areas),
        "aurc": list(areas.values()),
        "captured": [100 * (chance - a) / room if room > 0 else float("nan") for a in areas.values()],
    })  # fmt: skip


class Reliability(NamedTuple):
    """Stated confidence against what came true, by bins of equal width in [0, 1]; NaN where a bin is empty.

    confidence, correct: [bins] means. joints: [bins] how many. ece: expected calibration error, the mean gap.
    """

    confidence: np.ndarray
    correct: np.ndarray
    joints: np.ndarray
    ece: float


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> Reliability:
    """Data of a reliability diagram (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Args:
        confidence: [M] in [0, 1]; values that are not finite are left out.
        correct: [M] bool.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    known = np.isfinite(confidence)
    confidence, correct = confidence[known], correct[known]
    which = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    share = np.where(count > 0, count, np.nan)
    said, came = (np.bincount(which, v, minlength=bins) / share for v in (confidence, correct))
    ece = float(np.nansum(np.abs(said - came) * count) / len(confidence)) if len(confidence) else float("nan")
    return Reliability(said, came, count, ece)


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
