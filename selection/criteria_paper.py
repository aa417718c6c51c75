"""The method's four criteria, to the letter: all K joints, unweighted, no gate; each axis scaled by its own side.

As in animals3d prepare_data/selection_criteria.py:8-149. Forward passes a crop: `kp_conf` one of the 2D net, `cf_mt`
one for each of its T transforms, `cf_cm` one of each 2D net, `cf_cm2` one of the 2D and one of the 3D net.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from selection.columns import box_sides, confidences, same_joints, views, witness
from selection.criteria import criterion

# The reference compares predictions on its 256 x 256 crop, each axis scaled by its own side of the box.
CROP = 256.0


@criterion("keypoints", "keypoints_aux", "bbox", higher_is_better=False)
def cf_cm(table: pa.Table) -> np.ndarray:
    """CF-CM: d_i = 1/J sum_j |D_i (p_ij - p_aux_ij)|, the auxiliary 2D net's prediction."""
    return _crop_distance(table, *witness(table, "keypoints_aux"))


@criterion("keypoints", "keypoints_3d", "bbox", higher_is_better=False)
def cf_cm2(table: pa.Table) -> np.ndarray:
    """CF-CM^2: d_i = 1/J sum_j |D_i (p_ij - p_3d_ij)|, the 3D net's reprojected keypoints."""
    return _crop_distance(table, *witness(table, "keypoints_3d"))


@criterion("keypoints_mt", "bbox", higher_is_better=False)
def cf_mt(table: pa.Table, joints: int | None = None) -> np.ndarray:
    """CF-MT: d_i = 1/J sum_j |D_i (p0_ij - mean of the other transforms' p_ij)|; transform 0 is the identity.

    `joints` (K) is needed only where no other keypoint column tells it and K is not that of `QUADRUPED`.
    """
    return _crop_distance(table, *views(table, joints))


@criterion("keypoints", higher_is_better=True)
def kp_conf(table: pa.Table) -> np.ndarray:
    """KP-Conf: s_i = sum_j c_ij."""
    return confidences(table).sum(axis=1)


def _crop_distance(table: pa.Table, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over joints of |D (a - b)| with D = diag(256/w, 256/h); a and b are [N,K,2] -> [N]."""
    same_joints(a, b)
    return np.linalg.norm((a - b) * (CROP / box_sides(table))[:, None, :], axis=2).mean(axis=1)
