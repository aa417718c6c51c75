"""Differentiable silhouettes: the exact share of every pixel that a mesh covers, on CPU and CUDA.

S(p) = sum over pixels q of G_sigma(p - q) * A(q), where A(q) is the area of (pixel q, intersected with the union of the
projected triangles) in units of a pixel and G_sigma a Gaussian of sigma pixels (sigma = 0: S = A). Exact area is
Catmull's anti-aliasing ("A hidden-surface algorithm with anti-aliasing", 1978), accumulated as signed areas right of
the outline as font rasterisers do (Levien, font-rs). Its derivative is the integral over the outline of the pixel
filter times the outline's normal velocity (Reynolds; Li et al., "Differentiable Monte Carlo ray tracing through edge
sampling", 2018), and automatic differentiation of the areas gives just that. Unlike SoftRas there is no sum over
faces and pixels, no blur that makes thin parts fat, and no seam along inner edges.

How: the number of faces over a point changes only across contour edges, whose faces lie on one side. All y at which
something happens (ends and crossings of contour edges, pixel rows) cut the image into slabs, which contour edges
cross from top to bottom; along a slab a running sum of the changes tells where the union begins and ends. The y are
integers, so every slab closes exactly, whatever the rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.raster import check, spans
from tables import InputError

# y is kept in ticks of 2^-36 px, exact in float64. Every y leans by 2^-30 px per px of x: then no edge is exactly
# horizontal, where the area would not be differentiable slab by slab. Both are far below float32.
_TICKS = 2**36
_LEAN = 2.0**-30
_FAR = 2.0**20  # pixels; corners are pulled in to here so that ticks fit 64 bits
_PAIRS = 2_000_000  # pairs of edges looked at together; bounds memory, does not change the result


def silhouette(vertices: Tensor, faces: Tensor, size: int | tuple[int, int], sigma: float = 0.0) -> Tensor:
    """How much of every pixel B poses of one mesh cover: [B, H, W] in 0..1, in the dtype of the vertices.

    Differentiable with respect to x and y of the vertices (almost everywhere: not where outlines coincide or three
    of them meet); z gets no gradient. A loss with a constant weight per pixel gets its exact derivative. On CUDA
    sums run in any order, in float64: results may differ in the last bit from run to run.

    Args:
        vertices: [B, V, 3] in the image frame (x right, y down; x and y in [-1, 1] span the image).
        faces: [F, 3] vertex indices, in any winding. Faces without area or with a corner that is not finite are not
            drawn.
        size: pixels of a square image, or (height, width).
        sigma: blur in pixels: how far a pixel feels the outline (cut off at 3 sigma).

    Raises:
        InputError: shapes are not as above, an index is out of range on the CPU, or sigma is negative.
    """
    height, width = check(vertices, faces, size)
    if not 0 <= sigma < math.inf:
        raise InputError("sigma", sigma, "give pixels, 0 or more")
    faces = faces.to(vertices.device, torch.int64)
    reach = math.ceil(3 * sigma)
    drawn = vertices.detach().isfinite().all(-1)
    points = torch.where(drawn.unsqueeze(-1), vertices[..., :2].double(), 0)
    points = ((points + 1) * points.new_tensor((width / 2, height / 2)) + reach).clamp(-_FAR, _FAR)
    area = _area(points, faces, drawn[:, faces].all(-1), height + 2 * reach, width + 2 * reach).to(vertices.dtype)
    area = area.clamp(0, 1)  # sums of shares leave a rounding error, which a logarithm would not forgive
    if not reach:
        return area
    return _gaussian(height, sigma, reach, area) @ area @ _gaussian(width, sigma, reach, area).T


def _gaussian(size: int, sigma: float, reach: int, like: Tensor) -> Tensor:
    """[size, size + 2 reach] weights of a blur; as a matrix it is several times faster than a convolution."""
    offset = (
        torch.arange(size + 2 * reach, device=like.device) - reach - torch.arange(size, device=like.device)[:, None]
    )
    weights = torch.exp(-0.5 * (offset / sigma) ** 2) * (offset.abs() <= reach)
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def _area(points: Tensor, faces: Tensor, drawn: Tensor, height: int, width: int) -> Tensor:
    """Covered share [B, H, W] of pixels, of points [B, V, 2] in pixels and faces [F, 3] drawn where [B, F] says so."""
    batch = len(points)
    lean = points[..., 1] + _LEAN * points[..., 0]
    with torch.no_grad():
        image, a, b, change = _contour(points, faces, drawn)
        x, ticks = points[..., 0], (lean * _TICKS).round().long()
        corners = torch.stack((a, b))
        ends = ticks[image, corners]
        # One tall image of all images: a slab lies in exactly one of them.
        offset = image * (height * _TICKS)
        tall = ends.clamp(0, height * _TICKS) + offset
        rows = torch.arange(batch * height + 1, device=points.device) * _TICKS
        y, where = _crossings(x[image, corners], ends.double() / _TICKS, corners, image, batch)
        crossings = (y * _TICKS).round().long().clamp(0, height * _TICKS) + where * (height * _TICKS)
        events = torch.cat((rows, tall.flatten(), crossings)).unique()
        edge, slab = spans(*torch.searchsorted(events, tall.sort(0).values))
        low, high = (events[slab + k] - offset[edge] for k in (0, 1))
        start, way = ends[0][edge], (ends[1] - ends[0])[edge]
        xa, xb = x[image, corners][:, edge]
        middle = xa + (low + high - 2 * start).double() / (2 * way) * (xb - xa)
        order = middle.argsort()
        order = order[slab[order].argsort(stable=True)]
        edge, low, high = edge[order], low[order], high[order]
        # +x across an edge that runs towards +y: what lay on its left ends.
        step = -change[edge] * way[order].sign()
        after = step.cumsum(0)  # every slab sums to zero, so the next one starts at zero
        weight = (after > 0).long() - (after - step > 0).long()
        seen = weight.nonzero().squeeze(-1)
        edge, low, high = edge[seen], low[seen], high[seen]
        drop = (high - low).double() / _TICKS * weight[seen]
        row = torch.div(low + offset[edge], _TICKS, rounding_mode="floor")
    # The ticks' values, the vertices' gradients.
    y = ticks.double() / _TICKS + (lean - lean.detach())
    xa, xb, ya, yb = (p[image, end][edge] for p in (points[..., 0], y) for end in (a, b))
    x0, x1 = (xa + (at.double() / _TICKS - ya) / (yb - ya) * (xb - xa) for at in (low, high))
    return _accumulate(x0, x1, drop, row, batch * height, width).reshape(batch, height, width)


def _contour(points: Tensor, faces: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges where the number of faces over a point changes: image [n] ascending, vertices a < b [n], change [n].

    The change counts faces left of a -> b (cross product with the point positive) less faces on the right.
    """
    a, b = faces, faces.roll(-1, 1)
    ax, bx, cx, ay, by, cy = points[:, faces].permute(3, 2, 0, 1).flatten(0, 1)  # each [B, F]
    turn = ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)).sign() * drawn
    keys, which = (torch.minimum(a, b) * points.shape[1] + torch.maximum(a, b)).flatten().unique(return_inverse=True)
    sides = (turn.unsqueeze(-1) * (b - a).sign()).flatten(1)  # [B, 3F]
    change = sides.new_zeros(len(points), len(keys)).index_add_(1, which, sides).long()
    image, edge = change.nonzero(as_tuple=True)
    return image, keys[edge] // points.shape[1], keys[edge] % points.shape[1], change[image, edge]


