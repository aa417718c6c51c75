"""Any bytes in, a verdict out: mutated photos never raise, and what is called ok has the size its decoder gives it."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.photo import decode_photo
from pipelines.photo_checks import Verdict, check_photo, quick_check
from pipelines.photo_resize import resize

KINDS = ("jpg", "png", "gif", "webp")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x10\0\0\0WEBP")
STATUSES = {"ok", "truncated", "not_image", "bomb"}


@functools.cache
def real(kind: str) -> bytes:
    """A photo of this kind with an EXIF block where ours reads one."""
    rough = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    data = cv2.imencode(f".{kind}", cv2.resize(rough, (80, 60), interpolation=cv2.INTER_CUBIC))[1].tobytes()
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    if kind == "jpg":
        return data[:2] + b"\xff\xe1" + (len(exif) + 8).to_bytes(2, "big") + b"Exif\0\0" + exif + data[2:]
    if kind == "png":
        chunk = b"eXIf" + exif
        return data[:33] + len(exif).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]
    return data


@st.composite
def mutated(draw: Any) -> bytes:
    """A real photo with bytes overwritten, cut out, put in, and its end cut off."""
    data = bytearray(real(draw(st.sampled_from(KINDS))))
    for _ in range(draw(st.integers(0, 6))):
        # The header is where a walk goes astray, so half of the changes are made there.
        at = draw(st.integers(0, 120) | st.integers(0, len(data)))
        new = draw(st.binary(max_size=8) | st.sampled_from([b"\xff", b"\xff\xda", b"\xff\xd9", b"\0" * 4, b"\xff" * 4]))
        data[at : at + draw(st.sampled_from([len(new), 0, 3]))] = new
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


def sane(data: bytes, verdict: Verdict) -> None:
    assert verdict.status in STATUSES
    assert (verdict.status == "ok") == (verdict.error == "")
    assert len(verdict.error) < 200
    assert min(verdict.width, verdict.height) >= 0
    if verdict.status == "ok":
        assert 0 < verdict.width * verdict.height <= 10**6
        assert max(verdict.width, verdict.height) <= 50 * min(verdict.width, verdict.height)
    assert quick_check(data).status == "ok" or verdict.status == "not_image"


@settings(max_examples=500)
@given(mutated() | st.binary(max_size=200) | st.builds(lambda m, b: m + b, st.sampled_from(MAGIC), st.binary()))
def test_any_bytes_give_a_verdict(data: bytes) -> None:
    sane(data, check_photo(data, 10**6))


@settings(max_examples=200)
@given(mutated())
def test_any_photo_called_ok_is_resized_or_refused(data: bytes) -> None:
    verdict = check_photo(data, 10**6)
    if verdict.status != "ok":
        return
    small = resize(data, verdict, 20)
    if small is not None:
        jpeg, width, height, bits = small
        assert 0 <= bits < 2**64
        photo = decode_photo(jpeg)
        assert photo is not None
        assert photo.shape[:2] == (height, width)


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_of_a_photo_is_truncated(kind: str) -> None:
    data = real(kind)
    assert check_photo(data, 10**6).status == "ok"
    for length in range(12, len(data)):
        assert check_photo(data[:length], 10**6).status == "truncated"


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.sampled_from(KINDS))
@settings(max_examples=100)
def test_size_after_resizing(width: int, height: int, side: int, kind: str) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    data = cv2.imencode(f".{kind}", photo)[1].tobytes()
    small = resize(data, check_photo(data, 10**6, 300), side)
    assert small is not None
    shorter = min(width, height)
    assert min(small[1:3]) == min(side, shorter)
    if shorter <= side:
        assert small[1:3] == (width, height)
        assert (small[0] == data) == (kind == "jpg")
    else:
        longer = max(width, height) * side / shorter
        assert max(small[1:3]) == pytest.approx(longer, abs=0.5)
        if longer - side >= 1.5:
            assert (small[1] > small[2]) == (width > height)


@pytest.mark.parametrize(("side", "least"), [(300, 32), (200, 32), (100, 28), (40, 26)])
def test_a_reduced_decode_is_close_to_the_whole(side: int, least: float) -> None:
    rough = np.random.default_rng(1).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    image = cv2.resize(rough, (800, 600), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    small = resize(data, check_photo(data, 10**6), side)
    assert small is not None
    whole = cv2.resize(decode_photo(data), small[1:3], interpolation=cv2.INTER_AREA)  # type: ignore[call-overload]
    jpeg = cv2.imencode(".jpg", whole[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    assert cv2.PSNR(decode_photo(small[0]), decode_photo(jpeg)) > least  # type: ignore[arg-type]
