"""The distances of CF-CM², CF-CM and CF-MT as PCK measures them: by the box's longer side, the same on both axes.

The paper's D scales each axis by its own side, so that on a wide box an error across counts less than one upwards,
which no evaluation does. Units are the thresholds of PCK. Cost: as the paper's `cf_cm2`, `cf_cm` and `cf_mt`.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from selection.columns import distances, witness
from selection.criteria import criterion


@criterion("keypoints", "keypoints_3d", "bbox", higher_is_better=False)
def pck_cm2(table: pa.Table) -> np.ndarray:
    """Mean distance to the 3D net's reprojected joints."""
    return distances(table, *witness(table, "keypoints_3d")).mean(axis=1)


@criterion("keypoints", "keypoints_aux", "bbox", higher_is_better=False)
def pck_cm(table: pa.Table) -> np.ndarray:
    """Mean distance to the auxiliary 2D net's joints."""
    return distances(table, *witness(table, "keypoints_aux")).mean(axis=1)


@criterion("keypoints_mt", "bbox", higher_is_better=False)
def pck_mt(table: pa.Table) -> np.ndarray:
    """Mean distance of the identity's joints to the mean of the other transforms' joints."""
    return distances(table, *witness(table, "keypoints_mt")).mean(axis=1)
