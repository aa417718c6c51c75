"""The Triton kernel of `models.crops.sample`: a pixel's place is found once for all channels, no grid is kept."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256  # pixels of one image a program works on


@triton.jit
def _sample(crops, matrix, mean, scale, out, side, size, BLOCK: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size * size
    x = (2 * (pixel % size) + 1).to(tl.float32) / size - 1
    y = (2 * (pixel // size) + 1).to(tl.float32) / size - 1
    m = matrix + image * 6
    u = ((tl.load(m) * x + tl.load(m + 1) * y + tl.load(m + 2) + 1) * side - 1) / 2
    v = ((tl.load(m + 3) * x + tl.load(m + 4) * y + tl.load(m + 5) + 1) * side - 1) / 2
    left, top = tl.floor(u), tl.floor(v)
    red = tl.zeros((BLOCK,), tl.float32)
    green, blue = red, red
    m0, m1, m2 = tl.load(mean), tl.load(mean + 1), tl.load(mean + 2)
    for k in tl.static_range(4):
        column, row = left + k % 2, top + k // 2
        weight = (1 - tl.abs(u - column)) * (1 - tl.abs(v - row))
        there = inside & (column >= 0) & (row >= 0) & (column < side) & (row < side)
        weight = tl.where(there, weight, 0.0)
        at = crops + ((image * side + row.to(tl.int32)) * side + column.to(tl.int32)) * 3
        red += weight * (tl.load(at, there, 0).to(tl.float32) - m0)
        green += weight * (tl.load(at + 1, there, 0).to(tl.float32) - m1)
        blue += weight * (tl.load(at + 2, there, 0).to(tl.float32) - m2)
    to = out + image * 3 * size * size + pixel
    tl.store(to, red / tl.load(scale), inside)
    tl.store(to + size * size, green / tl.load(scale + 1), inside)
    tl.store(to + 2 * size * size, blue / tl.load(scale + 2), inside)


def sample(
    crops: torch.Tensor, matrix: torch.Tensor, size: int, mean: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """What `models.crops.sample` says, of contiguous crops; `mean` and `scale` hold a number a channel."""
    b, side = crops.shape[:2]
    out = torch.empty((b, 3, size, size), device=crops.device)
    grid = (triton.cdiv(size * size, BLOCK), b)
    _sample[grid](crops.contiguous(), matrix.float().contiguous(), mean, scale, out, side, size, BLOCK, num_warps=4)
    return out
