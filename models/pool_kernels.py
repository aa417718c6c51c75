"""Triton kernels of `models.pool`: 3x3 windows two pixels apart, on bfloat16 or float16 channels_last tensors.

Output (i, j) sees the input's rows 2i - 1 .. 2i + 1 and columns 2j - 1 .. 2j + 1; which of the nine it took is a byte.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 8  # places a program works on, each with all its channels


@triton.jit
def _pool(
    x, weight, bias, mean, rstd, out, best, which, H, W, n, C: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, C)[None, :]
    j, i = place % (W // 2), (place // (W // 2)) % (H // 2)
    image = (place // (W // 2 * (H // 2))).to(tl.int64)
    a = tl.load(weight + c) * tl.load(rstd + c)
    b = tl.load(bias + c) - tl.load(mean + c) * a
    top = tl.full((BLOCK, C), float("-inf"), tl.float32)
    raw = tl.zeros((BLOCK, C), tl.float32)
    at = tl.zeros((BLOCK, C), tl.uint8)
    for k in tl.static_range(9):
        row, column = 2 * i - 1 + k // 3, 2 * j - 1 + k % 3
        there = ((place < n) & (row >= 0) & (column >= 0))[:, None]
        value = tl.load(x + ((image * H + row) * W + column)[:, None] * C + c, there, 0.0).to(tl.float32)
        seen = tl.where(there, value * a + b, float("-inf"))
        more = (seen > top) | (seen != seen)  # what is no number is kept, as torch keeps it
        top, raw, at = tl.where(more, seen, top), tl.where(more, value, raw), tl.where(more, k, at).to(tl.uint8)
    to = place.to(tl.int64)[:, None] * C + c
    here = (place < n)[:, None]
    tl.store(out + to, tl.where(top < 0, 0.0, top), here)
    if KEEP:
        tl.store(best + to, raw, here)
        tl.store(which + to, at, here)


@triton.jit
def _spread(
    x, grad, best, which, weight, bias, mean, rstd, even, slope, out, H, W, n, C: tl.constexpr, BLOCK: tl.constexpr
):
    # One place is a square of 2x2 inputs; the windows that may have taken from it lie at it, right of it and below.
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, C)[None, :]
    h, w = H // 2, W // 2
    j, i = place % w, (place // w) % h
    image = (place // (w * h)).to(tl.int64)
    m, r = tl.load(mean + c), tl.load(rstd + c)
    a = tl.load(weight + c) * r
    b = tl.load(bias + c) - m * a
    e, s = tl.load(even + c) / (4 * n), tl.load(slope + c) / (4 * n)  # n squares of four: the batch's mean
    p00 = tl.zeros((BLOCK, C), tl.float32)
    p01, p10, p11 = p00, p00, p00
    for k in tl.static_range(4):
        there = ((place < n) & (i + k // 2 < h) & (j + k % 2 < w))[:, None]
        at = ((image * h + i + k // 2) * w + j + k % 2)[:, None] * C + c
        took = tl.load(which + at, there, 255)
        g = tl.load(grad + at, there, 0.0).to(tl.float32)
        g = tl.where(tl.load(best + at, there, 0.0).to(tl.float32) * a + b > 0, g, 0.0)
        if k == 0:
            p00 += tl.where(took == 4, g, 0.0)
            p01 += tl.where(took == 5, g, 0.0)
            p10 += tl.where(took == 7, g, 0.0)
            p11 += tl.where(took == 8, g, 0.0)
        elif k == 1:
            p01 += tl.where(took == 3, g, 0.0)
            p11 += tl.where(took == 6, g, 0.0)
        elif k == 2:
            p10 += tl.where(took == 1, g, 0.0)
            p11 += tl.where(took == 2, g, 0.0)
        else:
            p11 += tl.where(took == 0, g, 0.0)
    here = (place < n)[:, None]
    for k in tl.static_range(4):
        if k == 0:
            g = p00
        elif k == 1:
            g = p01
        elif k == 2:
            g = p10
        else:
            g = p11
        at = ((image * H + 2 * i + k // 2) * W + 2 * j + k % 2)[:, None] * C + c
        unit = (tl.load(x + at, here, 0.0).to(tl.float32) - m) * r
        tl.store(out + at, a * (g - e - unit * s), here)


@triton.jit
def _bias(x, bias, n, C: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < n, 0.0).to(tl.float32) + tl.load(bias + at % C)
    tl.store(x + at, tl.where(value < 0, 0.0, value), at < n)


def pool(x: torch.Tensor, channels: list[torch.Tensor], keep: bool) -> list[torch.Tensor]:
    """relu(max over windows of the normalised x) [B,C,h,w]; if `keep`, the x it came from and which of nine it was.

    Args:
        channels: [C] weight, bias, mean and 1 / deviation.
    """
    b, c, h, w = x.shape
    out = torch.empty((b, c, h // 2, w // 2), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    found = [out, torch.empty_like(out), torch.empty_like(out, dtype=torch.uint8)] if keep else [out, out, out]
    n = out.numel() // c
    _pool[(triton.cdiv(n, BLOCK),)](x, *channels, *found, h, w, n, c, keep, BLOCK, num_warps=4)
    return found if keep else found[:1]


def largest(x: torch.Tensor) -> torch.Tensor:
    """max_pool2d(x, 3, 2, 1) of x [B,C,H,W] that has nothing below 0."""
    one = torch.ones(x.shape[1], device=x.device)
    nothing = torch.zeros_like(one)
    return pool(x, [one, nothing, nothing, one], False)[0]


def spread(
    x: torch.Tensor, grad: torch.Tensor, best: torch.Tensor, which: torch.Tensor, channels: list[torch.Tensor]
) -> torch.Tensor:
    """The gradient at `x` of normalisation, pooling and cut-off.

    Args:
        channels: [C] weight, bias, mean, 1 / deviation, and the sums of the gradient and of it times the unit input.
    """
    c, h, w = x.shape[1:]
    out = torch.empty_like(x)
    n = grad.numel() // c
    _spread[(triton.cdiv(n, BLOCK),)](x, grad, best, which, *channels, out, h, w, n, c, BLOCK, num_warps=4)
    return out


def add_and_cut(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """relu(x + bias [C]) in x's place."""
    _bias[(triton.cdiv(x.numel(), 1024),)](x, bias, x.numel(), x.shape[1], 1024, num_warps=4)
    return x
