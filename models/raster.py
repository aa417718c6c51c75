"""A z-buffer in plain torch: mask, depth and face ids of triangle meshes, on CPU and CUDA.

There is no loop over faces or pixels. Every row of pixels that a face meets becomes a run of candidates, edge functions
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
        depth: [B, H, W] in the dtype of the vertices, inf outside; differentiable with respect to the vertices, at
            fixed pixels of fixed faces. On faces seen edge-on the derivative grows without bound.
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
    left, right = _bounds(corners[..., 0], width)
    top, bottom = _bounds(corners[..., 1], height)
    area = _edge(*corners[..., 0].unbind(-1), *corners[..., 1].unbind(-1))
    drawn = corners.flatten(1).isfinite().all(-1) & (area != 0)
    counts = (right - left).clamp(min=0) * (bottom - top).clamp(min=0) * drawn
    used = counts.nonzero().squeeze(-1)
    # Positive orientation, so that "inside" is "all edge functions >= 0" for either winding.
    corners = torch.where((area < 0)[:, None, None], corners.flip(1), corners)[used]
    boxes = torch.stack((left, right, top, bottom))[:, used]
    ends = counts[used].cumsum(0)
    first = 0
    while first < len(used):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(torch.searchsorted(ends, done + CHUNK, right=True)))
        part = slice(first, last)
        face, pixel, depth = _covered(corners[part], boxes[:, part], height, width)
        face = used[part][face]
        pixel += torch.div(face, n_faces, rounding_mode="floor") * (height * width)
        keys.scatter_reduce_(0, pixel, (_sortable(depth) << 32) | (face % n_faces), "amin")
        first = last
    return torch.where(keys == _NOBODY, -1, keys & 0xFFFFFFFF).reshape(batch, height, width)


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


def spans(first: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Of n ranges (first, one past the last): every (range, member), two tensors as long as all ranges."""
    counts = (end - first).clamp(min=0)
    total = int(counts.sum())
    owner = torch.repeat_interleave(counts, output_size=total)
    return owner, (first - counts.cumsum(0) + counts)[owner] + torch.arange(total, device=counts.device)


def _covered(corners: Tensor, boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Faces [n], pixels [n] of their image that they cover, and float32 depths [n] there.

    Of corners [N, corner, xyz] in positive orientation, and first and one past the last column and row [4, N].
    """
    face, row = spans(boxes[2], boxes[3])
    lines = corners[face, :, :2]  # [lines, corner, xy]
    lines[..., 1] -= ((row.double() + 0.5) / height * 2 - 1).unsqueeze(-1)
    # Where the edges cut the line, but for those almost along it; the edge functions below decide, this only helps.
    run, rise = (lines.roll(-1, 1) - lines).unbind(-1)
    cut = ((lines[..., 0] - lines[..., 1] * run / rise) + 1) * (width / 2) - 0.5
    steep = run.abs() < 1e4 * rise.abs()
    left = torch.where(steep & (rise < 0), cut, -torch.inf).amax(-1) - 1e-3
    right = torch.where(steep & (rise > 0), cut, torch.inf).amin(-1) + 1e-3
    left = torch.maximum(left.ceil().clamp(-1, width).long(), boxes[0, face])
    right = torch.minimum(right.floor().clamp(-1, width).long() + 1, boxes[1, face])
    line, column = spans(left, right)
    # One by one: on the CPU several times faster than a gather of the whole table.
    ax, bx, cx, ay, by, cy = (p.index_select(0, line) for p in lines.permute(2, 1, 0).flatten(0, 1).contiguous())
    px = (column.double() + 0.5) / width * 2 - 1
    ax, bx, cx = ax - px, bx - px, cx - px
    weights = torch.stack((bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx))
    # Their sum is 0 only where rounding has eaten a face as narrow as that.
    inside = ((weights.amin(0) >= 0) & (weights.amax(0) > 0)).nonzero().squeeze(-1)
    line, weights = line[inside], weights[:, inside]
    face, pixel = face[line], row[line] * width + column[inside]
    depth = (weights * corners[face, :, 2].T).sum(0) / weights.sum(0)
    return face, pixel, depth.float()


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
