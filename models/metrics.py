"""Evaluation numbers of keypoints, cameras and masks. Everything is computed in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

AUC_THRESHOLDS = (0.06, 0.07, 0.08, 0.09, 0.10)


def pck(
    pred: ArrayLike, target: ArrayLike, visible: ArrayLike, size: ArrayLike, thresholds: Sequence[float]
) -> np.ndarray:
    """Percentage of correct keypoints: distance / size < threshold (strict), pooled over all visible keypoints.

    Args:
        pred: [N, K, 2].
        target: [N, K, 2], in the units of `pred`.
        visible: [N, K]; counted where > 0. What stands at the others does not matter.
        size: [N] reference length of each instance, usually the longer side of its box.
        thresholds: T shares of `size`.

    Returns:
        [T] percent; NaN where nothing is visible. A prediction that is not finite is wrong.

    Raises:
        ValueError: shapes do not fit, or an instance with a visible keypoint has a size that is not positive.
    """
    p, t = _floats("pred", pred, (None, None, 2)), _floats("target", target, (None, None, 2))
    if p.shape != t.shape:
        raise ValueError(f"pred {p.shape} and target {t.shape}: shapes differ")
    seen = _floats("visible", visible, p.shape[:2]) > 0
    length = _floats("size", size, p.shape[:1])
    bad = seen.any(1) & ~(length > 0)
    if bad.any():
        raise ValueError(f"size[{int(bad.argmax())}]={length[bad.argmax()]}: must be positive")
    limits = _floats("thresholds", thresholds, (None,))
    if not seen.any():
        return np.full(len(limits), np.nan)
    share = np.linalg.norm(p[seen] - t[seen], axis=-1) / np.broadcast_to(length[:, None], seen.shape)[seen]
    return 100 * (share[:, None] < limits).mean(0)


def auc_06_10(pred: ArrayLike, target: ArrayLike, visible: ArrayLike, size: ArrayLike) -> float:
    """Mean PCK at .06 .07 .08 .09 .10 in percent; arguments and errors as in `pck`.

    The reference calls this mean of five numbers "AUC".
    """
    return float(pck(pred, target, visible, size, AUC_THRESHOLDS).mean())


def camera_error_deg(q_pred: ArrayLike, q_true: ArrayLike, valid: ArrayLike) -> float:
    """Mean geodesic angle between rotations, in degrees, over the valid instances.

    The angle is 2 atan2(|vector part|, |scalar part|) of q_true* q_pred: exact 0 for equal rotations, where the
    arccosine of a clamped trace has a floor of 0.16 degrees. Norm and sign of the quaternions do not matter.

    Args:
        q_pred: [N, 4] wxyz.
        q_true: [N, 4] wxyz.
        valid: [N]; counted where > 0.

    Returns:
        Degrees in [0, 180]; NaN if no instance is valid or a valid prediction is zero or not finite.

    Raises:
        ValueError: shapes do not fit.
    """
    a = _floats("q_pred", q_pred, (None, 4))
    b = _floats("q_true", q_true, (len(a), 4))
    chosen = _floats("valid", valid, (len(a),)) > 0
    if not chosen.any():
        return float("nan")
    a, b = a[chosen], b[chosen]
    aw, av, bw, bv = a[:, :1], a[:, 1:], b[:, :1], b[:, 1:]
    scalar = (a * b).sum(1)
    vector = np.linalg.norm((bw * av - aw * bv) - np.cross(bv, av), axis=1)
    unusable = ~(np.isfinite(scalar) & (np.linalg.norm(a, axis=1) > 0) & (np.linalg.norm(b, axis=1) > 0))
    angle = np.where(unusable, np.nan, 2 * np.arctan2(vector, np.abs(scalar)))
    return float(np.degrees(angle).mean())


def miou(pred: ArrayLike, true: ArrayLike) -> float:
    """Mean over instances of intersection / union of masks; 1 where both are empty.

    Args:
        pred: [N, H, W]; inside where non-zero.
        true: [N, H, W].

    Returns:
        A share in [0, 1]; NaN for N = 0.

    Raises:
        ValueError: shapes do not fit.
    """
    p, t = np.asarray(pred), np.asarray(true)
    if p.ndim != 3 or p.shape != t.shape:
        raise ValueError(f"pred {p.shape} and true {t.shape}: expected two equal [N, H, W]")
    if not len(p):
        return float("nan")
    p, t = (p != 0).reshape(len(p), -1), (t != 0).reshape(len(t), -1)
    both, either = (p & t).sum(1).astype(np.float64), (p | t).sum(1).astype(np.float64)
    return float(np.divide(both, either, out=np.ones(len(p)), where=either > 0).mean())


def _floats(name: str, values: ArrayLike, shape: tuple[int | None, ...]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    fits = array.ndim == len(shape) and all(s is None or s == n for s, n in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("*" if s is None else str(s) for s in shape)
        raise ValueError(f"{name}: shape {array.shape}, expected [{wanted}]")
    return array
