"""A cheap camera: what lens, sensor and JPEG do to a rendered image."""

from __future__ import annotations

import cv2
import numpy as np


def lens(rng: np.random.Generator, image: np.ndarray, blur: float = 1.0) -> np.ndarray:
    """Defocus or shake, white balance, exposure, contrast, vignette and noise -> uint8 RGB.

    `blur` scales how strong and how frequent defocus and shake are.
    """
    h, w = image.shape[:2]
    unit = max(h, w) / 240
    kind = rng.random()
    if kind < 0.25 * blur:
        image = cv2.GaussianBlur(image, (0, 0), unit * rng.uniform(0.4, 0.4 + 0.9 * blur))
    elif kind < 0.40 * blur:
        length, angle = unit * rng.uniform(2, 2 + 3.5 * blur), rng.uniform(0, np.pi)
        n = int(length) | 1
        kernel = np.zeros((n, n), np.float32)
        step = np.array([np.cos(angle), np.sin(angle)]) * (n - 1) / 2
        centre = (n - 1) / 2
        (ax, ay), (bx, by) = np.rint([centre - step, centre + step]).astype(int)
        cv2.line(kernel, (int(ax), int(ay)), (int(bx), int(by)), 1.0)
        image = cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    balance = 1 + rng.normal(0, 0.05) * np.array([1, 0, -1]) + rng.normal(0, 0.02, 3)
    exposure = np.exp2(rng.normal(0, 0.28))
    x, y = np.linspace(-1, 1, w, dtype=np.float32), np.linspace(-1, 1, h, dtype=np.float32)
    vignette = 1 - rng.uniform(0, 0.28) * 0.5 * (x[None] ** 2 + y[:, None] ** 2)
    image = image * (vignette[..., None] * (balance * exposure).astype(np.float32))
    image = np.clip(image, 0, 1) ** np.float32(rng.uniform(0.8, 1.2))
    image = image + np.float32(rng.uniform(0.003, 0.022)) * rng.standard_normal((h, w, 1), np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> bytes:
    """JPEG bytes of a uint8 RGB image."""
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    if not ok:
        raise ValueError(f"image: shape {image.shape} cannot be encoded")
    return data.tobytes()
