"""CF-CM² that does not trust the 2D net where it sees nothing. Cost: as `cf_cm2`, one pass of either net.

A hidden joint has a low, arbitrary peak: the paper's mean takes its distance to the reprojection at face value, be it
large by chance or small by chance.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from selection.columns import confidences, distances, witness
from selection.criteria import criterion


@criterion("keypoints", "keypoints_3d", "bbox", higher_is_better=False)
def visible_cm2(table: pa.Table, doubt: float = 0.2) -> np.ndarray:
    """d_i = 1/J sum_j (c_ij d_ij + (1 - c_ij) doubt), d_ij the distance of `pck_cm2`.

    `doubt` is the error expected of a joint that is not seen, a share of the box's longer side. Without it, one
    confident joint alone would make a perfect instance.
    """
    c = np.clip(confidences(table), 0.0, 1.0)
    return (c * distances(table, *witness(table, "keypoints_3d")) + (1 - c) * doubt).mean(axis=1)
