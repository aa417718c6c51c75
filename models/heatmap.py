"""The 2D networks: SimpleBaselines heatmaps (Xiao et al. 2018), and the same net with a centre and size head."""

from __future__ import annotations

import torch
from torch import nn

from models.resnet import ResNet
from tables import InputError


def upsampler(inputs: int, channels: int) -> nn.Sequential:
    """Three transposed convolutions, each doubling the resolution."""
    layers: list[nn.Module] = []
    for _ in range(3):
        up = nn.ConvTranspose2d(inputs, channels, 4, 2, 1, bias=False)
        nn.init.normal_(up.weight, std=0.01)
        layers.append(nn.Sequential(up, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
        inputs = channels
    return nn.Sequential(*layers)


class PoseNet(nn.Module):
    """ResNet, three deconvolutions and a 1x1 convolution: images [B,3,S,S] -> heatmaps [B,K,S/4,S/4].

    Args:
        keypoints: K.
        depth, width: of the ResNet trunk.
        channels: of the deconvolutions; None means 4 * width (256 in the published network).
    """

    def __init__(self, keypoints: int = 16, depth: int = 18, width: int = 64, channels: int | None = None) -> None:
        super().__init__()
        self.config = {"keypoints": keypoints, "depth": depth, "width": width, "channels": channels}
        self.backbone = ResNet(depth, width)
        self.up = upsampler(self.backbone.channels, channels or 4 * width)
        self.head = nn.Conv2d(channels or 4 * width, keypoints, 1)
        nn.init.normal_(self.head.weight, std=0.001)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.backbone(images)))


class Detector(nn.Module):
    """Centre and size of objects on the pose network's trunk: photos [B,3,H,W] -> [B,5,H/4,W/4].

    Channel 0 is the logit of a box centre; 1-4 are the logs of the distances, in input pixels, from the cell's middle
    to the left, top, right and bottom of the box (Liu et al. 2020, "Training-Time-Friendly Network").
    """

    def __init__(self, depth: int = 18, width: int = 64, channels: int | None = None) -> None:
        super().__init__()
        self.config = {"depth": depth, "width": width, "channels": channels}
        self.backbone = ResNet(depth, width)
        self.up = upsampler(self.backbone.channels, channels or 4 * width)
        self.head = nn.Sequential(
            nn.Conv2d(channels or 4 * width, channels or 4 * width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels or 4 * width, 5, 1),
        )
        # A rare class: start from a low probability (focal loss, Lin et al. 2017, section 4.1).
        nn.init.constant_(self.head[2].bias[:1], -2.2)  # type: ignore[index]
        nn.init.constant_(self.head[2].bias[1:], 3.0)  # type: ignore[index]

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.backbone(photos)))


