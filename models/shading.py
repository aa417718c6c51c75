"""Meshes as pictures: Lambert shading of the z-buffer on a transparent ground, ready to lay over a photo."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from models.raster import rasterize

FINER = 2  # pixels drawn per pixel shown, on each axis
LIGHT = (-0.42, -0.62, -0.66)  # towards the light in the image frame: from the upper left, on the viewer's side
AMBIENT = 0.38
BRIGHT = 1.12  # so that a face turned half to the light shows its colour


@torch.no_grad()
def shade(vertices: Tensor, faces: Tensor, colors: Tensor, size: int) -> Tensor:
    """Draw B poses of one mesh, smoothly shaded: [B, size, size, 4] uint8 RGBA, transparent outside.

    Args:
        vertices: [B, V, 3] in the image frame (x right, y down, z away; [-1, 1] spans the picture).
        faces: [F, 3], outward by the right-hand rule.
        colors: [V, 3] RGB of the vertices, 0..255.
        size: pixels of the square pictures; they are drawn finer and averaged.

    Raises:
        InputError: shapes are not as above, see `rasterize`.
    """
    out = [_one(mesh[None], faces, colors, size) for mesh in vertices]
    return torch.cat(out) if out else torch.zeros(0, size, size, 4, dtype=torch.uint8, device=vertices.device)


def _one(vertices: Tensor, faces: Tensor, colors: Tensor, size: int) -> Tensor:
    light = normalize(vertices.new_tensor(LIGHT), dim=0)
    lit = AMBIENT + (1 - AMBIENT) * (vertex_normals(vertices, faces) @ light).clamp(min=0)[0]
    seen = rasterize(vertices, faces, size * FINER)
    corners, share = faces[seen.face_id[seen.mask]], seen.barycentric[seen.mask]
    color = torch.einsum("nc,ncx->nx", share, colors.to(share)[corners]) * (share * lit[corners]).sum(1, keepdim=True)
    image = vertices.new_zeros(1, size * FINER, size * FINER, 4)
    image[seen.mask] = torch.cat(((color * BRIGHT).clamp(0, 255), torch.full_like(color[:, :1], 255)), 1)
    small = image.reshape(1, size, FINER, size, FINER, 4).mean((2, 4))
    # The average was taken over black outside: divide by the covered share.
    small[..., :3] /= (small[..., 3:] / 255).clamp(min=1e-3)
    return small.round().clamp(0, 255).to(torch.uint8)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit vertex normals [B, V, 3], weighted by the areas of the faces; zero where there is no area."""
    a, b, c = vertices[:, faces].unbind(2)
    face = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in faces.unbind(1):
        total.index_add_(1, corner, face)
    return normalize(total, dim=-1)
