"""ViTPose (Xu et al. 2022) through transformers as a 2D network: `hf:` and a folder, or a name on the hub."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import grid_sample, pad

from tables import QUADRUPED, InputError
from tables.skeleton import joint_order

PREFIX = "hf:"
AP10K = 3  # of the experts of ViTPose++: COCO, AI Challenger, MPII, AP-10K, APT-36K, COCO-WholeBody


class ViTPose(nn.Module):
    """A `VitPoseForPoseEstimation` that answers as `PoseNet` does: images [B,3,S,S] -> heatmaps [B,16,S/4,S/4].

    S is the shorter side of the network's input; what is missing of the longer one is filled with the mean colour.
    Joints that it does not know have a map that is 0 at its middle and less elsewhere: they are decoded to the middle
    of the view with confidence 0. It is not trained.

    Args:
        net: of transformers; `config.id2label` names its joints: the 16, or those of Animal Pose or AP-10K.

    Raises:
        ValueError: it knows other joints, has experts and none for AP-10K, or an input that does not suit its maps.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        config, trunk = net.config, net.config.backbone_config
        names = [config.id2label[i] for i in range(len(config.id2label))]
        try:
            order = joint_order(names)
        except ValueError as error:
            raise ValueError(f"of its joints, {', '.join(names[:4])} and so on, {error}") from error
        if 1 < trunk.num_experts <= AP10K:
            raise ValueError(f"has {trunk.num_experts} experts: AP-10K's is the fourth of ViTPose++")
        height, width = trunk.image_size
        side = min(height, width)
        if side % 4 or (height - side) % 2 or (width - side) % 2:
            raise ValueError(f"takes images of {height}x{width} pixels: sides must be multiples of 4")
        self.config = {"keypoints": len(QUADRUPED), "image_size": side}
        self.margin = (width - side) // 2, (height - side) // 2  # pixels left and right, above and below
        self.register_buffer("order", torch.tensor([i if i >= 0 else len(names) for i in order]), persistent=False)
        self.register_buffer("expert", torch.tensor([AP10K if trunk.num_experts > 1 else 0]), persistent=False)
        self.register_buffer("grid", cells_in_maps(side, height, width), persistent=False)
        middle = torch.full((1, 1, side // 4, side // 4), -1.0)
        middle[..., side // 8, side // 8] = 0.0
        self.register_buffer("unknown", middle, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        b, (x, y) = len(images), self.margin
        expert: Any = self.expert
        maps = self.net(pixel_values=pad(images, (x, x, y, y)), dataset_index=expert.expand(b)).heatmaps.float()
        grid: Any = self.grid
        ours = grid_sample(maps, grid.expand(b, -1, -1, -1), mode="bicubic", align_corners=True)
        unknown: Any = self.unknown
        return torch.cat([ours, unknown.expand(b, -1, -1, -1)], 1)[:, self.order]  # type: ignore[index]


def cells_in_maps(side: int, height: int, width: int) -> torch.Tensor:
    """Where the middles of our cells, four pixels wide, lie in ViTPose's maps: [1,side/4,side/4,2] for `grid_sample`.

    Its maps are made for "unbiased" coordinates (Huang et al. 2020): the middles of the first and the last cell are
    those of the input's first and last pixel, with `align_corners` in torch's words. Ours lie between them.

    Args:
        side: of the square in the middle of the network's input of `height` by `width` pixels.
    """
    cells = torch.arange(side // 4) * 4 + 1.5  # in pixels of the square, whose first has its middle at 0
    x = (cells + (width - side) / 2) * 2 / (width - 1) - 1
    y = (cells + (height - side) / 2) * 2 / (height - 1) - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]


def digest(path: str) -> str:
    """16 hex digits of what `hf:` names: a folder's configuration and weights, or a name on the hub as it stands."""
    made, folder = hashlib.sha256(), path.removeprefix(PREFIX)
    if not os.path.isdir(folder):
        return hashlib.sha256(path.encode()).hexdigest()[:16]
    for name in sorted(n for n in os.listdir(folder) if n == "config.json" or n.endswith((".safetensors", ".bin"))):
        made.update(name.encode())
        with open(os.path.join(folder, name), "rb") as file:
            made.update(hashlib.file_digest(file, "sha256").digest())
    return made.hexdigest()[:16]


def load(path: str) -> ViTPose:
    """The network that `hf:` names, in evaluation mode on the CPU, with an attribute `notes` as all networks read.

    Raises:
        InputError: transformers is not installed or cannot load it, or it is no pose network of an animal.
    """
    try:
        import transformers
    except ImportError as error:
        fix = f"needs transformers ({error}); install it: pip install 'wildshape[hf]'"
        raise InputError("checkpoint", path, fix) from error
    try:
        folder = path.removeprefix(PREFIX)
        loaded: Any = transformers.VitPoseForPoseEstimation.from_pretrained(folder, output_loading_info=True)
        net, info = loaded
        if info["missing_keys"]:  # transformers would draw them at random
            raise ValueError(f"it lacks weights: {', '.join(sorted(info['missing_keys'])[:3])}")
        made = ViTPose(net)
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError, KeyError, SafetensorError) as error:
        reason = str(error).split("\n", 1)[0]
        fix = f"is no ViTPose of an animal that transformers can load ({reason})"
        raise InputError("checkpoint", path, fix) from error
    settings = {"image_size": made.config["image_size"]}
    made.notes = {"from": "transformers", "job": {"settings": settings}}  # type: ignore[assignment]
    return made.eval()
