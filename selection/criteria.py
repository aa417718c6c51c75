"""Criteria: one number per pseudo-labelled instance, from the columns of an Arrow table.

`kp_conf`, `cf_mt`, `cf_cm` and `cf_cm2` are the reference's formulas to the letter (animals3d
prepare_data/selection_criteria.py:8-149): all K joints, unweighted, no visibility or confidence gate. A better variant
gets a name of its own. To add one, write a function under `@_criterion`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tables import QUADRUPED, InputError, to_numpy

# The reference compares predictions on its 256 x 256 crop, each axis scaled by its own side of the box.
CROP = 256.0


@dataclass(frozen=True)
class Criterion:
    """A scoring function, its direction, the columns it needs and the parameters it takes."""

    compute: Callable[..., np.ndarray]
    higher_is_better: bool
    columns: tuple[str, ...]
    params: tuple[str, ...]


Score = Callable[..., np.ndarray]
CRITERIA: dict[str, Criterion] = {}


def _criterion(*columns: str, higher_is_better: bool) -> Callable[[Score], Score]:
    def register(compute: Score) -> Score:
        params = tuple(inspect.signature(compute).parameters)[1:]
        CRITERIA[compute.__name__] = Criterion(compute, higher_is_better, columns, params)
        return compute

    return register


def find(criterion: str) -> Criterion:
    """The criterion of this name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if criterion not in CRITERIA:
        raise InputError("criterion", criterion, f"unknown; choose one of {', '.join(sorted(CRITERIA))}")
    return CRITERIA[criterion]


def score(criterion: str, table: pa.Table, **params: Any) -> np.ndarray:
    """Score every row; the sign is the formula's own, `HIGHER_IS_BETTER[criterion]` gives the direction.

    Args:
        table: `pseudo_labels` joined with `instances.bbox`, N rows; only the criterion's own columns are needed.
        params: the criterion's parameters (`random`: seed; `cf_mt`: joints).

    Returns:
        [N] float64. NaN where a row cannot be scored: a missing prediction, a null box or one without area.

    Raises:
        InputError: unknown criterion or parameter, a column is missing, or widths do not fit each other.
    """
    found = find(criterion)
    for name in params:
        if name not in found.params:
            raise InputError(name, params[name], f"`{criterion}` takes {', '.join(found.params) or 'no parameters'}")
    for name in found.columns:
        if name not in table.column_names:
            raise InputError("criterion", criterion, f"needs the column `{name}`, which the table does not have")
    if any(_empty(table, name) for name in found.columns):
        return np.full(len(table), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        return found.compute(table, **params)


@_criterion("keypoints", higher_is_better=True)
def kp_conf(table: pa.Table) -> np.ndarray:
    """KP-Conf: s_i = sum_j c_ij."""
    return _points(table, "keypoints", 3)[:, :, 2].sum(axis=1)


@_criterion("keypoints_mt", "bbox", higher_is_better=False)
def cf_mt(table: pa.Table, joints: int | None = None) -> np.ndarray:
    """CF-MT: d_i = 1/J sum_j |D_i (p0_ij - mean of the other transforms' p_ij)|; transform 0 is the identity.

    `joints` (K) is needed only where no other keypoint column tells it and K is not that of `QUADRUPED`.
    """
    flat = _points(table, "keypoints_mt", 3)
    k = joints or _joint_count(table)
    if flat.shape[1] % k or flat.shape[1] < 2 * k:
        raise InputError("keypoints_mt", f"{3 * flat.shape[1]} wide", f"is not [T, {k}, 3] with at least 2 transforms")
    views = flat.reshape(len(flat), -1, k, 3)[..., :2]
    return _crop_distance(table, views[:, 0], views[:, 1:].mean(axis=1))


@_criterion("keypoints", "keypoints_aux", "bbox", higher_is_better=False)
def cf_cm(table: pa.Table) -> np.ndarray:
    """CF-CM: d_i = 1/J sum_j |D_i (p_ij - p_aux_ij)|, the auxiliary 2D net's prediction."""
    return _crop_distance(table, _points(table, "keypoints", 3), _points(table, "keypoints_aux", 3))


@_criterion("keypoints", "keypoints_3d", "bbox", higher_is_better=False)
def cf_cm2(table: pa.Table) -> np.ndarray:
    """CF-CM^2: d_i = 1/J sum_j |D_i (p_ij - p_3d_ij)|, the 3D net's reprojected keypoints."""
    return _crop_distance(table, _points(table, "keypoints", 3), _points(table, "keypoints_3d", 2))


@_criterion("instance_id", higher_is_better=True)
def random(table: pa.Table, seed: int = 0) -> np.ndarray:
    """Control: uniform in [0, 1) from a hash of seed and id, so the order of rows does not matter."""
    keys = (f"{seed}|{i}".encode() for i in table["instance_id"].to_pylist())
    digests = [hashlib.blake2b(k, digest_size=8).digest() for k in keys]
    bits = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64) >> np.uint64(11)
    return bits.astype(np.float64) / 2.0**53


