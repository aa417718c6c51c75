"""Repairs of an exported mesh: welding, useless faces, winding. Pure NumPy."""

from __future__ import annotations

from collections import deque

import numpy as np


def weld(vertices: np.ndarray, tolerance: float) -> np.ndarray:
    """[V] new index of each vertex [V, 3]; vertices closer than `tolerance` on every axis share one.

    New indices follow the order of first appearance. Each axis is cut where sorted coordinates leave a gap, so no
    two coincident vertices fall to different sides of a rounding boundary.
    """
    labels = np.empty(vertices.shape, np.int64)
    for axis in range(3):
        order = np.argsort(vertices[:, axis], kind="stable")
        labels[order, axis] = np.cumsum(np.diff(vertices[order, axis], prepend=-np.inf) > tolerance)
    _, first, inverse = np.unique(labels, axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.ravel()]


def mean_by(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means [G, ...] of the rows of `values` [V, ...] in each group 0..G-1."""
    total = np.zeros((int(groups.max()) + 1, *values.shape[1:]))
    np.add.at(total, groups, values)
    counts = np.bincount(groups).astype(np.float64)
    return total / counts.reshape(-1, *[1] * (values.ndim - 1))


def useful_faces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces [F', 3] that have an area and repeat no earlier face, in order."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    size = np.abs(np.ptp(vertices, axis=0)).max()
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    faces = faces[area > 1e-12 * size * size]
    _, first = np.unique(np.sort(faces, 1), axis=0, return_index=True)
    return faces[np.sort(first)]


def face_outward(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces [F, 3] wound alike within each connected piece, normals outward by the right-hand rule.

    A closed piece is turned so that its volume is positive. An open one has no inside: it keeps the direction that
    most of its area had.
    """
    neighbours, is_open = _neighbours(faces)
    flipped = np.full(len(faces), -1, np.int8)
    out = faces.copy()
    for start in range(len(faces)):
        if flipped[start] >= 0:
            continue
        flipped[start], piece, queue = 0, [start], deque([start])
        while queue:
            face = queue.popleft()
            for other, agrees in neighbours[face]:
                if flipped[other] < 0:
                    flipped[other] = flipped[face] if agrees else 1 - flipped[face]
                    piece.append(other)
                    queue.append(other)
        members = np.array(piece)
        turn = members[flipped[members] == 1]
        out[turn] = out[turn][:, ::-1]
        a, b, c = (vertices[out[members, i]] - vertices[out[members]].mean((0, 1)) for i in range(3))
        if is_open[members].any():
            area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
            inward = area[flipped[members] == 1].sum() > area.sum() / 2
        else:
            inward = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() < 0
        if inward:
            out[members] = out[members][:, ::-1]
    return out


def _neighbours(faces: np.ndarray) -> tuple[list[list[tuple[int, bool]]], np.ndarray]:
    """For each face the faces across its edges and whether they are wound alike; and whether it has an open edge."""
    edges: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for f, (a, b, c) in enumerate(faces.tolist()):
        for u, v in ((a, b), (b, c), (c, a)):
            edges.setdefault((min(u, v), max(u, v)), []).append((f, u < v))
    neighbours: list[list[tuple[int, bool]]] = [[] for _ in faces]
    is_open = np.zeros(len(faces), bool)
    for users in edges.values():
        if len(users) == 2:
            (f, forward), (g, other) = users
            neighbours[f].append((g, forward != other))
            neighbours[g].append((f, forward != other))
        else:  # a border, or an edge of three faces, across which winding means nothing
            is_open[[f for f, _ in users]] = True
    return neighbours, is_open
