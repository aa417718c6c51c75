"""Two ideas of ScarceNet (Li and Lee, CVPR 2023) for choosing joints, made into scores of an instance.

Small loss: what a net fits worst is most likely wrong. Agreement: a joint is believed if all opinions of it agree.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from selection.columns import distances, witness
from selection.criteria import criterion
from tables import InputError


@criterion("keypoints", "keypoints_3d", "bbox", higher_is_better=False)
def small_loss(table: pa.Table, share: float = 0.75) -> np.ndarray:
    """Mean distance of `pck_cm2` over the `share` of the joints that fit best, so that a few bad joints do not reject
    an animal whose others are good; goes with the rule `gate`, which masks them. Cost: as `cf_cm2`.
    """
    if not 0 < share <= 1:
        raise InputError("share", share, "must be above 0 and at most 1")
    found = np.sort(distances(table, *witness(table, "keypoints_3d")), axis=1)
    return found[:, : max(1, round(share * found.shape[1]))].mean(axis=1) + 0.0 * found[:, -1]  # NaN stays NaN


@criterion("keypoints", "keypoints_mt", "keypoints_3d", "bbox", higher_is_better=False)
def agreement(table: pa.Table) -> np.ndarray:
    """Mean over joints of the larger of two distances, to the reprojection and among the transforms.

    Cost: T passes of the 2D net and one of the 3D net.
    """
    found = [distances(table, *witness(table, name)) for name in ("keypoints_3d", "keypoints_mt")]
    return np.maximum(*found).mean(axis=1)
