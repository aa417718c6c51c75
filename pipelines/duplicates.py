"""Duplicate photos: the same bytes, or difference hashes within a Hamming radius. Exact, and the same every time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise


def find_duplicates(ids: Sequence[str], sha256: Sequence[str], dhash: Sequence[int], radius: int) -> dict[str, str]:
    """Removed photo -> its keeper, for N photos.

    Photos are taken in order of their id. One whose bytes are those of an earlier photo goes to that photo's keeper;
    one whose hash is within `radius` bits of a keeper goes to the nearest such keeper (of equals, the smallest id);
    every other photo is a keeper. So each removed photo is within `radius` of its keeper: clusters do not creep.

    Args:
        radius: 0 compares bytes only. A hash of all zeros is a picture without any gradient, which says nothing about
            what it shows: it is compared by bytes only.
    """
    keeper_of: dict[str, str] = {}
    by_bytes: dict[str, str] = {}
    # Two hashes that differ in r bits agree in at least one of r + 1 bands: only such pairs are compared.
    bands = _bands(radius + 1)
    buckets: list[dict[int, list[tuple[str, int]]]] = [defaultdict(list) for _ in bands]
    for photo, sha, bits in sorted(zip(ids, sha256, dhash, strict=True)):
        keeper = by_bytes.get(sha)
        if keeper is None and radius and bits:
            close = {
                (distance, kept)
                for (shift, mask), bucket in zip(bands, buckets, strict=True)
                for kept, theirs in bucket.get(bits >> shift & mask, ())
                if (distance := (bits ^ theirs).bit_count()) <= radius
            }
            keeper = min(close)[1] if close else None
        by_bytes.setdefault(sha, keeper or photo)
        if keeper:
            keeper_of[photo] = keeper
            continue
        if radius and bits:
            for (shift, mask), bucket in zip(bands, buckets, strict=True):
                bucket[bits >> shift & mask].append((photo, bits))
    return keeper_of


def _bands(count: int) -> list[tuple[int, int]]:
    """(shift, mask) of `count` consecutive bands that cover 64 bits."""
    edges = [64 * i // count for i in range(count + 1)]
    return [(lo, (1 << hi - lo) - 1) for lo, hi in pairwise(edges)]