def gaussian_targets(points: torch.Tensor, visible: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
    """Heatmaps [B,K,size,size] with peak 1 at sub-pixel points.

    Args:
        points: [B,K,2] in the network frame [-1,1].
        visible: [B,K]; joints at or below 0 give an empty map.
        sigma: in heatmap pixels.
    """
    at = (points + 1) * (size / 2) - 0.5
    cells = torch.arange(size, device=points.device, dtype=points.dtype)
    dx = (cells - at[..., :1]).square()  # [B,K,size]
    dy = (cells - at[..., 1:]).square()
    maps = torch.exp(-(dy[..., :, None] + dx[..., None, :]) / (2 * sigma**2))
    return maps * (visible > 0)[..., None, None]


def decode(heatmaps: torch.Tensor, compat: str | None = None) -> torch.Tensor:
    """Sub-pixel peaks [B,K,3]: x, y in the network frame [-1,1], and the peak's height clipped to [0,1].

    The logarithm of a Gaussian is a parabola, so a parabola through the logs of the peak and its two neighbours on
    each axis gives a Gaussian's centre exactly (Zhang et al. 2020 use the same expansion). A peak in the first or last
    cell has one neighbour: there it goes through the peak and the next two. The result stays within the peak's cell.

    Args:
        heatmaps: [B,K,h,w], at least three cells a side.
        compat: `animals3d` takes the upper left corner of the peak's cell, as the reference does: half a cell too far
            up and left on average (docs/method.md, "2D network"). None decodes as said above.

    Raises:
        InputError: `compat` is something else.
    """
    if compat not in (None, "animals3d"):
        raise InputError("compat", compat, "use animals3d or null")
    b, k, h, w = heatmaps.shape
    flat = heatmaps.reshape(b * k, h * w)
    peak, index = flat.max(-1)
    y, x = index // w, index % w
    if compat:
        out = torch.stack([x / w * 2 - 1, y / h * 2 - 1, peak.clamp(0, 1)], -1)
        return out.view(b, k, 3)
    logs = flat.clamp_min(1e-6).log()

    def centre(cell: torch.Tensor, cells: int, step: int) -> torch.Tensor:
        inner = cell.clamp(1, cells - 2)
        at = index + (inner - cell) * step
        lo, mid, hi = (logs.gather(1, (at + s)[:, None])[:, 0] for s in (-step, 0, step))
        curve = 2 * mid - lo - hi
        shift = (inner - cell + 0.5 * (hi - lo) / curve.clamp_min(1e-6)).clamp(-0.5, 0.5)
        return cell + 0.5 + torch.where(curve > 1e-6, shift, torch.zeros_like(shift))

    px, py = centre(x, w, 1), centre(y, h, w)
    out = torch.stack([px / w * 2 - 1, py / h * 2 - 1, peak.clamp(0, 1)], -1)
    return out.view(b, k, 3)


def heights_at(heatmaps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Heights [B,K] in [0,1] of heatmaps [B,K,h,w] at points [B,K,2] in the network frame [-1,1], each joint's own.

    Between the middles of four cells it is bilinear; outside the map it falls to 0 within half a cell.
    """
    b, k, h, w = heatmaps.shape
    grid = points.reshape(b * k, 1, 1, 2).to(heatmaps.dtype)
    read = nn.functional.grid_sample(heatmaps.reshape(b * k, 1, h, w), grid, align_corners=False)
    return read.view(b, k).clamp(0, 1)


def decode_boxes(
    output: torch.Tensor, score: float, most: int, overlap: float = 0.5
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes of each photo from the detector's output [B,5,h,w].

    Peaks are cells that are the largest of their 3x3 neighbourhood; boxes that overlap a better one by more than
    `overlap` (IoU) are dropped.

    Returns:
        for each photo: boxes [n,4] as [x,y,w,h] in input pixels and scores [n], best first.
    """
    b, _, h, w = output.shape
    heat = output[:, :1].sigmoid()
    peaks = heat * (nn.functional.max_pool2d(heat, 3, 1, 1) == heat)
    top, index = peaks.reshape(b, h * w).topk(min(4 * most, h * w), -1)
    fields = output.reshape(b, 5, h * w).gather(2, index[:, None].expand(-1, 5, -1))
    middle = torch.stack([index % w + 0.5, index // w + 0.5], -1) * 4  # [B,n,2]
    sides = fields[:, 1:].clamp(-2, 8).exp().transpose(1, 2)
    boxes = torch.cat([middle - sides[..., :2], sides[..., :2] + sides[..., 2:]], -1)
    found = []
    for box, s in zip(boxes, top, strict=True):
        keep: list[int] = []
        for i in range(len(s)):
            if s[i] < score or len(keep) == most:
                break
            if not keep or float(box_iou(box[i : i + 1], box[keep]).max()) <= overlap:
                keep.append(i)
        found.append((box[keep], s[keep]))
    return found


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU [N,M] of boxes [N,4] and [M,4] given as [x,y,w,h]."""
    lo = torch.maximum(a[:, None, :2], b[None, :, :2])
    hi = torch.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    inter = (hi - lo).clamp_min(0).prod(-1)
    return inter / (a[:, 2:].prod(-1)[:, None] + b[:, 2:].prod(-1)[None] - inter).clamp_min(1e-9)
