"""3x3 convolutions with fewer multiplications, for training in float32 on a CPU (Lavin and Gray 2016).

A convolution on a CPU is bound by its multiplications. Of a tile of 4x4 outputs F(4x4, 3x3) makes 36 of them for each
pair of channels instead of 144: tiles of 6x6 inputs and the weights are transformed by constant matrices, multiplied
point by point, which over all channels is 36 matrix products, and transformed back. It is the same sum in another
order: it differs from `conv2d` by float32's rounding (some 3e-6 of the result's norm).
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

CHANNELS, TILES = 128, 48  # from so many of both on it is faster than `conv2d` (benchmarks/acsm_cpu.py)

# The transforms of F(4x4, 3x3): inputs, weights, outputs.
_INPUTS = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
           [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
_WEIGHTS = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
_OUTPUTS = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

_rooms = threading.local()


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and no bias, made by `winograd` where that is faster."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return winograd(x, self.weight) if self.stride == (1, 1) and suits(x, self.weight) else super().forward(x)


def suits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `winograd` is faster: a training in float32 on a CPU, channels_last, enough channels and tiles."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not weight.requires_grad:
        return False
    if torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
        return False
    b, c, h, w = x.shape
    if h % 4 or w % 4 or min(c, len(weight)) < CHANNELS or b * h * w < 16 * TILES:
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def winograd(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """conv2d(x, weight, padding=1) [B,O,H,W] of x [B,C,H,W] and weight [O,C,3,3]; H and W multiples of 4."""
    return _Winograd.apply(x, weight)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        (b, c, height, width), o = x.shape, len(weight)
        of_inputs, _, of_outputs = _matrices(x.dtype)
        u = _transformed(weight)
        seen = _tiles(pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)))  # [6,6,B,h,w,C]
        v = (of_inputs @ _room("tiles", x, *seen.shape).copy_(seen).view(36, -1)).view(36, -1, c)
        products = torch.bmm(v, u.transpose(1, 2), out=_room("products", x, 36, v.shape[1], o)).view(36, -1)
        y = torch.mm(of_outputs, products, out=_room("outputs", x, 16, products.shape[1]))
        ctx.save_for_backward(weight, v)
        ctx.shape = x.shape
        y = y.view(4, 4, b, height // 4, width // 4, o).permute(2, 3, 0, 4, 1, 5)
        return y.clone(memory_format=torch.contiguous_format).view(b, height, width, o).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        weight, v = ctx.saved_tensors
        (b, c, height, width), o = ctx.shape, len(weight)
        of_inputs, of_weights, of_outputs = _matrices(v.dtype)
        grad = grads[0].permute(0, 2, 3, 1).reshape(b, height // 4, 4, width // 4, 4, o).permute(2, 4, 0, 1, 3, 5)
        grad = _room("outputs", v, *grad.shape).copy_(grad).view(16, -1)
        m = torch.mm(of_outputs.T, grad, out=_room("m", v, 36, grad.shape[1])).view(36, -1, o)
        products = torch.bmm(m, _transformed(weight), out=_room("products", v, *v.shape)).view(36, -1)
        tiles = torch.mm(of_inputs.T, products, out=_room("tiles", v, *products.shape))
        tiles = tiles.view(6, 6, b, height // 4, width // 4, c)
        to_u = torch.bmm(m.transpose(1, 2), v, out=_room("u", v, 36, o, c)).view(36, -1)
        to_weight = (of_weights.T @ to_u).view(3, 3, o, c).permute(2, 0, 1, 3).contiguous().permute(0, 3, 1, 2)
        to_x = v.new_zeros(b, height + 2, width + 2, c)
        for part, row in zip(_tiles(to_x), tiles, strict=True):  # tiles overlap: one place of theirs at a time
            for place, values in zip(part, row, strict=True):
                place += values
        return to_x[:, 1:-1, 1:-1].permute(0, 3, 1, 2), to_weight


def _transformed(weight: torch.Tensor) -> torch.Tensor:
    """U [36,O,C] of weight [O,C,3,3]; good until the next call."""
    o, c = weight.shape[:2]
    u = _room("u", weight, 36, o * c)
    return torch.mm(_matrices(weight.dtype)[1], weight.permute(2, 3, 0, 1).reshape(9, o * c), out=u).view(36, o, c)


def _room(name: str, like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Memory of that name, kept for the next call: to ask the system for new pages takes longer than to fill them."""
    size, had = math.prod(shape), getattr(_rooms, name, None)
    if had is None or had.numel() < size or had.dtype != like.dtype:
        with torch.inference_mode(False):
            had = torch.empty(size, dtype=like.dtype)
        setattr(_rooms, name, had)
    return had[:size].view(shape)


def _tiles(padded: torch.Tensor) -> torch.Tensor:
    """A view [6,6,B,h,w,C] of [B,4h+2,4w+2,C]: tiles of 6x6, four apart."""
    b, height, width, c = padded.shape
    image, row, column, _ = padded.stride()
    return padded.as_strided((6, 6, b, height // 4, width // 4, c), (row, column, image, 4 * row, 4 * column, 1))


@lru_cache(maxsize=4)
def _matrices(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """The transforms of whole tiles, row by row: [36,36] of inputs, [36,9] of weights, [16,36] of outputs."""
    with torch.inference_mode(False):
        single = [torch.tensor(rows, dtype=torch.float64) for rows in (_INPUTS, _WEIGHTS, _OUTPUTS)]
        return tuple(torch.kron(m, m).to(dtype) for m in single)
