"""Is a body a whole, sane photo? Told from its bytes before any decoder sees it, then by decoding it once."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Verdict:
    """What the bytes are.

    Attributes:
        status: `ok, truncated, not_image, bomb`.
        error: why, where the status is not ok.
        width, height: pixels; of the upright photo when ok, as the header says otherwise; 0 unknown.
        dhash: 64-bit difference hash; None unless ok.
    """

    status: str
    error: str = ""
    width: int = 0
    height: int = 0
    dhash: int | None = None


def check_photo(data: bytes, max_pixels: int) -> Verdict:
    """Check magic, header size and end marker, then decode in grey for the hash.

    Args:
        data: the whole body.
        max_pixels: an area above this is a `bomb` and is not decoded.
    """
    kind = image_kind(data)
    if kind is None:
        return Verdict("not_image", f"{len(data)} bytes that start with {data[:8]!r} are no JPEG, PNG, WebP or GIF")
    try:
        width, height, complete = _HEADERS[kind](data)
    except (struct.error, IndexError):
        return Verdict("truncated", f"{kind} ends within its header")
    if not complete:
        return Verdict("truncated", f"{kind} without its end marker", width, height)
    if not width or not height:
        return Verdict("not_image", f"{kind} of {width} x {height} pixels")
    if width * height > max_pixels:
        return Verdict("bomb", f"{width} x {height} pixels are more than max_pixels={max_pixels}", width, height)
    try:
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        return Verdict("not_image", f"{kind} does not decode: {str(error).strip()[:200]}", width, height)
    if grey is None or not grey.size:
        return Verdict("not_image", f"{kind} does not decode", width, height)
    return Verdict("ok", "", grey.shape[1], grey.shape[0], dhash(grey))


def dhash(grey: np.ndarray) -> int:
    """Difference hash of a grey image [H,W] uint8: 9x8 pixels, bit i (row-major) set where the right pixel is brighter.

    Source: the reference's deduplication, animals3d prepare_data/download_images.py (9x8, adjacent pixels).
    """
    small = cv2.resize(grey, (9, 8))
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


def image_kind(data: bytes) -> str | None:
    """`JPEG, PNG, GIF, WebP` by the magic bytes, or None."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return None


def _jpeg(data: bytes) -> tuple[int, int, bool]:
    """Width, height, whether the end is there. Segments are walked up to the scan, so that the end marker of an
    embedded thumbnail does not count."""
    width = height = 0
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if data[at] != 0xFF:
            return width, height, False  # not a marker where one must be: the header is cut or overwritten
        marker = data[at + 1]
        if marker == 0xD9:
            return width, height, False
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
        if marker == 0xDA:
            return width, height, data.find(b"\xff\xd9", at + 2 + length) >= 0
        at += 2 + max(length, 2)


def _png(data: bytes) -> tuple[int, int, bool]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height, data.rfind(b"IEND\xae\x42\x60\x82") > 0


def _gif(data: bytes) -> tuple[int, int, bool]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height, data.rstrip(b"\0")[-1:] == b";"


def _webp(data: bytes) -> tuple[int, int, bool]:
    (size,) = struct.unpack_from("<I", data, 4)
    complete = size + 8 <= len(data)
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (v & 0x3FFF for v in struct.unpack_from("<HH", data, 26))
    return width, height, complete


_HEADERS = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "WebP": _webp}
