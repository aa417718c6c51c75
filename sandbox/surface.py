"""Watertight meshes from signed distances: smooth unions of round cones, polygonised by naive surface nets.

The grid is mirrored in x with one column of cells on the plane x = 0, so a symmetric distance gives a vertex set
that x -> -x maps to itself exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Distance = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Bone:
    """A round cone of a body part: a sphere of radius `ra` at `a` swept to one of radius `rb` at `b`."""

    part: str
    a: tuple[float, float, float]
    b: tuple[float, float, float]
    ra: float
    rb: float

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance [...] of points [..., 3]; negative inside.

        The radius runs linearly along the axis: exact for a capsule, close to it for a gentle cone.
        """
        a, b = np.asarray(self.a), np.asarray(self.b)
        axis = b - a
        along = np.clip(((points - a) @ axis) / max(float(axis @ axis), 1e-12), 0.0, 1.0)
        gap = points - a - along[..., None] * axis
        return np.sqrt((gap * gap).sum(-1)) - (self.ra + along * (self.rb - self.ra))


def smooth_union(distances: list[np.ndarray], blend: float) -> np.ndarray:
    """Polynomial smooth minimum, `blend` in length units (Quilez, "smooth minimum", quadratic kernel)."""
    out = distances[0]
    for d in distances[1:]:
        h = np.maximum(blend - np.abs(out - d), 0.0) / blend
        out = np.minimum(out, d) - h * h * blend * 0.25
    return out


def graded(*knots: tuple[float, float]) -> np.ndarray:
    """Grid coordinates from (start, spacing) knots; the last knot's start is the end of the axis."""
    steps = []
    for (start, spacing), (end, _) in pairwise(knots):
        steps.append(np.linspace(start, end, max(1, round((end - start) / spacing)), endpoint=False))
    return np.concatenate([*steps, [knots[-1][0]]])


def mirrored(half_width: float, spacing: float) -> np.ndarray:
    """Grid coordinates of x, symmetric about a cell whose centre is 0."""
    n = int(np.ceil(half_width / spacing - 0.5)) + 1
    return (np.arange(2 * n) - (n - 0.5)) * spacing


