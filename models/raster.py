"""A z-buffer in plain torch: silhouette, depth and face ids of triangle meshes, on CPU and CUDA.

There is no loop over faces or pixels. Each face's bounding box becomes a run of candidate pixels, edge functions
decide which lie inside, and one scattered minimum over (depth, face id) keys decides who is seen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tables import InputError

# Candidate pixels looked at together; bounds memory at about 150 bytes each and does not change the result.
CHUNK = 2_000_000
_NOBODY = torch.iinfo(torch.int64).max


class Raster(NamedTuple):
    """What each pixel sees.

    Attributes:
        mask: [B, H, W] bool, covered by any face.
        depth: [B, H, W] in the dtype of the vertices, inf outside; differentiable with respect to the vertices.
        face_id: [B, H, W] int64, -1 outside.
        barycentric: [B, H, W, 3] weights of the face's corners, 0 outside; differentiable as well.
    """

    mask: Tensor
    depth: Tensor
    face_id: Tensor
    barycentric: Tensor


def rasterize(vertices: Tensor, faces: Tensor, size: int | tuple[int, int]) -> Raster:
    """Draw B poses of one mesh.

    A pixel is covered by a face if its centre lies inside or on an edge; both windings are drawn; the smallest z
    wins. Depths that are equal in float32 go to the smallest face id, so the result is the same on every run.
    Coverage is decided in float64 by edge functions that two neighbours evaluate alike: shared edges leave no holes.

    Args:
        vertices: [B, V, 3] in the image frame (x right, y down, z away; x and y in [-1, 1] span the image).
        faces: [F, 3] vertex indices. Faces without area or with a corner that is not finite are not drawn.
        size: pixels of a square image, or (height, width). The centre of pixel i is (i + 0.5) / size * 2 - 1.

    Raises:
        InputError: shapes are not as above, or an index is out of range on the CPU.
    """
    height, width = check(vertices, faces, size)
    faces = faces.to(vertices.device, torch.int64)
    with torch.no_grad():
        face_id = _visible(vertices.detach().double(), faces, height, width)
    return _interpolate(vertices, faces, face_id)


def check(vertices: Tensor, faces: Tensor, size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of the image.

    Raises:
        InputError: see `rasterize`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if vertices.ndim != 3 or vertices.shape[-1] != 3 or not vertices.is_floating_point():
        raise InputError("vertices", f"{vertices.dtype} {tuple(vertices.shape)}", "give floats [B, V, 3]")
    if faces.ndim != 2 or faces.shape[-1] != 3 or faces.is_floating_point():
        raise InputError("faces", f"{faces.dtype} {tuple(faces.shape)}", "give integers [F, 3]")
    if height < 1 or width < 1:
        raise InputError("size", size, "must be positive")
    # On CUDA looking would be a wait for the device.
    if faces.device.type == "cpu" and faces.numel():
        low, high = int(faces.min()), int(faces.max())
        if not 0 <= low <= high < vertices.shape[1]:
            raise InputError("faces", f"{low}..{high}", f"vertex indices must lie in 0..{vertices.shape[1] - 1}")
    return height, width


def _visible(vertices: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
    """[B, H, W] ids of the nearest faces."""
    batch, n_faces = len(vertices), len(faces)
    device = vertices.device
    keys = torch.full((batch * height * width,), _NOBODY, device=device)
    corners = vertices[:, faces].reshape(-1, 3, 3)  # [B*F, corner, xyz]
    low, high = _bounds(corners[..., 0], width), _bounds(corners[..., 1], height)
    area = _edge(*corners[..., 0].unbind(-1), *corners[..., 1].unbind(-1))
    drawn = corners.flatten(1).isfinite().all(-1) & (area != 0)
    spans = torch.stack((low[1] - low[0], high[1] - high[0]), -1).clamp(min=0) * drawn.unsqueeze(-1)
    counts = spans.prod(-1)
    used = counts.nonzero().squeeze(-1)
    if not len(used):
        return torch.full((batch, height, width), -1, device=device)
    counts = counts[used]
    rows = torch.stack(
        (used // n_faces * (height * width), used % n_faces, low[0][used], high[0][used], spans[used, 0])
    )
    # Positive orientation, so that "inside" is "all edge functions >= 0" for either winding.
    turn = area[used].sign()
    table = torch.cat((corners[used].permute(2, 1, 0).flatten(0, 1), turn[None], area[used].abs()[None]))  # [11, N]
    ends = counts.cumsum(0)
    total, first, last = int(ends[-1]), 0, 0
    while first < len(used):
        done = int(ends[first - 1]) if first else 0
        if total - done <= CHUNK:
            last = len(used)
        else:
            last = max(first + 1, int(torch.searchsorted(ends, done + CHUNK, right=True)))
        part = slice(first, last)
        pixels, fresh = _candidates(rows[:, part], counts[part], table[:, part], height, width)
        keys.scatter_reduce_(0, pixels, fresh, "amin")
        first = last
    ids = keys & 0xFFFFFFFF
    return torch.where(keys == _NOBODY, -1, ids).reshape(batch, height, width)


def _bounds(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First pixel and one past the last whose centres lie in each face's extent, of corners [N, 3]."""
    at = (x.nan_to_num() + 1) * (size / 2) - 0.5
    # A hair wider than the extent: the edge functions decide, rounding here must not.
    first = (at.amin(-1) - 1e-6).ceil().clamp(0, size)
    last = (at.amax(-1) + 1e-6).floor().clamp(-1, size - 1) + 1
    return first.long(), last.long()


