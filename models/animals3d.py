"""Templates of animals3d and A-CSM: a folder of mean_shape.mat, kp2vertex.txt, parts.pkl and mirror_transforms.txt."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from models.plain_pickle import read_plain_pickle
from models.template import Template, normalise
from tables import QUADRUPED, InputError

# The reference's template axes -> ours, v' = AXES v. Its camera from the front is the turn of 90 degrees about +X, and
# the others follow by turns about +Z (animals3d camera.py, MultiCamPredictor): Z is up, the nose at -Y, left at +X.
AXES = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


class Reference(NamedTuple):
    """A template of animals3d in our axes.

    Attributes:
        template: of the active parts.
        order: part p of the template is part `order[p]` of parts.pkl.
        rigid_root: the root is inactive: it cannot be merged with a parent, and the reference never turns it.
    """

    template: Template
    order: tuple[int, ...]
    rigid_root: bool


def read_animals3d(folder: str, compat: str | None = None) -> Reference:
    """Read `cachedir/3D_models/<category>` (animals3d model_utils.py:16-96).

    The mesh is scaled to diameter 2 and centred (`--scale_mesh`), and the pivots with it; the root turns about the
    mean vertex. A part that `cachedir/part_files/<category>.txt`, two folders up, calls inactive becomes one with its
    parent, which is what the reference's identity transform does; without that file all parts are active. (The file's
    axes are not read: the reference does not use them.)

    Args:
        compat: `animals3d` leaves the pivots where parts.pkl has them, as the reference does and its trained weights
            expect (model_utils.py:57-58); None moves them with the mesh.

    Raises:
        InputError: a file is missing or unreadable, or they do not fit together.
    """
    if compat not in (None, "animals3d"):
        raise InputError("compat", compat, "use animals3d or null")
    with _problems(folder, "mean_shape.mat") as path:
        vertices, faces = _mean_shape(path)
    with _problems(folder, "kp2vertex.txt") as path:
        index = {name.lower(): int(vertex) for name, vertex, *_ in _lines(path)}
        keypoints = [index[name.lower()] for name in QUADRUPED.names]
    with _problems(folder, "parts.pkl") as path:
        parts = read_plain_pickle(path)
        weights = np.asarray(parts["alpha"], np.float64)
        nodes = list(parts["nodes"])[: weights.shape[1]]
        names = [str(node["name"]) for node in nodes]
        parents = _parents(nodes)
        pivots = np.stack([np.asarray(node["rc"], np.float64).reshape(3) for node in nodes])
    with _problems(folder, "mirror_transforms.txt") as path:
        pairs = {name: other for name, other, *_ in _lines(path)}
        mirror = [names.index(pairs[name]) for name in names]
    active = _active(folder, names)

    moved, moved_pivots = normalise(vertices, pivots)
    pivots = pivots if compat else moved_pivots
    root = parents.index(-1)
    pivots[root] = 0  # the reference sets it so, after the mesh is centred: the mean vertex
    weights, parents = _without_inactive(weights, parents, active)
    order = _root_first(parents, active)
    place = {old: new for new, old in enumerate(order)}
    with _problems(folder, ""):
        template = Template(
            vertices=moved @ AXES.T,
            faces=faces,
            weights=weights[:, order] / weights[:, order].sum(1, keepdims=True),
            pivots=pivots[list(order)] @ AXES.T,
            parents=tuple(place.get(parents[old], -1) for old in order),
            parts=tuple(names[old] for old in order),
            keypoints=np.array(keypoints),
            keypoint_names=QUADRUPED.names,
            part_mirror=tuple(place[mirror[old]] for old in order),
        )
    return Reference(template, order, not active[root])


@contextmanager
def _problems(folder: str, name: str) -> Iterator[str]:
    """The path of a file in the folder; whatever is wrong with its content becomes an InputError that names it."""
    path = os.path.join(folder, name) if name else folder
    try:
        yield path
    except FileNotFoundError:
        raise InputError("folder", path, "no such file; give a folder 3D_models/<category> of animals3d") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError("folder", path, f"not as animals3d has it ({type(error).__name__}: {reason})") from error


def _mean_shape(path: str) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with open(path, "rb") as f:  # by name, loadmat would also try <name>.mat
        try:
            shape = loadmat(f, variable_names=["verts", "faces"])
        except MatReadError as error:
            raise ValueError(str(error)) from None
    return np.asarray(shape["verts"], np.float64).reshape(-1, 3), np.asarray(shape["faces"], np.int64).reshape(-1, 3)


def _lines(path: str) -> Iterator[list[str]]:
    with open(path, encoding="utf-8") as f:
        yield from (words for line in f if (words := line.split()))


def _parents(nodes: list[Mapping[str, Any]]) -> list[int]:
    """Parent of each part; -1 for the root, the part called `is_main`. (`id` is the part's place in the list.)"""
    parents = [-1] * len(nodes)
    for number, node in enumerate(nodes):
        if int(node["id"]) != number:
            raise ValueError(f"part {number} has the id {node['id']}")
        for child in np.ravel(np.asarray(node["children"], np.int64)):
            parents[int(child)] = number
    roots = [i for i, parent in enumerate(parents) if parent < 0]
    if len(roots) != 1 or not nodes[roots[0]]["is_main"]:
        raise ValueError(f"parts {roots} have no parent, where is_main alone should")
    return parents


def _active(folder: str, names: list[str]) -> list[bool]:
    """Whether each part is active."""
    top, category = os.path.split(os.path.abspath(folder))
    place = os.path.join(os.path.dirname(top), "part_files")
    if not os.path.exists(os.path.join(place, f"{category}.txt")):
        return [True] * len(names)
    with _problems(place, f"{category}.txt") as path:
        state_of = {name: state for name, state, *_ in _lines(path)}
        return [state_of[name] == "True" for name in names]


def _without_inactive(weights: np.ndarray, parents: list[int], active: list[bool]) -> tuple[np.ndarray, list[int]]:
    """Weights and parents where every inactive part but the root has given its vertices to the next active one up."""

    def holder(part: int) -> int:
        while part >= 0 and not active[part] and parents[part] >= 0:
            part = parents[part]
        return part

    given = np.zeros_like(weights)
    for part in range(len(parents)):
        given[:, holder(part)] += weights[:, part]
    return given, [holder(parent) for parent in parents]


def _root_first(parents: list[int], active: list[bool]) -> tuple[int, ...]:
    """The kept parts, parents before children, else in their own order."""

    def depth(part: int) -> int:
        return 0 if parents[part] < 0 else 1 + depth(parents[part])

    kept = [p for p in range(len(parents)) if active[p] or parents[p] < 0]
    return tuple(sorted(kept, key=lambda p: (depth(p), p)))
