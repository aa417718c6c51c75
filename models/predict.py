"""Inference on stored crops: the 2D nets, their seven views, the 3D net. Plain functions of arrays, no Ray."""

from __future__ import annotations

import math

import numpy as np
import torch

from models.acsm import ACSM
from models.crops import affine, apply_affine, sample, stored_to_seen, to_photo
from models.heatmap import PoseNet, decode

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
    device = next(net.parameters()).device
    matrix = affine(len(crops), zoom, math.radians(angle), device=device)
    images = sample(torch.as_tensor(crops).to(device), matrix, image_size)
    if device.type == "cuda":
        images = images.contiguous(memory_format=torch.channels_last)
    # float16 holds a height to 11 bits, bfloat16 to 8: what lies between cells is read off heights.
    with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
        maps = net(images)
    joints = decode(maps.float())
    points = stored_to_seen(apply_affine(matrix, joints[..., :2]))
    return torch.cat([points, joints[..., 2:]], -1)


@torch.inference_mode()
def predict_acsm(net: ACSM, crops: np.ndarray, mesh: bool = False):
    """The best hypothesis for stored crops uint8 [B,C,C,3]: `ACSMOutput` with H = 1."""
    device = next(net.parameters()).device
    images = sample(torch.from_numpy(crops).to(device), affine(len(crops), device=device), net.config["image_size"])
    return net(images, mesh=mesh).best()


def in_photo(joints: torch.Tensor, windows: np.ndarray) -> np.ndarray:
    """Joints [B,K,2 or 3] of the network's frame -> photo pixels, confidence untouched; float32."""
    out = joints.cpu().numpy().astype(np.float64)
    out[..., :2] = to_photo(out[..., :2], windows)
    return out.astype(np.float32)
