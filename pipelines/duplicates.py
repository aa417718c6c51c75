"""Duplicate photos: the same bytes, or difference hashes within a Hamming radius. Exact, and the same every time.

Both searches name the keeper of each removed photo. Photos are columns here, so that tens of millions fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.near_pairs import near_pairs

_MOST_PAIRS = 1 << 22  # near pairs held at once
_SLAB = 1 << 17  # strings worked on at once


def find_exact(ids: pa.ChunkedArray, sha256: pa.ChunkedArray) -> dict[str, str]:
    """Removed photo -> its keeper: of photos with the same bytes the smallest id stays.

    Args:
        ids: photo ids, string [N].
        sha256: of their bytes, string [N].
    """
    photos = pa.table({"photo": ids, "sha256": sha256})
    photos = photos.filter(pa.array(_repeated(photos["sha256"])))  # few are left, and only these are grouped
    groups = photos.group_by("sha256").aggregate([("photo", "min")])
    keepers = groups["photo_min"].take(pc.index_in(photos["sha256"], groups["sha256"]))
    gone = pc.not_equal(photos["photo"], keepers)
    return _as_dict(photos["photo"].filter(gone), keepers.filter(gone))


def find_near(ids: pa.ChunkedArray, dhash: pa.ChunkedArray, radius: int) -> dict[str, str]:
    """Removed photo -> its keeper: photos whose difference hashes differ in at most `radius` bits are one.

    Photos are taken in order of their id. One within `radius` of a keeper goes to the nearest such keeper (of equals,
    the smallest id); every other photo is a keeper. So each removed photo is within `radius` of its keeper: clusters
    do not creep.

    Args:
        ids: photo ids, string [N], no two the same.
        dhash: uint64 [N]. All zeros or null is a picture without any gradient, which says nothing about what it shows:
            it has no duplicates.
        radius: 0 .. 63; 0 finds nothing.
    """
    order = pc.sort_indices(ids)
    bits = dhash.take(order).fill_null(0).to_numpy()
    keeper = _nearest_keepers(bits, radius)
    gone = np.flatnonzero(keeper >= 0)
    return _as_dict(*(ids.take(order.take(pa.array(rows))) for rows in (gone, keeper[gone])))


def _repeated(sha256: pa.ChunkedArray) -> np.ndarray:
    """Which of these strings may be there twice, bool [N]: by 64 bits of them, so hardly one too many."""
    keys, at = np.empty(len(sha256), np.uint64), 0
    for chunk in sha256.chunks:
        for start in range(0, len(chunk), _SLAB):
            text = pc.ascii_rpad(chunk.slice(start, _SLAB), 16)
            head = pc.binary_slice(text.cast(pa.binary()), 0, 16).cast(pa.binary(16))
            words = np.frombuffer(head.buffers()[1], np.uint64).reshape(-1, 2)
            keys[at : at + len(words)] = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) + words[:, 1]
            at += len(words)
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return np.zeros(len(keys), bool)
    return twice[np.minimum(np.searchsorted(twice, keys), len(twice) - 1)] == keys


def _as_dict(photos: pa.ChunkedArray, keepers: pa.ChunkedArray) -> dict[str, str]:
    return dict(zip(photos.to_pylist(), keepers.to_pylist(), strict=True))


def _nearest_keepers(bits: np.ndarray, radius: int) -> np.ndarray:
    """The keeper of each photo, int64 [N]; -1 for the keepers themselves. Photos in order of their ids, uint64 [N]."""
    keeper = np.full(len(bits), -1)
    seen = np.flatnonzero(bits)
    if not radius or not len(seen):
        return keeper
    # Photos of one hash share its fate, but for the first of a hash that stays, and for keepers between them.
    hashes, first, hash_of = np.unique(bits[seen], return_index=True, return_inverse=True)
    kept, pairs = _keep_first(hashes, first, radius)
    found = np.where(kept[hash_of], first[hash_of], -1)

    # Of each removed hash the kept ones within reach, in the order of their first photos; the nearest up to there.
    count = len(seen)
    gone, near = _links(kept, _all_pairs(hashes, radius) if pairs is None else [pairs])
    rank = gone * count + first[near]
    order = np.argsort(rank)
    rank, gone, near = rank[order], gone[order], near[order]
    nearer = np.minimum.accumulate(np.bitwise_count(hashes[gone] ^ hashes[near]) - 64 * gone)
    news = np.flatnonzero(np.diff(nearer, prepend=64) < 0)
    lost = np.flatnonzero(found < 0)
    latest = np.searchsorted(rank, hash_of[lost] * count + lost) - 1
    found[lost] = first[near[news[np.searchsorted(news, latest, "right") - 1]]]

    removed = found != np.arange(count)
    keeper[seen[removed]] = seen[found[removed]]
    return keeper


def _keep_first(hashes: np.ndarray, first: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Take each hash in turn unless it lies within `radius` of one that is taken.

    Args:
        hashes: uint64 [U], sorted.
        first: int64 [U], their turns.

    Returns:
        Which stay, bool [U]; and where all near pairs stand, int64 [2,P], or None if they are too many to hold.
    """
    kept = bytearray(len(hashes))
    turns = np.argsort(first)
    at, size = 0, len(hashes)
    while at < len(hashes):
        group = turns[at : at + size]
        before = np.flatnonzero(np.frombuffer(kept, bool))
        pairs = _pairs(hashes, np.concatenate([before, group]), radius, _MOST_PAIRS if size > 1 else len(hashes))
        if pairs is None:  # a crowd of like hashes: when fewer are taken at once, the first keepers thin it out
            size //= 2
            continue
        np.frombuffer(kept, bool)[group] = True
        early, late = np.where(first[pairs[0]] < first[pairs[1]], pairs, pairs[::-1])
        order = np.argsort(first[late])
        for one, other in zip(early[order].tolist(), late[order].tolist(), strict=True):
            if kept[one]:
                kept[other] = 0
        at, size = at + size, size * 2
    return np.frombuffer(kept, bool), pairs if len(group) == len(hashes) else None


def _links(kept: np.ndarray, pairs: Iterable[np.ndarray]) -> np.ndarray:
    """The pairs of a hash that did not stay and one that did, in this order: int64 [2,L]."""
    found = [np.empty((2, 0), np.int64)]
    for pair in pairs:
        stays = kept[pair]
        found.append(np.where(stays[0], pair[::-1], pair)[:, stays[0] != stays[1]])
    return np.concatenate(found, 1)


def _all_pairs(hashes: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """Where near pairs stand among the hashes, int64 [2,P] at a time."""
    return (np.searchsorted(hashes, pair) for pair in near_pairs(hashes, radius))


def _pairs(hashes: np.ndarray, present: np.ndarray, radius: int, most: int) -> np.ndarray | None:
    """Where near pairs of the hashes at `present` stand, int64 [2,P]; None if there are more than `most`."""
    found = [np.empty((2, 0), np.int64)]
    count = 0
    for pair in near_pairs(hashes[present], radius):
        count += pair.shape[1]
        if count > most:
            return None
        found.append(np.searchsorted(hashes, pair))
    return np.concatenate(found, 1)
