"""The map head of A-CSM: for each pixel the point of the template's sphere that it shows, and whether it shows any."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from models.resnet import ResNet


class Surface(NamedTuple):
    """What the map head says of B images, a quarter of their size (h = w = S / 4).

    Attributes:
        directions: [B, h, w, 3] unit vectors, points of the sphere that the template is laid out on.
        logits: [B, h, w] of the animal's mask.
        points: [B, H, h, w, 3] the same points of the posed template under each hypothesis, in the image frame.
    """

    directions: torch.Tensor
    logits: torch.Tensor
    points: torch.Tensor


class SurfaceHead(nn.Module):
    """Features of all four stages, added up from the coarsest to the finest, to four channels (Lin et al. 2017, FPN).

    A-CSM has an encoder of its own here (its `resnet_style_decoder` is closest to this one); we look at the same
    trunk.
    """

    def __init__(self, backbone: ResNet, width: int) -> None:
        super().__init__()
        inputs = [backbone.channels // 2**i for i in range(4)]
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in inputs)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True))
            for _ in inputs
        )
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, stages: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Stages [B, C_i, S / 4 2^i, ...], finest first -> raw directions [B, h, w, 3] and logits [B, h, w]."""
        x: torch.Tensor | None = None
        for stage, lateral, smooth in zip(reversed(stages), self.lateral, self.smooth, strict=True):
            side = lateral(stage)
            x = smooth(side if x is None else side + nn.functional.interpolate(x, scale_factor=2.0))
        maps = self.head(x).permute(0, 2, 3, 1)
        return maps[..., :3], maps[..., 3]


def stages_of(backbone: ResNet, images: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of the trunk's four stages, finest first."""
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
    out = []
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        x = stage(x)
        out.append(x)
    return out
