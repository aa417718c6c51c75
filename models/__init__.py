"""Networks and geometry. Needs only torch, numpy, cv2 and file readers."""

from importlib import import_module
from typing import Any

_HOMES = {
    "ACSM": "acsm",
    "ACSMOutput": "acsm",
    "Detector": "heatmap",
    "PoseNet": "heatmap",
    "Raster": "raster",
    "Template": "template",
    "load_checkpoint": "checkpoint",
    "rasterize": "raster",
    "silhouette": "outline",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use: reading a template needs no network, and neither needs the other's libraries."""
    if name in _HOMES:
        return getattr(import_module(f"models.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'models' has no attribute {name!r}")
