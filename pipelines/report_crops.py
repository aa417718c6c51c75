"""Crops with keypoints and skeleton drawn over them, as SVG on the photo's own pixels: sharp at any zoom."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from models.photo import decode_photo
from tables import QUADRUPED

SURE = 0.2  # joints below this confidence are drawn small, and no bone ends at them
VIEW = (6.0, 88.0)  # what of the stored crop is shown, percent: its corner, and its side


def crop_image(data: bytes, most: int = 240) -> str:
    """A stored crop (JPEG) as a data URI of at most `most` pixels a side; empty if it cannot be decoded."""
    import cv2

    from pipelines.report_mesh import webp

    photo = decode_photo(data)
    if photo is None:
        return ""
    if photo.shape[0] > most:
        photo = cv2.resize(photo, (most, most), interpolation=cv2.INTER_AREA)
    return webp(photo, quality=82)


def in_crop(points: np.ndarray, window: Any) -> np.ndarray:
    """Photo pixels [K, 2] -> percent of the stored window [x0, y0, side]."""
    corner = np.asarray(window, np.float64)
    return (np.asarray(points, np.float64) - corner[:2]) / corner[2] * 100


def figure(image: str, *layers: str) -> str:
    """A crop with layers over it."""
    low, side = VIEW
    photo = f'<image href="{image}" width="100" height="100" preserveAspectRatio="none"/>' if image else ""
    return f'<svg class="crop" viewBox="{low:g} {low:g} {side:g} {side:g}">{photo}{"".join(layers)}</svg>'


def mesh_layer(image: str) -> str:
    """A rendered picture of the shown window, over the crop."""
    low, side = VIEW
    return f'<image class="mesh" href="{image}" x="{low:g}" y="{low:g}" width="{side:g}" height="{side:g}"/>'


def pose_layer(points: np.ndarray, weight: np.ndarray | None, kind: str) -> str:
    """Joints and bones.

    Args:
        points: [K, 2] percent of the crop; joints that are not finite are left out.
        weight: [K] confidence or visibility; None: all are sure.
        kind: CSS class, `two` (from the 2D net or a label) or `three` (reprojected from the 3D net).
    """
    weight = np.ones(len(points)) if weight is None else np.asarray(weight, np.float64)
    known = np.isfinite(points).all(1) & np.isfinite(weight)
    sure = known & (weight >= SURE)
    edges = QUADRUPED.edges if len(points) == len(QUADRUPED) else ()
    bones = "".join(f"M{_at(points[a])}L{_at(points[b])}" for a, b in edges if sure[a] and sure[b])
    large = "".join(f"M{_at(p)}h0" for p, s in zip(points, sure, strict=True) if s)
    small = "".join(
        f"M{_at(p)}h0" for p, k, s in zip(points, known, sure, strict=True) if k and not s and weight.max() > 1e-9
    )
    paths = [("rim", bones), ("bone", bones), ("rim dot", large), ("dot", large), ("faint", small)]
    return f'<g class="{kind}">' + "".join(f'<path class="{c}" d="{d}"/>' for c, d in paths if d) + "</g>"


def _at(point: np.ndarray) -> str:
    # Far outside the crop would only lengthen the page.
    x, y = np.clip(point, -50, 150)
    return f"{x:.1f} {y:.1f}"


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a media type as a data URI."""
    return f"data:{kind};base64," + base64.b64encode(data).decode()
