"""Photos told from other bytes without a decoder."""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from models.photo import decode_photo
from pipelines.photo_checks import check_photo, image_kind, quick_check


def picture(seed=0, height=60, width=80):
    rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(kind, seed=0, **size):
    return cv2.imencode(f".{kind}", picture(seed, **size))[1].tobytes()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif"])
def test_whole_photos_are_ok_and_cut_ones_truncated(kind):
    data = encoded(kind)
    found = check_photo(data, 10**6)
    assert (found.status, found.width, found.height) == ("ok", 80, 60)
    cut = check_photo(data[: len(data) * 2 // 3], 10**6)
    assert cut.status == "truncated"
    assert (cut.width, cut.height) == (80, 60)
    for length in range(40):  # within the header
        assert check_photo(data[:length], 10**6).status in ("truncated", "not_image")


def test_end_marker_of_a_thumbnail_does_not_count():
    data = encoded("jpg")
    thumbnail = b"\xff\xe1" + (2 + len(data[:500]) + 4).to_bytes(2, "big") + data[:500] + b"\xff\xd9\xff\xd9"
    whole = data[:2] + thumbnail + data[2:]
    assert check_photo(whole, 10**6).status == "ok"
    assert check_photo(whole[:-200], 10**6).status == "truncated"


def test_bytes_after_the_end_are_no_fault():
    assert check_photo(encoded("jpg") + b"\0\0camera notes", 10**6).status == "ok"


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif"])
def test_large_areas_and_long_strips_are_bombs(kind):
    data = encoded(kind)
    assert check_photo(data, 80 * 60).status == "ok"
    assert check_photo(data, 80 * 60 - 1).status == "bomb"
    assert check_photo(data, 10**6, max_ratio=1.3).status == "bomb"
    strip = check_photo(encoded(kind, height=10, width=501), 10**6)
    assert (strip.status, strip.width, strip.height) == ("bomb", 501, 10)
    assert "max_ratio=50" in strip.error
    assert check_photo(encoded(kind, height=500, width=10), 10**6).status == "ok"


@pytest.mark.parametrize("data", [b"", b"<html>gone</html>", b"\xff\xd8", b"RIFF\0\0\0\0WAVE"])
def test_other_bytes_are_no_image(data):
    assert image_kind(data) is None
    assert check_photo(data, 10**6).status == "not_image"


def exif(orientation, order="little"):
    """An EXIF block with an entry before the orientation."""
    entries = [(0x010F, 3, 1, 9), (0x0112, 3, 1, orientation)]
    head = b"II*\0" if order == "little" else b"MM\0*"
    out = head + (8).to_bytes(4, order) + len(entries).to_bytes(2, order)
    for tag, kind, count, value in entries:
        out += tag.to_bytes(2, order) + kind.to_bytes(2, order) + count.to_bytes(4, order) + value.to_bytes(2, order)
        out += b"\0\0"
    return out + bytes(4)


def with_exif(kind, block):
    data = encoded(kind)
    if kind == "jpg":
        segment = b"Exif\0\0" + block
        return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    chunk = b"eXIf" + block
    return data[:33] + len(block).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("orientation", range(10))
def test_size_is_of_the_photo_as_the_decoder_turns_it(kind, order, orientation):
    data = with_exif(kind, exif(orientation, order))
    found = check_photo(data, 10**6)
    assert found.status == "ok"
    assert (found.height, found.width) == decode_photo(data).shape[:2]
    assert (found.width == 60) == (5 <= orientation <= 8)


def test_size_of_photos_from_another_writer():
    for fmt in ("jpeg", "png", "webp"):
        out, block = io.BytesIO(), Image.Exif()
        block[0x0112] = 6
        Image.fromarray(picture()).save(out, fmt, exif=block)
        found = check_photo(out.getvalue(), 10**6)
        assert (found.height, found.width) == decode_photo(out.getvalue()).shape[:2] == (80, 60)


@pytest.mark.parametrize("block", [b"", b"II*\0", exif(6)[:20], b"II*\0" + b"\xff" * 40])
def test_broken_exif_turns_nothing(block):
    found = check_photo(with_exif("jpg", block), 10**6)
    assert (found.status, found.width, found.height) == ("ok", 80, 60)


def test_a_header_without_end_is_given_up():
    for filler in (b"\xff", b"\xff\xe0\0\2", b"\xff\x01"):
        assert check_photo(b"\xff\xd8\xff" + filler * 10**6, 10**6).status == "truncated"
    png = encoded("png")[:33] + bytes(12) * 10**6 + b"IEND\xae\x42\x60\x82"
    assert check_photo(png, 10**6).status == "ok"


def test_quick_check_looks_at_the_magic_alone():
    for kind in ("jpg", "png", "webp", "gif"):
        assert quick_check(encoded(kind)[:20]).status == "ok"
    assert quick_check(b"<html>").status == "not_image"


def test_random_bytes_never_raise():
    rng = np.random.default_rng(0)
    for kind in ("jpg", "png", "webp", "gif"):
        data = np.frombuffer(encoded(kind), np.uint8)
        for _ in range(50):
            dirty = data.copy()
            dirty[rng.integers(8, min(len(dirty), 200), 5)] = rng.integers(0, 255, 5)
            assert check_photo(dirty.tobytes(), 10**6).status in ("ok", "truncated", "not_image", "bomb")
