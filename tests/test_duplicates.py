"""Duplicates: by bytes, and by difference hashes against the plain rule that defines them."""

from __future__ import annotations

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import duplicates
from pipelines.duplicates import find_exact, find_near
from pipelines.near_pairs import near_pairs
from pipelines.photo_checks import check_photo
from pipelines.photo_resize import dhash, resize


def plain(ids: list[str], bits: list[int], radius: int) -> dict[str, str]:
    """The definition: photos in order of their id, each to the nearest keeper (of equals, the smallest id) or kept."""
    keepers: list[tuple[str, int]] = []
    keeper_of = {}
    for photo, own in sorted(zip(ids, bits, strict=True)):
        close = [(d, k) for k, b in keepers if (d := (own ^ b).bit_count()) <= radius]
        if not own or not radius:
            continue
        if close:
            keeper_of[photo] = min(close)[1]
        else:
            keepers.append((photo, own))
    return keeper_of


def near(ids: list[str], bits: list[int], radius: int) -> dict[str, str]:
    half = len(ids) // 2  # chunked, as datasets are read
    columns = (pa.chunked_array([c[:half], c[half:]], t) for c, t in ((ids, pa.string()), (bits, pa.uint64())))
    return find_near(*columns, radius)


def copies(rng: np.random.Generator, originals: int, count: int, most: int) -> list[int]:
    """Random hashes, and copies of them up to `most` bits away; some hashes are there many times."""
    bits = [int(b) for b in rng.integers(0, 2**64, originals, np.uint64)]
    for _ in range(count):
        flips = rng.choice(64, int(rng.integers(0, most + 1)), replace=False)
        bits.append(bits[int(rng.integers(len(bits)))] ^ sum(1 << int(f) for f in flips))
    return bits


@pytest.mark.parametrize("radius", [0, 1, 4, 10, 40, 63])
@pytest.mark.parametrize("most_pairs", [1 << 22, 20])
def test_same_as_the_definition(radius: int, most_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", most_pairs)
    rng = np.random.default_rng(radius)
    bits = [*copies(rng, 40, 400, 5), 0, 0, 2**64 - 1, 1]
    ids = [f"yfcc:{i}" for i in rng.permutation(len(bits))]
    assert near(ids, bits, radius) == plain(ids, bits, radius)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), max_size=40), st.integers(1, 63))
def test_any_hashes(bits: list[int], radius: int) -> None:
    ids = [f"{(i * 7919) % 1000:03d}" for i in range(len(bits))]
    assert near(ids, bits, radius) == plain(ids, bits, radius)


def test_a_later_keeper_may_be_nearer() -> None:
    # b and d have one hash, 3 bits from a; c is 1 bit from that hash and 4 from a: with radius 3 it is a keeper, and
    # nearer to d, which comes after it, than a is; b came before it.
    a, b, c = 0xFF00, 0xFF07, 0xFF0F
    assert near(["a", "b", "c", "d"], [a, b, c, b], 3) == {"b": "a", "d": "c"}


def test_pictures_without_gradient_or_hash_have_no_near_duplicates() -> None:
    assert near(["a", "b", "c", "d"], [0, 0, None, None], 4) == {}  # type: ignore[list-item]
    assert near([], [], 4) == {}


def test_every_near_pair_once() -> None:
    rng = np.random.default_rng(1)
    hashes = np.unique(np.array(copies(rng, 30, 600, 6), np.uint64))
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    for radius in (1, 4, 8):
        pairs = np.concatenate(list(near_pairs(hashes, radius)), 1)
        found = sorted(tuple(sorted(p)) for p in pairs.T.tolist())
        wanted = np.argwhere(np.triu(distance <= radius, 1))
        assert found == sorted((int(hashes[i]), int(hashes[j])) for i, j in wanted)


def test_exact_duplicates_go_to_the_smallest_id() -> None:
    ids = pa.chunked_array([["d", "a", "c"], [], ["b", "e", "f"]], pa.string())
    sha = pa.chunked_array([["1", "1", "3"], [], ["4", "1", "3"]], pa.string())
    assert find_exact(ids, sha) == {"d": "a", "e": "a", "f": "c"}
    assert find_exact(ids.slice(2, 2), sha.slice(2, 2)) == {}
    long = pa.chunked_array([[f"{'e' * 62}{s:>02}" for s in sha.to_pylist()]])  # alike up to the last two
    assert find_exact(ids, long) == {"d": "a", "e": "a", "f": "c"}
    assert find_exact(ids.slice(1, 4), long.slice(1, 4)) == {"e": "a"}
    assert find_exact(ids.slice(6), sha.slice(6)) == {}


def picture(seed: int) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(rough, (800, 600), interpolation=cv2.INTER_CUBIC)


def grey(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def test_dhash_bits() -> None:
    photo = np.zeros((8, 9), np.uint8)
    photo[0] = [0, 1, 1, 2, 2, 2, 1, 0, 5]
    assert dhash(photo) == 0b10000101
    photo[7, 8] = 1
    assert dhash(photo) == 0b10000101 | 1 << 63


def test_dhash_compares_the_means_over_areas_that_opencv_gives() -> None:
    for shape in ((256, 341), (480, 641), (9, 5), (3, 200)):
        noise = np.random.default_rng(shape).integers(0, 256, shape).astype(np.uint8)
        for grey in (noise, cv2.GaussianBlur(noise, (0, 0), 7), np.full(shape, 128, np.uint8)):
            if min(shape) >= 9:  # below, OpenCV interpolates instead
                small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
                bits = (small[:, 1:] > small[:, :-1]).ravel()
                assert dhash(grey) == sum(1 << i for i, bit in enumerate(bits) if bit)
        assert dhash(np.full(shape, 128, np.uint8)) == 0


def test_a_photo_recompressed_or_shrunk_is_near() -> None:
    image = picture(3)
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 20, image.shape), 0, 255).astype(np.uint8)
    original, coarse = (
        cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, q])[1].tobytes() for q in (95, 40)
    )  # fmt: skip
    small = resize(original, check_photo(original, 10**7), 150)
    assert small is not None
    hashes = [dhash(grey(original)), dhash(grey(coarse)), dhash(grey(small[0])), small[3]]
    assert max((h ^ hashes[0]).bit_count() for h in hashes) <= 4
    assert (hashes[0] ^ dhash(cv2.cvtColor(picture(4), cv2.COLOR_BGR2GRAY))).bit_count() > 10
