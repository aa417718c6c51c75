"""How far a 3D network's shapes are from labels, animal by animal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.crops import to_photo
from models.metrics import camera_error_deg
from models.predict import in_photo

if TYPE_CHECKING:
    from models.acsm import ACSMOutput
    from trainers.data import Instances

NEAR = 0.10  # a joint is within reach at less than this share of the box's longer side


class ShapeErrors(NamedTuple):
    """N labelled animals.

    Attributes:
        found, truth: [N, K, 2] reprojected and labelled joints, photo pixels.
        visible: [N, K] bool, labelled joints.
        error: [N] mean distance of the labelled joints by the longer side of the box; NaN without one.
        within: [N] labelled joints that are off by less than `NEAR` of that side.
        camera_deg: [N] how far the camera is off; NaN where the label does not know it.
    """

    found: np.ndarray
    truth: np.ndarray
    visible: np.ndarray
    error: np.ndarray
    within: np.ndarray
    camera_deg: np.ndarray


def shape_errors(out: ACSMOutput, data: Instances) -> ShapeErrors:
    """Judge the first hypothesis of `out` on the animals it was made from."""
    found = in_photo(out.keypoints[:, 0], data.windows)
    truth = to_photo(data.keypoints[..., :2].astype(np.float64), data.windows)
    visible = data.keypoints[..., 2] > 0
    off = np.linalg.norm(found - truth, axis=-1) / data.size[:, None]
    joints = visible.sum(1)
    error = np.where(visible, off, 0).sum(1) / np.where(joints, joints, np.nan)
    turned = out.camera[:, 0, 3:].cpu().numpy()
    camera = [
        camera_error_deg(turned[i : i + 1], data.cameras[i : i + 1], [1]) if known else np.nan
        for i, known in enumerate(np.isfinite(data.cameras).all(1))
    ]
    return ShapeErrors(found, truth, visible, error, (visible & (off < NEAR)).sum(1), np.array(camera, np.float64))
