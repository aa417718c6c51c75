"""Reading flat Arrow columns as arrays of joints, and the distances that criteria are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from tables import QUADRUPED, InputError, to_numpy

# Rows that are worked on at once: what a score needs beside its table stays below a few hundred megabytes.
BLOCK = 1 << 15


def by_blocks(compute: Callable[[pa.Table], np.ndarray], table: pa.Table) -> np.ndarray:
    """The rows' results [N,...] of a function of rows, in memory of one block of rows."""
    table = fixed_width(table)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.concatenate([compute(table.slice(at, BLOCK)) for at in range(0, max(1, len(table)), BLOCK)])


def fixed_width(table: pa.Table) -> pa.Table:
    """Plain lists as fixed-size lists, as wide as their first row; a column of nulls alone stays as it is."""
    for at, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        plain = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if plain and not all_null(table, name):
            width = len(column.drop_null()[0])
            table = table.set_column(at, name, column.cast(pa.list_(column.type.value_type, width)))
    return table


def all_null(table: pa.Table, name: str) -> bool:
    """Nothing is in the column, and its width may be unknown."""
    return table[name].null_count == len(table)


def points(table: pa.Table, name: str, size: int) -> np.ndarray:
    """A column of flat arrays as [N, width / size, size] float32, without a copy where possible; null rows are NaN.

    Raises:
        InputError: the column is not a list of floats of one width, a multiple of `size`.
    """
    kind = table[name].type
    if not pa.types.is_fixed_size_list(kind) or kind.list_size % size:
        raise InputError(name, kind, f"must be a fixed-size list of floats whose width is a multiple of {size}")
    return to_numpy(table[name], -1, size)


def places(table: pa.Table, name: str, size: int) -> np.ndarray:
    """The x and y [N,K,2] float64 of a column of joints."""
    return points(table, name, size)[..., :2].astype(np.float64)


def confidences(table: pa.Table) -> np.ndarray:
    """What the 2D net gives each joint, [N,K] float64."""
    return points(table, "keypoints", 3)[..., 2].astype(np.float64)


def views(table: pa.Table, joints: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`keypoints_mt` [T,K,3] as the identity's joints and the mean of the other transforms' joints, [N,K,2] both.

    `joints` (K) is needed only where no other keypoint column tells it and K is not that of `QUADRUPED`.
    """
    flat = points(table, "keypoints_mt", 3)
    k = joints or _joint_count(table)
    if flat.shape[1] % k or flat.shape[1] < 2 * k:
        raise InputError("keypoints_mt", f"{3 * flat.shape[1]} wide", f"is not [T, {k}, 3] with at least 2 transforms")
    stacked = flat.reshape(len(flat), -1, k, 3)[..., :2].astype(np.float64)
    return stacked[:, 0], stacked[:, 1:].mean(axis=1)


def witness(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The joints [N,K,2] that are judged and those that a column says of them: two opinions of the same joints."""
    if name == "keypoints_mt":
        return views(table)
    return places(table, "keypoints", 3), places(table, name, 2 if name == "keypoints_3d" else 3)


def box_sides(table: pa.Table) -> np.ndarray:
    """Width and height [N,2] float64; NaN for a box that is null or has no area."""
    sides = points(table, "bbox", 4)[:, 0, 2:].astype(np.float64)
    return np.where(sides > 0, sides, np.nan)


def distances(table: pa.Table, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What PCK measures: |a - b| [N,K] in units of the box's longer side."""
    same_joints(a, b)
    return np.linalg.norm(a - b, axis=2) / box_sides(table).max(axis=1)[:, None]


def same_joints(a: np.ndarray, b: np.ndarray) -> None:
    """Raise InputError where two predictions differ in their number of joints."""
    if a.shape[1] != b.shape[1]:
        raise InputError("keypoints", f"{a.shape[1]} joints", f"cannot be compared with {b.shape[1]} joints")


def has_box(table: pa.Table) -> np.ndarray:
    """[N] bool: the row's box has an area. All true where the table has no boxes."""
    if "bbox" not in table.column_names:
        return np.ones(len(table), bool)
    if all_null(table, "bbox"):
        return np.zeros(len(table), bool)
    return np.isfinite(box_sides(table)).all(axis=1)


def _joint_count(table: pa.Table) -> int:
    for name, size in (("keypoints", 3), ("keypoints_aux", 3), ("keypoints_3d", 2), ("truth_keypoints", 3)):
        if name in table.column_names and pa.types.is_fixed_size_list(table[name].type):
            return table[name].type.list_size // size
    return len(QUADRUPED)
