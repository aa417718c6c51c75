"""Photos told from other bytes, and duplicates from different photos."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.duplicates import find_duplicates
from pipelines.photo_checks import check_photo, dhash, image_kind


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
    assert 0 < found.dhash < 2**64
    cut = check_photo(data[: len(data) * 2 // 3], 10**6)
    assert cut.status == "truncated"
    assert (cut.width, cut.height, cut.dhash) == (80, 60, None)
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
def test_bombs_are_not_decoded(kind, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    assert check_photo(encoded(kind), 80 * 60 - 1).status == "bomb"


@pytest.mark.parametrize("data", [b"", b"<html>gone</html>", b"\xff\xd8", b"RIFF\0\0\0\0WAVE"])
def test_other_bytes_are_no_image(data):
    assert image_kind(data) is None
    assert check_photo(data, 10**6).status == "not_image"


def test_broken_content_is_no_image():
    png = bytearray(encoded("png"))
    png[41:60] = bytes(19)  # the pixels' stream
    assert check_photo(bytes(png), 10**6).status == "not_image"


def test_size_is_of_the_upright_photo():
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(picture()).save(out, "jpeg", exif=exif)
    found = check_photo(out.getvalue(), 10**6)
    assert (found.width, found.height) == (60, 80)


def test_dhash_bits():
    grey = np.zeros((8, 9), np.uint8)
    grey[0] = [0, 1, 1, 2, 2, 2, 1, 0, 5]
    assert dhash(grey) == 0b10000101
    grey[7, 8] = 1
    assert dhash(grey) == 0b10000101 | 1 << 63


def test_random_bytes_never_raise():
    rng = np.random.default_rng(0)
    for kind in ("jpg", "png", "webp", "gif"):
        data = np.frombuffer(encoded(kind), np.uint8)
        for _ in range(50):
            dirty = data.copy()
            dirty[rng.integers(8, min(len(dirty), 200), 5)] = rng.integers(0, 255, 5)
            assert check_photo(dirty.tobytes(), 10**6).status in ("ok", "truncated", "not_image", "bomb")


def test_duplicates_by_bytes_and_by_hash():
    ids = ["d", "a", "c", "b", "e", "f"]
    sha = ["1", "1", "3", "4", "5", "6"]
    bits = [0xFF00, 0xFF00, 0xFF0F, 0xFF01, 0xFF1F, 1 << 60]
    # b is 1 bit from a, c is 4 bits from a, e is 5 bits from a and becomes a keeper; d has a's bytes.
    assert find_duplicates(ids, sha, bits, 4) == {"b": "a", "c": "a", "d": "a"}
    assert find_duplicates(ids, sha, bits, 0) == {"d": "a"}
    order = [3, 5, 0, 4, 2, 1]
    shuffled = ([ids[i] for i in order], [sha[i] for i in order], [bits[i] for i in order])
    assert find_duplicates(*shuffled, 4) == {"b": "a", "c": "a", "d": "a"}


def test_pictures_without_gradient_are_compared_by_bytes():
    assert find_duplicates(["a", "b", "c"], ["1", "2", "1"], [0, 0, 0], 4) == {"c": "a"}


def test_bands_find_what_all_pairs_find():
    rng = np.random.default_rng(1)
    bits = [int(b) for b in rng.integers(0, 2**63, 40)]
    for at in range(300):  # near copies, up to 6 bits away
        flips = rng.choice(64, int(rng.integers(0, 7)), replace=False)
        bits.append(bits[at % 40] ^ sum(1 << int(f) for f in flips))
    ids = [f"{i:04d}" for i in range(len(bits))]
    for radius in (1, 4, 10):
        keepers, slow = [], {}
        for i, b in zip(ids, bits, strict=True):
            close = [(d, k) for k, kb in keepers if (d := (b ^ kb).bit_count()) <= radius]
            if close:
                slow[i] = min(close)[1]
            else:
                keepers.append((i, b))
        assert find_duplicates(ids, ids, bits, radius) == slow


def test_a_photo_recompressed_is_near():
    image = picture(3, 300, 400)
    hashes = []
    for quality in (95, 60):
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        hashes.append(check_photo(data, 10**7).dhash)
    assert (hashes[0] ^ hashes[1]).bit_count() <= 4
    assert (hashes[0] ^ check_photo(encoded("jpg", 4), 10**7).dhash).bit_count() > 10
