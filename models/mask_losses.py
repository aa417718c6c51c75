"""The losses of A-CSM's mask mode (Kulkarni et al., CVPR 2020), each a plain function of tensors.

In animals3d: network.py:382-482, 525-534.

All hypotheses at once: B images, H hypotheses, an [h, w] grid of pixels over the network's frame [-1, 1]. What depends
on an image and a hypothesis returns [B, H].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, grid_sample, relu

FAR = 100.0  # depth where nothing is drawn, so that nothing is hidden there (the reference renderer's far plane)
NEAREST = 4  # projected vertices that each contour point pulls


def cycle_loss(points: Tensor, mask: Tensor) -> Tensor:
    """Each pixel of the animal, taken to the surface and back, should come back: mean m |point - pixel|^2 / mean m.

    Args:
        points: [B, H, h, w, 2] where the surface point predicted at each pixel projects to.
        mask: [B, h, w] in {0, 1}.
    """
    error = (points - pixel_grid(mask)).square().sum(-1) * mask[:, None]
    return error.mean((-1, -2)) / (mask.mean((-1, -2)) + 1e-10)[:, None]


def visibility_loss(points: Tensor, depth: Tensor, mask: Tensor) -> Tensor:
    """What a pixel shows is not behind the surface: mean m relu(z - z_drawn)^2.

    Args:
        points: [B, H, h, w, 3] projected surface points of the pixels, z away from the viewer.
        depth: [B, H, h, w] of the drawn mesh, inf where there is none; read where the points project to, between
            pixel centres bilinearly.
        mask: [B, h, w].
    """
    drawn = torch.where(depth.isfinite(), depth, FAR).flatten(0, 1)[:, None]
    at = points[..., :2].detach().flatten(0, 1)
    seen = grid_sample(drawn, at, align_corners=False).view(points.shape[:-1])
    return (relu(points[..., 2] - seen).square() * mask[:, None]).mean((-1, -2))


def coverage_loss(vertices: Tensor, contour: Tensor) -> Tensor:
    """The contour should be near the mesh: mean squared distance of its points to the 4 nearest projected vertices.

    Args:
        vertices: [B, H, V, 2] projected.
        contour: [B, C, 2].
    """
    b, h, _, _ = vertices.shape
    c = contour.shape[1]
    with torch.no_grad():
        nearest = torch.cdist(contour[:, None].expand(b, h, c, 2), vertices).topk(NEAREST, largest=False).indices
    chosen = vertices.gather(2, nearest.flatten(2)[..., None].expand(-1, -1, -1, 2)).view(b, h, c, NEAREST, 2)
    return (chosen - contour[:, None, :, None]).square().sum(-1).mean((-1, -2))


def consistency_loss(silhouette: Tensor, distance: Tensor) -> Tensor:
    """The mesh should not stick out of the mask: mean of distance times drawn silhouette.

    Args:
        silhouette: [B, H, h, w] coverage in [0, 1].
        distance: [B, h, w] from the mask, 0 inside; the reference measures in pixels of a 256 px crop.
    """
    return (silhouette * distance[:, None]).mean((-1, -2))


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross entropy [B] of the predicted mask, logits and truth [B, h, w]."""
    return binary_cross_entropy_with_logits(logits, mask, reduction="none").mean((-1, -2))


def entropy_loss(prob: Tensor) -> Tensor:
    """Negative entropy [B] of the hypotheses' probabilities [B, H]: keeps them from settling on one early."""
    return (prob * (prob + 1e-9).log()).sum(-1)


def rotation_loss(quaternions: Tensor) -> Tensor:
    """Mean over hypotheses of pi minus the angle to the nearest other one [B]; 0 for a single hypothesis.

    Args:
        quaternions: [B, H, 4] of unit length.
    """
    h = quaternions.shape[1]
    if h == 1:
        return quaternions.new_zeros(len(quaternions))
    # |q p*| has the scalar part q . p; clamped, for the arccosine has no slope at 1 (the reference's 1e-6).
    cosine = (quaternions @ quaternions.transpose(1, 2)).abs().clamp(max=1 - 1e-6)
    angle = 2 * cosine.acos() + 2 * math.pi * torch.eye(h, device=cosine.device)
    return (math.pi - angle.amin(-1)).mean(-1)


def pixel_grid(like: Tensor) -> Tensor:
    """Pixel centres [h, w, 2] (x, y) of maps [..., h, w] in the frame [-1, 1]."""
    h, w = like.shape[-2:]
    y = (torch.arange(h, device=like.device, dtype=like.dtype) + 0.5) / h * 2 - 1
    x = (torch.arange(w, device=like.device, dtype=like.dtype) + 0.5) / w * 2 - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
