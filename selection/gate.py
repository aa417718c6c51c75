"""Per-joint gate: an instance is kept with its bad joints masked.

Costs what `cf_cm2` does: one pass of the 2D net and one of the 3D net. A wrong joint of a good animal then neither
rejects the animal nor teaches the 3D net. (ScarceNet, Li and Lee 2023, drops joints one by one in the same way.)
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from selection.columns import by_blocks, distances, fixed_width, places, points
from tables import InputError, to_column

MIN_SHARE = 0.5  # of its joints an instance must keep


def passing(table: pa.Table, gate: float) -> np.ndarray:
    """[N,K] bool: joints whose reprojection by the 3D net lies within `gate` of the box's longer side.

    Raises:
        InputError: `keypoints`, `keypoints_3d` or `bbox` is not there.
    """
    for name in ("keypoints", "keypoints_3d", "bbox"):
        if name not in table.column_names:
            raise InputError("gate", gate, f"needs the column `{name}`, which the table does not have")
    return by_blocks(lambda rows: _near(rows, gate), table)


def gated(table: pa.Table, keep: np.ndarray) -> pa.Table:
    """The table with confidence 0, which no training counts, for the joints that are not kept ([N,K] bool)."""
    joints = points(fixed_width(table), "keypoints", 3).copy()
    joints[..., 2] *= keep
    column = to_column(joints, 3 * joints.shape[1])
    return table.set_column(table.column_names.index("keypoints"), "keypoints", column)


def _near(rows: pa.Table, gate: float) -> np.ndarray:
    return distances(rows, places(rows, "keypoints", 3), places(rows, "keypoints_3d", 2)) < gate
