"""Consistency of the two nets before the 2D net's maps are reduced to peaks.

Needs the column `heatmap_3d` of `pseudo_labels`, [K] in [0, 1] or null: the 2D net's heatmap of each joint, read at the
3D net's reprojected joint. A flat or a two-peaked map then speaks for what it is. Cost: one pass of either net in
every round, since maps are not kept; only K numbers are.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from selection.columns import points
from selection.criteria import criterion


@criterion("heatmap_3d", higher_is_better=True)
def heatmap_cm2(table: pa.Table) -> np.ndarray:
    """s_i = 1/J sum_j h_ij(p_3d_ij)."""
    return points(table, "heatmap_3d", 1)[..., 0].astype(np.float64).mean(axis=1)
