"""The template's surface laid out on a sphere: from a direction, or the uv of a map, to a point of the mesh.

What A-CSM's uv maps predict are directions; a table over uv cells says which face lies there (animals3d
geom_utils.py:124-162, model_utils.py:23-36).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.sphere_embedding import embed_on_sphere
from models.template import Template
from tables import InputError

ROWS = 256  # of the table; it has twice as many columns


class SphereMap(NamedTuple):
    """A template's largest piece on the unit sphere.

    Attributes:
        directions: [V, 3] float32 of the vertices; 0 for vertices of other pieces.
        faces: [F, 3] int64, the piece's faces.
        table: [ROWS, 2 ROWS] int64, the face at the middle of each cell; v counts rows and u columns.
    """

    directions: np.ndarray
    faces: np.ndarray
    table: np.ndarray


@lru_cache(maxsize=8)
def sphere_map(template: Template) -> SphereMap:
    """Lay a template out on the sphere; a few seconds, once for each template.

    Raises:
        InputError: its largest piece is not a closed surface without handles.
    """
    faces = _largest_piece(np.asarray(template.faces, np.int64), len(template.vertices))
    used, local = np.unique(faces, return_inverse=True)
    try:
        placed = embed_on_sphere(template.vertices[used], local.reshape(faces.shape))
    except ValueError as error:
        fix = "mask mode needs a watertight body; close its holes, or train on keypoints alone"
        raise InputError("template", template.digest, f"{error}; {fix}") from None
    directions = np.zeros((len(template.vertices), 3), np.float32)
    directions[used] = placed
    return SphereMap(directions, faces, _table(directions.astype(np.float64), faces))


def to_uv(directions: Tensor) -> Tensor:
    """Directions [..., 3] -> uv [..., 2] in [0, 1]: u = 1/2 + atan2(y, x) / 2 pi, v = 1/2 + asin(z) / pi."""
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    return torch.stack([0.5 + torch.atan2(y, x) / (2 * math.pi), 0.5 + torch.asin(z.clamp(-1, 1)) / math.pi], -1)


def from_uv(uv: Tensor) -> Tensor:
    """uv [..., 2] -> unit directions [..., 3], the inverse of `to_uv`."""
    phi, theta = 2 * math.pi * (uv[..., 0] - 0.5), math.pi * (uv[..., 1] - 0.5)
    return torch.stack([theta.cos() * phi.cos(), theta.cos() * phi.sin(), theta.sin()], -1)


def surface_points(directions: Tensor, sphere: Tensor, faces: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Where unit directions [..., 3] meet the template: corners [..., 3] of the face, and their weights [..., 3].

    The direction is dropped onto the plane of its face, and the weights are the shares of the areas that the point
    cuts off (animals3d uv_to_3d.py:45-126); differentiable with respect to the directions.

    Args:
        sphere, faces, table: the fields of `SphereMap` as tensors.
    """
    rows, columns = table.shape
    with torch.no_grad():
        uv = to_uv(directions)
        column = (uv[..., 0] * columns).long().clamp(0, columns - 1)
        row = (uv[..., 1] * rows).long().clamp(0, rows - 1)
        corners = faces[table[row, column]]
    a, b, c = sphere[corners].unbind(-2)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a, dim=-1), dim=-1)
    point = directions - ((directions - a) * normal).sum(-1, keepdim=True) * normal
    cut = [torch.linalg.cross(q - point, r - point, dim=-1) for q, r in ((b, c), (c, a), (a, b))]
    areas = torch.stack([(x * normal).sum(-1) for x in cut], -1).abs()
    return corners, areas / areas.sum(-1, keepdim=True).clamp_min(1e-12)


def _largest_piece(faces: np.ndarray, count: int) -> np.ndarray:
    """The faces of the connected piece that has most of them."""
    label = np.arange(count)
    while True:
        lowest = label.copy()
        for corner in range(3):
            np.minimum.at(lowest, faces[:, corner], label[faces].min(1))
        if (lowest == label).all():
            break
        label = lowest
    owner = label[faces[:, 0]]
    return faces[owner == np.bincount(owner).argmax()]


def _table(directions: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """For each cell the face whose three sides its middle lies farthest inside of."""
    v, u = (np.arange(ROWS) + 0.5) / ROWS, (np.arange(2 * ROWS) + 0.5) / (2 * ROWS)
    cells = from_uv(torch.from_numpy(np.stack(np.meshgrid(u, v), -1))).numpy()
    corners = directions[faces]
    sides = np.cross(corners, np.roll(corners, -1, 1))
    sides = (sides / np.linalg.norm(sides, axis=-1, keepdims=True)).astype(np.float32)
    out = np.empty((ROWS, 2 * ROWS), np.int64)
    for row, middle in enumerate(cells.astype(np.float32)):
        inside = middle @ sides[:, 0].T
        for corner in (1, 2):
            np.minimum(inside, middle @ sides[:, corner].T, out=inside)
        out[row] = inside.argmax(1)
    return out