@_criterion("keypoints", "truth_keypoints", "bbox", higher_is_better=False)
def oracle(table: pa.Table) -> np.ndarray:
    """Control for diagnostics: mean error to the truth over its visible joints, by the box's longer side."""
    predicted, truth = _points(table, "keypoints", 3), _points(table, "truth_keypoints", 3)
    _same_joints(predicted, truth)
    error = np.linalg.norm(predicted[..., :2] - truth[..., :2], axis=2)
    visible = truth[..., 2] > 0
    total, count = np.where(visible, error, 0.0).sum(axis=1), visible.sum(axis=1).astype(np.float64)
    return total / _or_nan(count) / _box_sides(table).max(axis=1)


def _crop_distance(table: pa.Table, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over joints of |D (a - b)| with D = diag(256/w, 256/h); a and b are [N,K,>=2] -> [N]."""
    _same_joints(a, b)
    sides = _box_sides(table)
    return np.linalg.norm((a[..., :2] - b[..., :2]) * (CROP / sides)[:, None, :], axis=2).mean(axis=1)


def _same_joints(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[1] != b.shape[1]:
        raise InputError("keypoints", f"{a.shape[1]} joints", f"cannot be compared with {b.shape[1]} joints")


def _box_sides(table: pa.Table) -> np.ndarray:
    """Width and height [N,2]; NaN for a box that is null or has no area."""
    return _or_nan(_points(table, "bbox", 4)[:, 0, 2:])


def has_box(table: pa.Table) -> np.ndarray:
    """[N] bool: the row's box has an area. All true where the table has no boxes."""
    if "bbox" not in table.column_names:
        return np.ones(len(table), bool)
    if _empty(table, "bbox"):
        return np.zeros(len(table), bool)
    return np.isfinite(_box_sides(table)).all(axis=1)


def _empty(table: pa.Table, name: str) -> bool:
    """Nothing is in the column, and with every row null its width may be unknown."""
    return table[name].null_count == len(table)


def _or_nan(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _joint_count(table: pa.Table) -> int:
    for name, size in (("keypoints", 3), ("keypoints_aux", 3), ("keypoints_3d", 2), ("truth_keypoints", 3)):
        if name in table.column_names and not _empty(table, name):
            return _points(table.select([name]), name, size).shape[1]
    return len(QUADRUPED)


def _points(table: pa.Table, name: str, size: int) -> np.ndarray:
    """A column of flat arrays as [N, width / size, size] float64; null rows are NaN."""
    column = table[name]
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.cast(pa.list_(column.type.value_type, len(column.drop_null()[0])))
    if not pa.types.is_fixed_size_list(column.type) or column.type.list_size % size:
        raise InputError(name, column.type, f"must be a fixed-size list of floats whose width is a multiple of {size}")
    return to_numpy(column, -1, size).astype(np.float64)


HIGHER_IS_BETTER = {name: c.higher_is_better for name, c in CRITERIA.items()}