def _crossings(x: Tensor, y: Tensor, ends: Tensor, image: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """y and image of the crossings of edges whose ends are x, y and vertices `ends`, all [2, n]; `image` [n] ascends.

    To miss one costs a sliver of area, not the closure of a slab, so plain float64 signs are good enough.
    """
    counts = torch.bincount(image, minlength=batch)
    starts, most = counts.cumsum(0) - counts, int(counts.max()) if batch else 0
    slot = torch.arange(len(image), device=image.device) - starts[image]
    run, rise = x[1] - x[0], y[1] - y[0]
    # Twice the areas of an edge with the ends of all others, as products of (run, rise, area with 0) and (y, -x, -1).
    lines, points = x.new_full((batch, most, 3), torch.nan), x.new_full((2, batch, most, 3), torch.nan)
    lines[image, slot] = torch.stack((run, rise, run * y[0] - rise * x[0]), -1)
    points[:, image, slot] = torch.stack((y, -x, -torch.ones_like(x)), -1)
    found, where = [x.new_zeros(0)], [image.new_zeros(0)]
    images = max(1, _PAIRS // max(1, most * most))
    for first in range(0, batch, images):
        part = slice(first, first + images)
        c, d = (lines[part] @ p[part].transpose(1, 2) for p in points)
        astride = c * d < 0  # the second edge's ends lie on either side of the first one's line
        at, i, j = (astride & astride.transpose(1, 2)).triu().nonzero(as_tuple=True)
        share = c[at, i, j] / (c[at, i, j] - d[at, i, j])
        at = at + first
        i, j = i + starts[at], j + starts[at]
        apart = (ends[:, None, i] != ends[None, :, j]).flatten(0, 1).all(0)  # neighbours only meet
        found.append(torch.lerp(y[0, j], y[1, j], share)[apart])
        where.append(at[apart])
    return torch.cat(found), torch.cat(where)


def _accumulate(x0: Tensor, x1: Tensor, drop: Tensor, row: Tensor, height: int, width: int) -> Tensor:
    """Signed areas [H, W] right of segments that run from x0 to x1 within a pixel row and are `drop` high."""
    with torch.no_grad():
        middle = (x0 + x1) / 2
        upright = (x1 - x0).abs() < 1e-7  # one column, that of the middle
        left = torch.where(upright, middle, torch.minimum(x0, x1)).floor().clamp(-1, width).long()
        right = torch.where(upright, middle, torch.maximum(x0, x1)).floor().clamp(-1, width).long()
        piece, column = spans(left, right + 1)
        whole = (left == right)[piece]
        low = torch.where(column < 0, -torch.inf, column.double())
        high = torch.where(column < width, column + 1.0, torch.inf)
    x0, x1, drop = x0[piece], x1[piece], drop[piece]
    xa, xb = x0.clamp(low, high), x1.clamp(low, high)
    fall = torch.where(whole, drop, drop * (xb - xa) / torch.where(whole, 1, x1 - x0))
    share = torch.where(whole, x0 + x1, xa + xb) / 2 - column  # of the pixel, left of the segment
    share = torch.where(column < 0, 1, share.clamp(0, 1))
    # Columns -1 .. width + 1, of which the image is 0 .. width - 1.
    at = row[piece] * (width + 3) + column + 1
    area = x0.new_zeros(height * (width + 3))
    area = area.index_add(0, at, fall * (1 - share)).index_add(0, at + 1, fall * share)
    return area.reshape(height, width + 3)[:, : width + 1].cumsum(1)[:, 1:]
