"""Pairs of 64-bit hashes that differ in few bits, among tens of millions, without comparing all with all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb

import numpy as np

_SLAB = 1 << 17  # hashes worked on at once: their columns stay in the processor's cache
_SORT_NS, _COMPARE_NS = 60, 10  # a hash, a candidate pair: only choose between ways to the same result

Moves = Sequence[tuple[int, int, int]]  # of a block of bits: where it starts, where it goes, the mask of its width


def near_pairs(hashes: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """Blocks of pairs, uint64 [2,P], that differ in at most `radius` bits; each unordered pair exactly once.

    Cut into `radius + k` blocks of bits, two such hashes agree in at least k blocks. For every choice of k blocks the
    hashes are sorted with these blocks in front, so that only neighbours are compared (Manku, Jain, Das Sarma,
    Detecting Near-Duplicates for Web Crawling, WWW 2007, section 3).

    Args:
        hashes: uint64 [N], no two the same.
        radius: 1 .. 63.
    """
    blocks, agree = _plan(len(hashes), radius)
    edges = [64 * i // blocks for i in range(blocks + 1)]
    for chosen in combinations(range(blocks), agree):
        moves, back, free = _front(edges, chosen)
        moved = _move(hashes, moves)
        moved.sort()
        # A pair that agrees in more blocks is met under several choices: it counts under its first agreeing blocks.
        skipped = [
            np.uint64((1 << edges[b + 1]) - (1 << edges[b])) for b in range(max(chosen, default=0)) if b not in chosen
        ]
        for found in _neighbours(moved, free, radius):
            pairs = _move(found, back)
            for block in skipped:
                pairs = pairs[:, (pairs[0] ^ pairs[1]) & block != 0]
            yield pairs


def _plan(count: int, radius: int) -> tuple[int, int]:
    """The number of blocks, and in how many a pair must agree, that cost least where hashes are spread evenly."""

    def cost(agree: int) -> float:
        same_key = count / 2 ** (64 * agree / (radius + agree))
        return comb(radius + agree, agree) * (_SORT_NS + _COMPARE_NS * same_key / 2)

    agree = min(range(min(4, 64 - radius) + 1), key=cost)  # none: all are compared with all
    return radius + agree, agree


def _front(edges: Sequence[int], chosen: Sequence[int]) -> tuple[Moves, Moves, int]:
    """The moves that bring the chosen blocks to the highest bits, the moves back, and how many bits are left below."""
    top, moves = 64, []
    for block in (*chosen, *(b for b in range(len(edges) - 1) if b not in chosen)):
        low, width = edges[block], edges[block + 1] - edges[block]
        top -= width
        moves.append((low, top, (1 << width) - 1))
    free = min((to for _, to, _ in moves[: len(chosen)]), default=64)
    return moves, [(to, low, mask) for low, to, mask in moves], free


def _move(values: np.ndarray, moves: Moves) -> np.ndarray:
    out = np.zeros_like(values)
    for start in range(0, values.shape[-1], _SLAB):
        slab = np.s_[..., start : start + _SLAB]
        for low, to, mask in moves:
            out[slab] |= (values[slab] >> np.uint64(low) & np.uint64(mask)) << np.uint64(to)
    return out


def _neighbours(moved: np.ndarray, free: int, radius: int) -> Iterator[np.ndarray]:
    """Pairs within `radius`, uint64 [2,P], of the sorted hashes that agree in all but the `free` lowest bits."""
    for start in range(0, len(moved), _SLAB):
        at = np.arange(start, min(start + _SLAB, len(moved) - 1))
        found: list[np.ndarray] = []
        step, count = 1, 0
        while len(at):  # what is alike so far with the one `step` further on
            difference = moved[at] ^ moved[at + step]
            alike = difference >> np.uint64(free) == 0
            at, difference = at[alike], difference[alike]
            near = at[np.bitwise_count(difference) <= radius]
            found.append(moved[[near, near + step]])
            step, count = step + 1, count + len(near)
            at = at[at < len(moved) - step]
            if count > _SLAB or (count and not len(at)):
                yield np.concatenate(found, 1)
                found, count = [], 0
