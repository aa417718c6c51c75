"""Networks as they answer on a GPU: batch norm folded into float16 convolutions that also add and cut off.

float16 holds a heatmap's height to 11 bits, bfloat16 to 8: what lies between cells is read off heights. Geometry and
linear layers stay in float32.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, max_pool2d

from models.acsm import ACSM
from models.heatmap import PoseNet
from models.pool import fits
from models.resnet import BasicBlock, Bottleneck, ResNet, by_blocks, in_blocks
from models.vitpose import ViTPose

Net = TypeVar("Net", PoseNet, ACSM, ViTPose)
HALF = torch.float16


def frozen(net: Net, dtype: torch.dtype = HALF) -> Net:
    """A copy that gives the same answers, within rounding, and cannot be trained.

    The map head of a mask-mode ACSM is left out: no prediction looks at it.

    Args:
        dtype: of the convolutions; anything but float16 and bfloat16 is for checking on a CPU.
    """
    made = copy.deepcopy(net).eval().requires_grad_(False)
    if isinstance(made, ViTPose):
        return made  # nothing to fold; `predict` runs it in float16
    made.backbone = _Trunk(made.backbone, dtype)  # type: ignore[assignment]
    if isinstance(made, PoseNet):
        made.up = nn.Sequential(*(_Up(up[0], up[1], dtype) for up in made.up))  # type: ignore[index]
        made.head.to(dtype)
    else:
        conv = _Conv(made.squeeze[0], made.squeeze[1], dtype, cut=False)  # type: ignore[arg-type]
        made.squeeze = nn.Sequential(conv, made.squeeze[2])
        made.surface_head = None
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def folded(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution that does its batch norm too."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = norm.weight.detach() / torch.sqrt(var + norm.eps)
    shape = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    bias = -mean if conv.bias is None else conv.bias.detach() - mean
    return conv.weight.detach() * scale.view(shape), norm.bias.detach() + bias * scale


class _Conv(nn.Module):
    """relu(norm(conv(x)) + z), or without `cut` norm(conv(x)) alone."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype, cut: bool = True) -> None:
        super().__init__()
        self.stride, self.padding, self.cut = list(conv.stride), [int(p) for p in conv.padding], cut
        weight, bias = folded(conv, norm)
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("bias", bias.to(dtype))

    def forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        if not (self.cut and x.is_cuda):
            out = conv2d(x, self.weight, self.bias, self.stride, self.padding)
            out = out if z is None else out + z
            return out.relu() if self.cut else out
        if z is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, self.stride, self.padding, [1, 1], 1)
        return torch.cudnn_convolution_add_relu(x, self.weight, z, 1.0, self.bias, self.stride, self.padding, [1, 1], 1)


class _Block(nn.Module):
    """A residual block; the shortcut's bias is added with that of the last convolution."""

    def __init__(self, block: BasicBlock | Bottleneck, dtype: torch.dtype) -> None:
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        *first, self.last = (_Conv(conv, norm, dtype) for conv, norm in pairs)
        self.first, self.shortcut = nn.Sequential(*first), None
        if block.downsample is not None:
            self.shortcut = _Conv(block.downsample[0], block.downsample[1], dtype, cut=False)  # type: ignore[arg-type]
            self.last.bias, self.shortcut.bias = self.last.bias + self.shortcut.bias, None  # type: ignore[operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x), x if self.shortcut is None else self.shortcut(x))


class _Trunk(nn.Module):
    def __init__(self, net: ResNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.stem = _Conv(net.conv1, net.bn1, dtype)
        self.stem.weight = by_blocks(folded(net.conv1, net.bn1)[0]).to(dtype)
        self.stem.stride, self.stem.padding = [1, 1], [0, 0]
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        self.blocks = nn.Sequential(*(_Block(block, dtype) for stage in stages for block in stage))  # type: ignore[arg-type]
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(in_blocks(x.to(self.dtype)))
        if not fits(x):
            return self.blocks(max_pool2d(x, 3, 2, 1))
        from models.pool_kernels import largest  # Triton is where CUDA is

        return self.blocks(largest(x))


class _Up(nn.Module):
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, conv: nn.ConvTranspose2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = folded(conv, norm)
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = conv_transpose2d(x, self.weight, None, 2, 1)
        if not x.is_cuda:
            return (x + self.bias.view(1, -1, 1, 1).to(x.dtype)).relu()
        from models.pool_kernels import add_and_cut

        return add_and_cut(x, self.bias)
