"""A closed surface without handles laid out on the unit sphere, without folds and with little distortion.

Praun and Hoppe 2003, "Spherical parametrization and remeshing": the mesh is collapsed to a tetrahedron, the tetrahedron
is put on the sphere, and the vertices come back one by one, each where no triangle turns over. Pure NumPy.
"""

from __future__ import annotations

import heapq

import numpy as np

SWEEPS = 20  # of local search, at every growth by half
FOLD = 1e12  # energy of a folded triangle


def embed_on_sphere(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit directions [V, 3] of a mesh's vertices; the sphere's triangles lie as the mesh's do, seen from outside.

    Args:
        vertices: [V, 3].
        faces: [F, 3], a closed orientable surface of genus 0 in one piece that uses every vertex.

    Raises:
        ValueError: the surface is not of that kind.
    """
    faces = np.array(faces, np.int64)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    unique, counts = np.unique(edges, axis=0, return_counts=True)
    if (counts != 2).any() or len(vertices) - len(unique) + len(faces) != 2:
        raise ValueError("faces: not a closed surface of genus 0 in one piece")
    vertices = np.asarray(vertices, np.float64)
    alive, collapses = _collapse(vertices, faces)
    out = np.zeros(vertices.shape)
    corners = faces[alive][0]
    apex = next(v for v in faces[alive].ravel() if v not in corners)
    # Seen from outside the corners of a face run counter-clockwise: det(a, b, c) > 0.
    out[[*corners, apex]] = np.array([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]]) / np.sqrt(3)
    if np.linalg.det(out[corners]) < 0:
        out[corners[[0, 1]]] = out[corners[[1, 0]]]
    target, rng, polish_at = _shapes(vertices, faces), np.random.default_rng(0), 8
    for count, (vertex, kept, changed, removed) in enumerate(reversed(collapses), 5):
        faces[changed] = np.where(faces[changed] == kept, vertex, faces[changed])
        alive[removed] = True
        star = faces[np.concatenate([changed, removed])]
        ring = star[star != vertex].reshape(-1, 2)
        swap = star[:, 1] == vertex  # of a face (a, v, b) the ring runs from b to a
        ring[swap] = ring[swap][:, ::-1]
        out[vertex] = _inside(np.cross(out[ring[:, 0]], out[ring[:, 1]]))
        if count == polish_at or count == len(vertices):
            polish_at += polish_at // 2
            whole = count == len(vertices)
            shapes = target if whole else _shapes(vertices, faces[alive])
            _relax(out, faces[alive], shapes, rng, 4 * SWEEPS if whole else SWEEPS)
    return _upright(out, vertices)


def _collapse(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, list]:
    """Collapse edges, shortest first, until four vertices are left; `faces` is changed in place.

    Returns:
        which faces are left [F], and for each collapse: the vertex gone, the one it went to, faces changed, removed.
    """
    around: list[set[int]] = [set() for _ in vertices]
    for number, face in enumerate(faces):
        for v in face:
            around[v].add(number)
    alive, collapses, left = np.ones(len(faces), bool), [], len(vertices)

    def near(v: int) -> set[int]:
        return set(faces[list(around[v])].ravel().tolist()) - {v}

    def offers(v: int) -> list[tuple[float, int, int]]:
        return [(float(np.linalg.norm(vertices[v] - vertices[w])), *p) for w in near(v) for p in ((v, w), (w, v))]

    queue: list[tuple[float, int, int]] = []
    while left > 4:
        if not queue:
            queue = [offer for v in range(len(vertices)) if around[v] for offer in offers(v)]
            heapq.heapify(queue)
        _, vertex, kept = heapq.heappop(queue)
        shared = near(vertex) & near(kept) if around[vertex] and around[kept] else set()
        if len(shared) != 2 or not around[vertex] & around[kept]:
            continue  # gone, not neighbours any more, or the collapse would pinch the surface
        removed = around[vertex] & around[kept]
        changed = around[vertex] - removed
        index = np.array(sorted(changed))
        collapses.append((vertex, kept, index, np.array(sorted(removed))))
        for number in removed:
            for v in faces[number]:
                around[v].discard(number)
        faces[index] = np.where(faces[index] == vertex, kept, faces[index])
        alive[list(removed)] = False
        around[kept] |= changed
        around[vertex] = set()
        left -= 1
        for offer in offers(kept):
            heapq.heappush(queue, offer)
    return alive, collapses


def _inside(normals: np.ndarray) -> np.ndarray:
    """A direction [3] inside all half spaces n x > 0, of normals [R, 3]: the middle of the corners they cut out."""
    n = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    first, second = np.triu_indices(len(n), 1)
    corners = np.cross(n[first], n[second])
    length = np.linalg.norm(corners, axis=1)
    corners = corners[length > 1e-9] / length[length > 1e-9, None]
    corners = np.concatenate([corners, -corners])
    margin = (corners @ n.T).min(1)
    x = corners[margin > -1e-9].sum(0) if (margin > -1e-9).any() else n.sum(0)
    return x / np.linalg.norm(x)


def _shapes(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Of each triangle the cotangents at its corners and its area [F, 4]; all areas sum to the sphere's 4 pi."""
    corners = vertices[faces]
    sides = np.roll(corners, -1, 1) - corners
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2
    area = np.maximum(area, 1e-6 * area.mean())
    cot = -(np.roll(sides, 1, 1) * sides).sum(-1) / (2 * area[:, None])
    return np.concatenate([cot, area[:, None] * (4 * np.pi / area.sum())], 1)


def _stretch(corners: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Symmetric Dirichlet energy [F] of the maps from flat triangles to triangles on the sphere.

    area (|J|^2 + |J^-1|^2), with |J|^2 from the cotangents (Pinkall and Polthier 1993) and |J^-1| = |J| / det J. A
    fold costs more than any shape, and the more the deeper it is.
    """
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = np.einsum("fi,fi->f", np.cross(a, b), c) / 2
    opposite = np.stack([c - b, a - c, b - a], 1)
    dirichlet = (shapes[:, :3] * (opposite**2).sum(-1)).sum(-1) / 2
    right = np.maximum(area, 1e-7)
    energy = np.maximum(dirichlet, 0) * (1 + (shapes[:, 3] / right) ** 2)
    return np.where(area > 1e-7, energy, FOLD * (1 + 1e-7 - area))


def _relax(x: np.ndarray, faces: np.ndarray, shapes: np.ndarray, rng: np.random.Generator, sweeps: int) -> None:
    """Move vertices on the sphere where that lowers the energy of the triangles around them; `x` in place.

    Vertices that are no neighbours of each other try a step at once.
    """
    colours = _colours(len(x), faces)
    step = np.full(len(x), 0.3)
    for _ in range(sweeps):
        for colour in range(colours.max() + 1):
            mine = colours == colour
            moved = x + rng.normal(size=x.shape) * (step * mine)[:, None]
            moved = np.where(mine[:, None], moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12), x)
            touched = mine[faces].any(1)
            tri, shape = faces[touched], shapes[touched]
            owner = tri[mine[tri]]
            change = np.zeros((2, len(x)))
            np.add.at(change[0], owner, _stretch(x[tri], shape))
            np.add.at(change[1], owner, _stretch(moved[tri], shape))
            better = mine & (change[1] < change[0])
            x[better] = moved[better]
            step[mine] *= np.where(better[mine], 1.6, 0.8)
        step = np.clip(step, 1e-4, 0.5)


def _colours(count: int, faces: np.ndarray) -> np.ndarray:
    """[V] a number for each vertex that no neighbour has; -1 for vertices without a face."""
    near: list[set[int]] = [set() for _ in range(count)]
    for a, b, c in faces.tolist():
        near[a] |= {b, c}
        near[b] |= {a, c}
        near[c] |= {a, b}
    out = np.full(count, -1)
    for v in range(count):
        if near[v]:
            taken = {int(out[w]) for w in near[v]}
            out[v] = next(n for n in range(len(taken) + 1) if n not in taken)
    return out


def _upright(x: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Turn the sphere so that directions agree best with where the vertices lie (Kabsch 1976)."""
    u, _, vt = np.linalg.svd(x.T @ (vertices - vertices.mean(0)))
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return x @ turn
