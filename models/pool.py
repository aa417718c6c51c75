"""Batch norm, 3x3 max pooling and ReLU behind the first convolution as one, where a GPU trains in half precision.

They work on the largest tensor of a network, and each on its own reads and writes all of it: together they read it
once on the way there and once on the way back. The mathematics is that of the three: the gradient goes to the first
largest element of a window, and through the batch's mean and variance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def fits(x: torch.Tensor) -> bool:
    """Whether the kernels know such a tensor: on CUDA, even sides, channels a power of two."""
    c, h, w = x.shape[1:]
    return x.is_cuda and h % 2 == 0 and w % 2 == 0 and c & (c - 1) == 0


def applies(x: torch.Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether `pooled` can take over: training in bfloat16."""
    return fits(x) and norm.training and x.dtype == torch.bfloat16


def pooled(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    """relu(max_pool2d(norm(x), 3, 2, 1)) [B,C,H/2,W/2] of x [B,C,H,W], updating the running statistics."""
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        # What it makes of x is not used, and not made where the step is compiled.
        _, mean, rstd = torch.native_batch_norm(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.momentum or 0.0, norm.eps
        )
    return _Pooled.apply(x, norm.weight, norm.bias, mean, rstd)


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, bias: Any, mean: Any, rstd: Any) -> torch.Tensor:
        out, best, which = _pool(x, [weight, bias, mean, rstd])
        ctx.save_for_backward(x, best, which, weight, bias, mean, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, best, which, weight, bias, mean, rstd = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        w, b, m, r = (t.view(1, -1, 1, 1) for t in (weight, bias, mean, rstd))
        unit = (best.float() - m) * r
        g = torch.where(unit * w + b > 0, grad.float(), 0.0)
        to_bias, to_weight = g.sum((0, 2, 3)), (g * unit).sum((0, 2, 3))
        to_x = _spread(x, grad, best, which, [weight, bias, mean, rstd, to_bias, to_weight])
        return to_x, to_weight, to_bias, None, None


@torch.library.custom_op("wildshape::pool", mutates_args=())
def _pool(x: torch.Tensor, channels: list[torch.Tensor]) -> list[torch.Tensor]:
    from models import pool_kernels  # Triton is where CUDA is

    return pool_kernels.pool(x, channels, True)


@_pool.register_fake
def _(x: torch.Tensor, channels: Any) -> list[torch.Tensor]:
    b, c, h, w = x.shape
    out = torch.empty((b, c, h // 2, w // 2), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return [out, torch.empty_like(out), torch.empty_like(out, dtype=torch.uint8)]


@torch.library.custom_op("wildshape::spread", mutates_args=())
def _spread(
    x: torch.Tensor, grad: torch.Tensor, best: torch.Tensor, which: torch.Tensor, channels: list[torch.Tensor]
) -> torch.Tensor:
    from models import pool_kernels

    return pool_kernels.spread(x, grad, best, which, channels)


@_spread.register_fake
def _(x: torch.Tensor, grad: Any, best: Any, which: Any, channels: Any) -> torch.Tensor:
    return torch.empty_like(x)
