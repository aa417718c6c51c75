"""Inference on stored crops: the 2D nets, their seven views, the 3D net. Plain functions of arrays, no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from models.acsm import ACSM
from models.crops import affine, apply_affine, sample, stored_to_seen, to_photo
from models.heatmap import PoseNet, decode, heights_at

# Zoom and rotation (degrees) of the reference's seven views, in its order (animals3d pose/generate_pl_mt.py).
VIEWS = ((1.0, 0.0), (1.1, 0.0), (1.2, 0.0), (1.0, -20.0), (1.0, -10.0), (1.0, 10.0), (1.0, 20.0))


@torch.inference_mode()
def predict_pose(
    net: PoseNet, crops: np.ndarray | torch.Tensor, image_size: int, zoom: float = 1.0, angle: float = 0.0
) -> torch.Tensor:
    """Joints [B,K,3] in the network's frame [-1,1] of the upright, unzoomed window, with confidence.

    Args:
        crops: uint8 [B,C,C,3] stored crops.
        zoom, angle: the view to look through (degrees); the result is mapped back.
    """
    return _joints(*_look(net, crops, image_size, zoom, angle))


@torch.inference_mode()
def predict_acsm(net: ACSM, crops: np.ndarray | torch.Tensor, mesh: bool = False):
    """The best hypothesis for stored crops uint8 [B,C,C,3]: `ACSMOutput` with H = 1."""
    device = next(net.parameters()).device
    matrix = _view(1.0, 0.0, device).expand(len(crops), 2, 3)
    images = sample(torch.as_tensor(crops).to(device), matrix, net.config["image_size"])
    return net(images, mesh=mesh).best()


@torch.inference_mode()
def predict_all(
    nets: Mapping[str, Any], crops: torch.Tensor, image_size: int, views: bool = True, aux_size: int | None = None
) -> dict[str, torch.Tensor]:
    """What all networks say of stored crops uint8 [B,C,C,3] on their device, in the network's frame.

    Args:
        nets: of `pose`, `aux` and `acsm` those there are.
        image_size: of `pose`, and of `aux` where `aux_size` does not say another.
        views: False leaves out the joints of `pose`: it is there for its heatmaps alone.

    Returns:
        of the columns of `pseudo_labels` those the networks can fill: `keypoints_mt` [B,T,K,3],
        `keypoints_aux` [B,K,3], `keypoints_3d` [B,K,2] and `heatmap_3d` [B,K].
    """
    found = {}
    if "acsm" in nets:
        found["keypoints_3d"] = predict_acsm(nets["acsm"], crops).keypoints[:, 0]
    if "pose" in nets:
        looks = (_look(nets["pose"], crops, image_size, *view) for view in VIEWS)
        upright, matrix = next(looks)
        if "acsm" in nets:
            found["heatmap_3d"] = heights_at(upright, found["keypoints_3d"])
        if views:
            found["keypoints_mt"] = torch.stack([_joints(upright, matrix), *(_joints(*look) for look in looks)], 1)
    if "aux" in nets:
        found["keypoints_aux"] = predict_pose(nets["aux"], crops, aux_size or image_size)
    return found


def _look(
    net: PoseNet, crops: np.ndarray | torch.Tensor, image_size: int, zoom: float, angle: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Heatmaps [B,K,h,w] of a view, and the map [B,2,3] from its frame to the stored crop's."""
    device = next(net.parameters()).device
    matrix = _view(zoom, angle, device).expand(len(crops), 2, 3)
    images = sample(torch.as_tensor(crops).to(device), matrix, image_size)
    if device.type == "cuda":
        images = images.contiguous(memory_format=torch.channels_last)
    # float16 holds a height to 11 bits, bfloat16 to 8: what lies between cells is read off heights.
    with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
        maps = net(images)
    return maps.float(), matrix


@lru_cache(maxsize=64)
def _view(zoom: float, angle: float, device: torch.device) -> torch.Tensor:
    """[1,2,3] map of a view; copied to a device once, since a CUDA graph holds no host copy."""
    with torch.inference_mode(False):
        return affine(1, zoom, math.radians(angle)).to(device)


def _joints(maps: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    joints = decode(maps)
    points = stored_to_seen(apply_affine(matrix, joints[..., :2]))
    return torch.cat([points, joints[..., 2:]], -1)


def in_photo(joints: np.ndarray | torch.Tensor, windows: np.ndarray) -> np.ndarray:
    """Joints [B,K,2 or 3] of the network's frame -> photo pixels, confidence untouched; float32."""
    out = np.asarray(joints.cpu() if isinstance(joints, torch.Tensor) else joints).astype(np.float64)
    out[..., :2] = to_photo(out[..., :2], windows)
    return out.astype(np.float32)
