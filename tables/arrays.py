"""Arrays in Arrow columns: flat row-major fixed-size lists of float32, and back without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

# Array columns where a row may be missing.
NULLABLE_ARRAYS = frozenset({"camera", "keypoints_aux", "keypoints_mt", "keypoints_3d", "heatmap_3d"})


def to_column(values: np.ndarray | Sequence[np.ndarray | None], width: int | None = None) -> pa.Array:
    """Pack N arrays of equal shape into a `fixed_size_list<float32>[width]` column.

    Args:
        values: [N, ...] array, or a sequence of N arrays where None becomes null.
        width: elements per row; needed only when every row is None or N is 0.

    Raises:
        ValueError: rows differ in size, or `width` cannot be told.
    """
    if isinstance(values, np.ndarray):
        mask = None
        rows = values.reshape(len(values), -1) if values.size else np.zeros((len(values), width or 0))
    else:
        mask = np.array([v is None for v in values], dtype=bool)
        known = [np.asarray(v, np.float32).ravel() for v in values if v is not None]
        width = width if width is not None else known[0].size if known else None
        if width is None:
            raise ValueError("width: every row is null, so the width must be given")
        rows = np.zeros((len(values), width), np.float32)
        if known:
            if known[0].size != width:
                raise ValueError(f"width={width}: rows hold {known[0].size} values each")
            rows[~mask] = np.stack(known)
    if width is not None and rows.shape[1] != width:
        raise ValueError(f"width={width}: rows hold {rows.shape[1]} values each")
    flat = pa.array(np.ascontiguousarray(rows, np.float32).ravel())
    null = None if mask is None or not mask.any() else pa.array(mask)
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1], mask=null)


def to_numpy(column: pa.Array | pa.ChunkedArray, *shape: int) -> np.ndarray:
    """The shaped view [N, *shape] (float32) of a fixed-size-list column; null rows read as NaN.

    One entry of `shape` may be -1. No copy is made for a single chunk without nulls.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    width = column.type.list_size
    flat = column.values.slice(column.offset * width, len(column) * width)
    rows = flat.to_numpy(zero_copy_only=False).reshape(len(column), width)
    if column.null_count:
        rows = rows.copy()
        rows[~column.is_valid().to_numpy(zero_copy_only=False)] = np.nan
    if -1 in shape:
        fixed = -int(np.prod(shape))
        shape = tuple(width // fixed if s == -1 else s for s in shape)
    return rows.reshape((len(column), *shape))


def to_disk(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Nullable arrays as plain lists: Parquet readers reject null rows of fixed-size lists (pyarrow 25)."""
    for i, f in enumerate(schema):
        if pa.types.is_fixed_size_list(f.type) and f.name in NULLABLE_ARRAYS:
            lists = pa.list_(f.type.value_type)
            rows = rows.set_column(i, pa.field(f.name, lists), rows[f.name].cast(lists))
    return rows


def from_disk(rows: pa.Table, widths: dict[str, int]) -> pa.Table:
    """Undo `to_disk`; `widths` gives the elements per row of each nullable array."""
    for i, f in enumerate(rows.schema):
        if f.name in widths and pa.types.is_list(f.type):
            column = rows[f.name].combine_chunks()
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            flat = np.zeros((len(column), widths[f.name]), np.float32)
            flat[valid] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, widths[f.name])
            values = pa.array(flat.ravel())
            fixed = pa.FixedSizeListArray.from_arrays(values, widths[f.name], mask=pa.array(~valid))
            rows = rows.set_column(i, f.name, fixed)
    return rows
