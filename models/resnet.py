"""ResNet-18/34/50/101 with torchvision's parameter names, so ImageNet weights load by name; any width."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import conv2d, pad, pixel_unshuffle

from models.pool import applies, pooled
from models.winograd import Conv3x3

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, fig. 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = Conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, as torchvision does), 1x1 and a shortcut (He et al. 2016, fig. 5 right)."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = Conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, planes * 4, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Trunk without pooling and classifier: images [B,3,S,S] -> features [B,C,S/32,S/32].

    Args:
        depth: 18, 34, 50 or 101.
        width: channels of the first stage; 64 is the published network.

    Attributes:
        channels: C, the channels of the last stage.
    """

    def __init__(self, depth: int = 18, width: int = 64) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth={depth}: use one of {sorted(BLOCKS)}")
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock if depth < 50 else Bottleneck
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        stages = []
        for i, count in enumerate(BLOCKS[depth]):
            planes = width * 2**i
            layers: list[nn.Module] = []
            for j in range(count):
                layers.append(block(inputs, planes, 2 if i and not j else 1))
                inputs = planes * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels: int = inputs
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        even = x.shape[-2] % 2 == 0 and x.shape[-1] % 2 == 0
        first = self._by_blocks if x.is_cuda and even else self.conv1
        # The largest of what is cut off at 0 is what is cut off of the largest: a quarter of the work.
        x = first(x)
        x = pooled(x, self.bn1) if applies(x, self.bn1) else self.relu(self.maxpool(self.bn1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x

    def _by_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """`conv1` as the same sum over blocks of 2x2 pixels: 3 channels would leave a GPU's matrix units idle."""
        return conv2d(in_blocks(x), by_blocks(self.conv1.weight))


def in_blocks(x: torch.Tensor) -> torch.Tensor:
    """Images [B,3,2h,2w] as blocks of 2x2 pixels [B,16,h+3,w+3], zeros around them, in channels_last."""
    # Kernels want a multiple of 8 channels: 12 are filled up to 16.
    return pad(pixel_unshuffle(x, 2), (2, 1, 2, 1, 0, 4)).contiguous(memory_format=torch.channels_last)


def by_blocks(w: torch.Tensor) -> torch.Tensor:
    """The weight [C,3,7,7] of a convolution of stride 2 as one [C,16,4,4] over blocks of 2x2 pixels."""
    # Output i is the sum over k of w[k] x[2i + k - 3]; with a zero put before w it runs over the whole blocks
    # i - 2 .. i + 1.
    w = pad(w, (1, 0, 1, 0)).unflatten(3, (4, 2)).unflatten(2, (4, 2))  # [C,3,4,2,4,2]
    return pad(w.permute(0, 1, 3, 5, 2, 4).flatten(1, 3), (0, 0, 0, 0, 0, 4))
