"""Is a body a whole, sane photo? Told from its bytes alone, in microseconds: nothing is decoded here."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_MOST_STEPS = 4096  # segments or chunks walked; a header with more is made to keep its reader busy
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_U16 = struct.Struct(">H").unpack_from
_U16_PAIR = struct.Struct(">HH").unpack_from


@dataclass(frozen=True)
class Verdict:
    """What the bytes are.

    Attributes:
        status: `ok, truncated, not_image, bomb`.
        error: why, where the status is not ok.
        width, height: pixels of the upright photo, as the header says; 0 unknown.
    """

    status: str
    error: str = ""
    width: int = 0
    height: int = 0


def check_photo(data: bytes, max_pixels: int, max_ratio: float = 50.0) -> Verdict:
    """Check magic, header, area, ratio of the sides and end marker. Never raises, whatever the bytes.

    That the pixels in between decode is for the stage to say that decodes them.

    Args:
        data: the whole body.
        max_pixels: a larger area is a `bomb`: a few bytes that a decoder would blow up.
        max_ratio: and so is a longer side of more than so many shorter ones.
    """
    kind = image_kind(data)
    if kind is None:
        return _no_image(data)
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
    if max(width, height) > max_ratio * min(width, height):
        return Verdict("bomb", f"{width} x {height} pixels are longer than max_ratio={max_ratio}", width, height)
    return Verdict("ok", "", width, height)


def quick_check(data: bytes) -> Verdict:
    """Check the magic bytes alone: `ok` of unknown size, or `not_image`."""
    return Verdict("ok") if image_kind(data) else _no_image(data)


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


def _no_image(data: bytes) -> Verdict:
    return Verdict("not_image", f"{len(data)} bytes that start with {data[:8]!r} are no JPEG, PNG, WebP or GIF")


def _jpeg(data: bytes) -> tuple[int, int, bool]:
    """Width, height, whether the end is there. Segments are walked up to the scan, so that the end marker of an
    embedded thumbnail does not count."""
    width = height = 0
    turned = False
    at = 2
    for _ in range(_MOST_STEPS):
        if data[at] != 0xFF:
            break  # not a marker where one must be: the header is cut or overwritten
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xD9:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
            continue
        (length,) = _U16(data, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = _U16_PAIR(data, at + 5)
        elif marker == 0xE1 and data.startswith(_EXIF, at + 4):
            turned = _is_turned(data[at + 10 : at + 2 + length])
        elif marker == 0xDA:
            return *_upright(width, height, turned), data.rfind(b"\xff\xd9", at + 2 + length) >= 0
        at += 2 + max(length, 2)
    return *_upright(width, height, turned), False


def _png(data: bytes) -> tuple[int, int, bool]:
    width, height = struct.unpack_from(">II", data, 16)
    turned = False
    at = 8
    for _ in range(_MOST_STEPS):
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        if kind == b"eXIf":
            turned = _is_turned(data[at + 8 : at + 8 + length])
        if kind in (b"IDAT", b"eXIf", b"IEND"):
            break
        at += 12 + length
    return *_upright(width, height, turned), data.rfind(b"IEND\xae\x42\x60\x82") > 0


def _gif(data: bytes) -> tuple[int, int, bool]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height, data.rstrip(b"\0").endswith(b"\0;")  # the trailer stands behind the end of a block


def _webp(data: bytes) -> tuple[int, int, bool]:
    (size,) = struct.unpack_from("<I", data, 4)
    complete = size + 8 <= len(data)
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        if data[20] & 8:  # the flag of an EXIF chunk
            width, height = _upright(width, height, _webp_turned(data))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (v & 0x3FFF for v in struct.unpack_from("<HH", data, 26))
    return width, height, complete


def _webp_turned(data: bytes) -> bool:
    at = 12
    for _ in range(_MOST_STEPS):
        if at + 8 > len(data):
            break
        (length,) = struct.unpack_from("<I", data, at + 4)
        if data.startswith(b"EXIF", at):
            return _is_turned(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return False


_HEADERS = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "WebP": _webp}


def _upright(width: int, height: int, turned: bool) -> tuple[int, int]:
    return (height, width) if turned else (width, height)


def _is_turned(tiff: bytes) -> bool:
    """Whether the orientation of an EXIF block (5 to 8: TIFF 6.0, tag 274) swaps width and height."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return False
    entry = struct.Struct(f"{order}HHIH")  # tag, type, count, and the value of a short
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for offset in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _, value = entry.unpack_from(tiff, offset)
            if tag == _ORIENTATION:
                return 5 <= value <= 8
    except struct.error:
        pass  # a broken block turns nothing
    return False