def surface_nets(
    distance: Distance, xs: np.ndarray, ys: np.ndarray, zs: np.ndarray, relax: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polygonise the zero level of `distance` (points [..., 3] -> [...], negative inside, even in x).

    Args:
        xs, ys, zs: grid coordinates; xs symmetric as made by `mirrored`.
        relax: rounds of tangential smoothing, each followed by a step back to the surface.

    Returns:
        vertices [V,3] float64, faces [F,3] int32 (outward by the right-hand rule), mirror [V] (index of the
        vertex at -x).

    Raises:
        ValueError: the surface leaves the grid.
    """
    grid = np.stack(np.meshgrid(xs, ys, zs, indexing="ij"), -1)  # [X,Y,Z,3]
    value = distance(grid)
    value = 0.5 * (value + value[::-1])  # rounding must not break the mirror
    inside = value < 0
    border = [inside[0], inside[-1], inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]]
    if any(b.any() for b in border):
        raise ValueError("distance: the surface leaves the grid; widen xs, ys or zs")

    cells = tuple(n - 1 for n in value.shape)
    total, count = np.zeros((*cells, 3)), np.zeros(cells)
    for axis in range(3):
        low, high = _pair(value, axis), _pair(value, axis, 1)
        p, q = _pair(grid, axis), _pair(grid, axis, 1)
        cross = (low < 0) != (high < 0)
        t = np.where(cross, low / np.where(cross, low - high, 1.0), 0.0)
        point = np.where(cross[..., None], p + t[..., None] * (q - p), 0.0)
        for offset in _around(axis):  # the four cells that share the edge
            src, dst = _shift(cross.shape, cells, offset)
            total[dst] += point[src]
            count[dst] += cross[src]
    used = count > 0
    index = np.full(cells, -1)
    index[used] = np.arange(used.sum())
    vertices = total[used] / count[used][:, None]
    mirror = index[::-1][used]

    quads = []
    for axis in range(3):
        low, high = _pair(value, axis), _pair(value, axis, 1)
        cross = np.argwhere((low < 0) != (high < 0))
        corner = [index[tuple((cross - np.array(o)).T)] for o in _ring(axis)]
        quad = np.stack(corner, 1)
        outward = (low < 0)[tuple(cross.T)]  # inside at the low end: the surface faces +axis
        quads.append(np.where(outward[:, None], quad, quad[:, ::-1]))
    quad = np.concatenate(quads)
    vertices = _relax(vertices, quad, mirror, distance, relax)
    return vertices, _split(vertices, quad), mirror


def _pair(a: np.ndarray, axis: int, end: int = 0) -> np.ndarray:
    """The low (0) or high (1) ends of all grid edges along an axis."""
    return np.take(a, range(end, a.shape[axis] - 1 + end), axis)


def _around(axis: int) -> list[tuple[int, int, int]]:
    """Offsets (to subtract from an edge's index) of the four cells around an edge."""
    return _ring(axis)


def _ring(axis: int) -> list[tuple[int, int, int]]:
    u, v = (axis + 1) % 3, (axis + 2) % 3
    ring = []
    for du, dv in ((1, 1), (0, 1), (0, 0), (1, 0)):  # counter-clockwise seen from +axis
        offset = [0, 0, 0]
        offset[u], offset[v] = du, dv
        ring.append((offset[0], offset[1], offset[2]))
    return ring


def _shift(edges: tuple[int, ...], cells: tuple[int, ...], offset: tuple[int, int, int]) -> tuple[tuple, tuple]:
    """Slices that pair each edge with the cell at edge index - offset, where there is one."""
    src, dst = [], []
    for e, c, o in zip(edges, cells, offset, strict=True):
        n = min(e - o, c)
        src.append(slice(o, o + n))
        dst.append(slice(0, n))
    return tuple(src), tuple(dst)


def _gradient(distance: Distance, points: np.ndarray, step: float = 1e-4) -> np.ndarray:
    shifts = np.eye(3) * step
    return np.stack([distance(points + s) - distance(points - s) for s in shifts], -1) / (2 * step)


def _relax(v: np.ndarray, quad: np.ndarray, mirror: np.ndarray, distance: Distance, rounds: int) -> np.ndarray:
    edges = np.concatenate([np.roll(quad, -k, 1)[:, :2] for k in range(4)])
    degree = np.bincount(edges[:, 0], minlength=len(v)).astype(float)
    for _ in range(rounds):
        mean = np.stack([np.bincount(edges[:, 0], v[edges[:, 1], k], len(v)) for k in range(3)], -1)
        v = v + 0.5 * (mean / degree[:, None] - v)
        for _ in range(2):  # Newton steps along the gradient, short ones: the union is no exact distance
            g = _gradient(distance, v)
            d = np.clip(distance(v), -0.05, 0.05)
            v = v - (d / np.maximum((g * g).sum(-1), 0.25))[:, None] * g
        v = 0.5 * (v + v[mirror] * [-1.0, 1.0, 1.0])
    return v


def _split(v: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Two triangles a quad along the shorter diagonal."""
    first = np.linalg.norm(v[quad[:, 0]] - v[quad[:, 2]], axis=1)
    second = np.linalg.norm(v[quad[:, 1]] - v[quad[:, 3]], axis=1)
    turned = np.where((second < first - 1e-9)[:, None], np.roll(quad, -1, 1), quad)
    return np.concatenate([turned[:, [0, 1, 2]], turned[:, [0, 2, 3]]]).astype(np.int32)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit area-weighted vertex normals [V,3] of a mesh [V,3], [F,3]."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    out = np.zeros(vertices.shape)
    for axis in range(3):
        out[:, axis] = np.bincount(faces.ravel(), np.repeat(face[:, axis], 3), len(vertices))
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