def _edge(ax: Tensor, bx: Tensor, cx: Tensor, ay: Tensor, by: Tensor, cy: Tensor) -> Tensor:
    """Twice the signed area of triangles."""
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)


def _candidates(rows: Tensor, counts: Tensor, table: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixels [n] that a face covers, and their (depth, face id) keys [n]."""
    starts = counts.cumsum(0) - counts
    total = int(counts.sum())
    face = torch.repeat_interleave(counts, output_size=total)
    step = torch.arange(total, device=counts.device) - starts[face]
    base, ids, x0, y0, span = rows.index_select(1, face).unbind(0)
    down = torch.div(step, span, rounding_mode="floor")
    column, row = x0 + step - down * span, y0 + down
    px, py = (column.double() + 0.5) / width * 2 - 1, (row.double() + 0.5) / height * 2 - 1
    ax, bx, cx, ay, by, cy, az, bz, cz, turn, area = table.index_select(1, face).unbind(0)
    ax, bx, cx, ay, by, cy = ax - px, bx - px, cx - px, ay - py, by - py, cy - py
    wa, wb, wc = (bx * cy - by * cx) * turn, (cx * ay - cy * ax) * turn, (ax * by - ay * bx) * turn
    inside = (wa >= 0) & (wb >= 0) & (wc >= 0)
    depth = ((wa * az + wb * bz + wc * cz) / area)[inside].float()
    keys = (_sortable(depth) << 32) | ids[inside]
    return (base + row * width + column)[inside], keys


def _sortable(depth: Tensor) -> Tensor:
    """Integers [n] in the order of float32 numbers (negative floats count backwards in their bits)."""
    bits = (depth + 0.0).view(torch.int32).long()  # + 0.0 turns -0 into 0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _interpolate(vertices: Tensor, faces: Tensor, face_id: Tensor) -> Raster:
    """Barycentric weights and depth of the covered pixels, differentiably."""
    batch, height, width = face_id.shape
    mask = face_id >= 0
    image, row, column = mask.nonzero(as_tuple=True)
    corners = vertices[image[:, None], faces[face_id[mask]]].double()  # [n, corner, xyz]
    px, py = (column.double() + 0.5) / width * 2 - 1, (row.double() + 0.5) / height * 2 - 1
    pixel = torch.stack((px, py), -1)
    (ax, bx, cx), (ay, by, cy) = (corners[..., :2] - pixel.unsqueeze(1)).permute(2, 1, 0)
    weights = torch.stack((bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx), -1)
    weights = weights / weights.sum(-1, keepdim=True)
    depth = (weights * corners[..., 2]).sum(-1)
    where = (image, row, column)
    barycentric = vertices.new_zeros(batch, height, width, 3).index_put(where, weights.to(vertices.dtype))
    depths = vertices.new_full((batch, height, width), torch.inf).index_put(where, depth.to(vertices.dtype))
    return Raster(mask, depths, face_id, barycentric)
