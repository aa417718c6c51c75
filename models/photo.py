"""Photos as arrays: the one decoder, so that boxes, crops and keypoints agree; and letterboxing for detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:  # a crawl looks at photos and needs no torch
    import torch

FILL = (124, 116, 104)  # RGB outside the photo: the ImageNet mean, zero after normalisation
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def decode_photo(data: bytes) -> np.ndarray | None:
    """RGB uint8 [H,W,3], turned upright as its EXIF says; None if it cannot be decoded. Never raises.

    Grey has three equal channels, palettes and CMYK are resolved, 16 bits become their upper 8, of an animation the
    first picture counts. Alpha of PNG and WebP is dropped: what lies under it is what the camera saw.
    """
    if not data:
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # a header that promises more pixels than OpenCV will hold
        return None


def letterbox(photo: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Photo [H,W,3] RGB shrunk or grown into [size,size,3] at the top left, and the scale applied."""
    scale = size / max(photo.shape[:2])
    h, w = max(1, round(photo.shape[0] * scale)), max(1, round(photo.shape[1] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    out = np.empty((size, size, 3), np.uint8)
    out[:] = FILL
    out[:h, :w] = cv2.resize(photo, (w, h), interpolation=method)
    return out, scale


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B,S,S,3] RGB -> ImageNet-normalised float [B,3,S,S]."""
    unit = images.float() / 255
    return ((unit - unit.new_tensor(MEAN)) / unit.new_tensor(STD)).permute(0, 3, 1, 2).contiguous()
