"""Photos made smaller: a JPEG of chosen size, and the 64-bit difference hash that near duplicates share."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch

from pipelines.photo_checks import Verdict, image_kind

_REDUCED = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
    (1, cv2.IMREAD_COLOR),
)


def resize(data: bytes, verdict: Verdict, side: int) -> tuple[bytes, int, int, int] | None:
    """The photo as an upright JPEG whose shorter side has `side` pixels; None where it does not decode.

    Nothing is enlarged: a JPEG no larger than asked keeps its bytes. A JPEG is decoded at 1/2, 1/4 or 1/8 by its
    inverse DCT where that leaves at least 1.15 `side`, which averages already; the rest of the way is linear if it is
    short, else each pixel is a mean of those it stands for. What that costs against a full decode and means over
    areas, in dB by size: `benchmarks/results/resize.json`.

    Args:
        verdict: what `check_photo` said of the same bytes.

    Returns:
        JPEG bytes (quality 95), width, height, dhash.
    """
    shorter, longer = sorted((verdict.width, verdict.height))
    times, flag = next((t, f) for t, f in _REDUCED if t == 1 or shorter >= 1.15 * t * side)
    photo = _decode(data, flag)
    if photo is None:
        return None
    height, width = photo.shape[:2]
    shrink = side / min(height, width)
    if shrink < 1:
        long = round(longer * side / shorter)  # of the photo's own sides: a reduced decode has rounded them
        width, height = (long, side) if width >= height else (side, long)
        averaged = times > 1 and shrink > 1 / 1.75
        photo = cv2.resize(photo, (width, height)) if averaged else _shrink(photo, width, height)
    elif shorter <= side and image_kind(data) == "JPEG":
        return data, width, height, _hash(photo)
    jpeg = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return jpeg, width, height, _hash(photo)


def _shrink(photo: np.ndarray, width: int, height: int) -> np.ndarray:
    """[H,W,3] uint8 -> [height,width,3], each pixel a triangle-weighted mean of those it stands for.

    torch's kernel does this in half the time of OpenCV's means over areas, and no part of the picture goes unseen.
    """
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).contiguous().numpy()


def dhash(grey: np.ndarray) -> int:
    """Difference hash of a grey photo [H,W] uint8: 9x8 pixels, bit i (row-major) set where the right one is brighter.

    Source: the reference's deduplication, animals3d prepare_data/download_images.py (9x8, adjacent pixels); but the
    pixels are means over areas, so that a photo and its shrunken copy agree.
    """
    height, width = grey.shape
    # As products of matrices: what cv2.resize(..., INTER_AREA) gives, in a ninth of its time.
    small = np.rint(_shares(height, 8) @ grey.astype(np.float32) @ _shares(width, 9).T)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


@lru_cache(maxsize=64)
def _shares(pixels: int, cells: int) -> np.ndarray:
    """[cells,pixels] float32: what each of `pixels` counts in the mean of each of `cells` of the same length."""
    ends = np.arange(pixels + 1) * (cells / pixels)
    cell = np.arange(cells)[:, None]
    overlap = np.minimum(ends[1:], cell + 1) - np.maximum(ends[:-1], cell)
    return np.clip(overlap, 0, None).astype(np.float32)


def _hash(photo: np.ndarray) -> int:
    return dhash(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY))


def _decode(data: bytes, flag: int) -> np.ndarray | None:
    """BGR [H,W,3] uint8, upright."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # sizes that the decoder itself refuses
        return None
