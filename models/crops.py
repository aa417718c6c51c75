"""Where a crop lies in its photo, and how images and points go from one to the other.

Pixels are continuous with edges at whole numbers; a window is [x0, y0, side] in photo pixels; the network frame is
[-1,1] over the window, x right and y down. One convention for all networks, in training and at test.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch

from models.photo import FILL, MEAN, STD

STORED = 1.5  # side of the stored crop per longer side of the box: room for jitter and rotation
SEEN = 1.1  # side of the window a network looks at: 5 % of padding on each side


def window(bbox: Any, factor: float) -> np.ndarray:
    """[..., 4] boxes [x,y,w,h] -> [..., 3] square windows [x0,y0,side], side = factor * max(w, h), same centre."""
    box = np.asarray(bbox, np.float64)
    side = factor * np.maximum(box[..., 2], box[..., 3])
    corner = box[..., :2] + box[..., 2:] / 2 - side[..., None] / 2
    return np.concatenate([corner, side[..., None]], -1)


def stored_pixels(image_size: int) -> int:
    """Pixels of a stored crop for a network input size, so that the network's window loses no detail."""
    return int(np.ceil(image_size * STORED / SEEN / 16) * 16)


def cut(photo: np.ndarray, win: Any, pixels: int, fill: tuple[int, int, int] = FILL) -> np.ndarray:
    """Resample a window [x0,y0,side] of a photo [H,W,3] to [pixels,pixels,3]; outside is `fill`.

    Shrinking averages over areas, so that a stored crop does not alias.
    """
    x0, y0, side = (float(v) for v in win)
    fx = fy = pixels / side
    if fx < 1:
        h, w = photo.shape[:2]
        small_w, small_h = max(1, round(w * fx)), max(1, round(h * fx))
        photo = cv2.resize(photo, (small_w, small_h), interpolation=cv2.INTER_AREA)
        # The size was rounded to whole pixels: what is left to scale differs a little between the axes.
        x0, y0, fx, fy = x0 * small_w / w, y0 * small_h / h, fx * w / small_w, fy * h / small_h
    # cv2 places pixel centres at whole numbers, we at halves.
    matrix = np.array([[fx, 0, (0.5 - x0) * fx - 0.5], [0, fy, (0.5 - y0) * fy - 0.5]])
    return cv2.warpAffine(
        photo, matrix, (pixels, pixels), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )


def to_frame(points: np.ndarray, win: np.ndarray) -> np.ndarray:
    """Photo pixels [N,...,2] -> network frame [-1,1] of windows [N,3]."""
    win = win.reshape(len(win), *([1] * (points.ndim - 2)), 3)
    return (points - win[..., :2]) / win[..., 2:] * 2 - 1


def to_photo(points: np.ndarray, win: np.ndarray) -> np.ndarray:
    """Network frame [N,...,2] of windows [N,3] -> photo pixels."""
    win = win.reshape(len(win), *([1] * (points.ndim - 2)), 3)
    return (points + 1) / 2 * win[..., 2:] + win[..., :2]


def sample(crops: torch.Tensor, matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Look at stored crops through an affine map and normalise for a network.

    Args:
        crops: uint8 [B,C,C,3] RGB, each the `STORED` window of its box.
        matrix: [B,2,3] from the output's frame [-1,1] to the stored crop's frame [-1,1].
        size: S, pixels of the output.

    Returns:
        float [B,3,S,S], ImageNet-normalised; 0 outside the stored crop.
    """
    mean, scale = _colours(crops.device)
    if crops.is_cuda:
        return _sample(crops, matrix, size, mean, scale)
    # In bfloat16, which autocast would take for the grid, places are half a pixel off.
    with torch.autocast(crops.device.type, enabled=False):
        grid = torch.nn.functional.affine_grid(matrix, [len(crops), 3, size, size], align_corners=False)
        # Outside are zeros, which are the mean colour because the mean is taken off first.
        return torch.nn.functional.grid_sample(crops.permute(0, 3, 1, 2) - mean, grid, align_corners=False) / scale


@torch.library.custom_op("wildshape::sample", mutates_args=())
def _sample(
    crops: torch.Tensor, matrix: torch.Tensor, size: int, mean: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    from models import sample_kernel  # Triton is where CUDA is

    return sample_kernel.sample(crops, matrix, size, mean, scale)


@_sample.register_fake
def _(crops: torch.Tensor, matrix: torch.Tensor, size: int, mean: Any, scale: Any) -> torch.Tensor:
    return crops.new_empty((len(crops), 3, size, size), dtype=torch.float32)


@lru_cache(maxsize=16)
def _colours(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale [1,3,1,1] of 8-bit colours; copied to a device once, since a CUDA graph holds no host copy."""
    with torch.inference_mode(False):
        mean = 255 * torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        return mean, 255 * torch.tensor(STD, device=device).view(1, 3, 1, 1)


def affine(
    n: int,
    zoom: Any = 1.0,
    angle: Any = 0.0,
    shift: Any = 0.0,
    flip: Any = 1.0,
    device: Any = None,
) -> torch.Tensor:
    """[n,2,3] maps from the network's frame to the stored crop's frame.

    Args:
        zoom: >1 sees more of the photo, relative to the `SEEN` window; scalar or [n].
        angle: radians, turns the picture's content from x towards y; scalar or [n].
        shift: of the window's centre in the network's frame; scalar or [n,2].
        flip: -1 mirrors, 1 does not; scalar or [n].
    """
    zoom = torch.as_tensor(zoom, dtype=torch.float32, device=device).expand(n) * (SEEN / STORED)
    angle = torch.as_tensor(angle, dtype=torch.float32, device=device).expand(n)
    flip = torch.as_tensor(flip, dtype=torch.float32, device=device).expand(n)
    shift = torch.as_tensor(shift, dtype=torch.float32, device=device).expand(n, 2) * (SEEN / STORED)
    c, s = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    return torch.stack([torch.stack([c * flip, s, shift[:, 0]], -1), torch.stack([-s * flip, c, shift[:, 1]], -1)], -2)


def apply_affine(matrix: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """[B,2,3] maps applied to points [B,K,2]."""
    return points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]


def invert_affine(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse maps [B,2,3]."""
    linear = torch.linalg.inv(matrix[:, :, :2])
    return torch.cat([linear, -linear @ matrix[:, :, 2:]], -1)


def stored_to_seen(points: torch.Tensor) -> torch.Tensor:
    """Stored crop's frame -> frame of the plain `SEEN` window."""
    return points * (STORED / SEEN)
