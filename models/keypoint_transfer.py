"""Keypoint transfer (Kulkarni et al. 2019): carry keypoints from one photo to another through the template's surface.

Each pixel of an animal shows a point of the template; a keypoint goes to the other photo's pixel that shows the
nearest one. Needs no keypoint on the template, so it tells how well the surface itself is placed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.acsm import ACSM, ACSMOutput
from models.mask_losses import pixel_grid
from models.raster import rasterize

PIXELS = 64  # side of the maps that are drawn from a mesh
PAIRS = 10_000  # at most (the ancestor's number_pairs)


class SurfaceMaps(NamedTuple):
    """What the pixels of N images show.

    Attributes:
        points: [N, h, w, 3] points of the template in its own frame and pose.
        mask: [N, h, w] bool, where there is one.
    """

    points: Tensor
    mask: Tensor


def surface_maps(net: ACSM, out: ACSMOutput) -> SurfaceMaps:
    """Maps of the best hypothesis [N, 1, ...]: the map head's where the network has one, else of the posed mesh."""
    if out.surface is not None:
        corners, weights = net.on_template(out.surface.directions)
        mask = out.surface.logits > 0
    else:
        faces = torch.from_numpy(np.array(net.template.faces, np.int64)).to(out.vertices.device)
        drawn = rasterize(out.vertices[:, 0], faces, PIXELS)
        corners, weights, mask = faces[drawn.face_id.clamp(min=0)], drawn.barycentric, drawn.mask
    template: Tensor = net.vertices  # type: ignore[assignment]
    return SurfaceMaps((template[corners] * weights[..., None]).sum(-2), mask)


def transfer(keypoints: Tensor, maps: SurfaceMaps, source: int, targets: Tensor) -> Tensor:
    """Keypoints of one image carried to others: [T, K, 2] in the network's frame, NaN where a mask is empty.

    The template's point under a keypoint is that of the nearest pixel of its image's mask.

    Args:
        keypoints: [K, 2] of the source image in the network's frame.
        source: index of an image; targets: [T] indices.
    """
    middle = pixel_grid(maps.mask.float()).flatten(0, 1)  # [h w, 2]
    mask, points = maps.mask.flatten(1), maps.points.flatten(1, 2)
    if not bool(mask[source].any()):
        return torch.full((len(targets), *keypoints.shape), torch.nan, device=mask.device)
    nearest = torch.cdist(keypoints, middle).masked_fill(~mask[source], torch.inf).argmin(-1)
    distance = torch.cdist(points[source][nearest].expand(len(targets), -1, -1), points[targets])  # [T, K, h w]
    found = middle[distance.masked_fill(~mask[targets, None], torch.inf).argmin(-1)]
    return torch.where(mask[targets].any(-1)[:, None, None], found, torch.nan)


def image_pairs(count: int, seed: int = 0) -> np.ndarray:
    """Ordered pairs [M, 2] of different images, sorted: all of them, or `PAIRS` chosen at random."""
    total = count * max(0, count - 1)
    code = np.arange(total)
    if total > PAIRS:
        code = np.sort(np.random.default_rng(seed).choice(total, PAIRS, replace=False))
    source, other = np.divmod(code, max(1, count - 1))
    return np.stack([source, other + (other >= source)], 1)
