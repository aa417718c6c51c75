"""ACSM's mask mode: keypoints, and what a mask says of camera, articulation and surface. Needs no Ray.

Source: A-CSM (Kulkarni et al., CVPR 2020); in animals3d: network.py:382-482, 525-534.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from models.acsm import ACSM, ACSMOutput
from models.crops import apply_affine, invert_affine
from models.mask_losses import (
    consistency_loss,
    coverage_loss,
    cycle_loss,
    entropy_loss,
    rotation_loss,
    segmentation_loss,
    visibility_loss,
)
from models.outline import silhouette
from models.raster import rasterize
from trainers.data import Instances
from trainers.masks import MaskTargets
from trainers.stepper import Drawn
from trainers.steps import ACSMTask, shares

REFERENCE_PIXELS = 128  # of the reference's 256 px crop for one unit of the frame [-1,1]; its distances are in pixels


class MaskTask(ACSMTask):
    """Keypoint reprojection and the mask losses of A-CSM; an instance without a mask gives the former alone.

    Args:
        targets: masks of the instances, one at least.
        losses: weight of each loss; `keypoints_first`: share of the steps, the first, on keypoints alone (a mesh that
            faces the wrong way cannot turn round once it has to cover a mask); `warm_up`: for this share of the steps
            after them cycle, visibility and entropy do not count and all hypotheses are equally probable.
    """

    replay = False  # how many pixels the mesh covers decides what runs

    def __init__(
        self,
        model: ACSM,
        data: Instances,
        image_size: int,
        augment: Mapping[str, float],
        device: str,
        targets: MaskTargets,
        losses: Mapping[str, float],
        **kwargs: Any,
    ) -> None:
        super().__init__(model, data, image_size, augment, device, **kwargs)
        self.losses = {name: float(weight) for name, weight in losses.items()}
        self.keypoints_first, self.warm_up = self.losses.pop("keypoints_first"), self.losses.pop("warm_up")
        self.place = torch.from_numpy(targets.place)
        self.contours = torch.from_numpy(targets.contours)
        self.masks = torch.from_numpy(targets.masks).to(device)
        self.distances = torch.from_numpy(targets.distances).to(device)
        self.faces = torch.from_numpy(np.array(model.template.faces, np.int64)).to(device)

    def phase(self, progress: float) -> Hashable:
        with_masks = progress - self.keypoints_first
        return progress >= self.rigid, with_masks >= 0, with_masks < self.warm_up

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        drawn = super().draw(index, generator)
        place = self.place[index]
        contour = apply_affine(invert_affine(drawn["matrix"]), self.contours[place.clamp(min=0)])
        return {**drawn, "mask": place, "contour": contour, "count": shares(int((place >= 0).sum()), len(index))}

    def loss(self, drawn: Drawn, phase: Hashable) -> torch.Tensor:
        parts = self.parts(drawn, phase)
        self.terms = {name: part.detach() for name, part in parts.items()}
        return torch.stack(list(parts.values())).sum()

    def parts(self, drawn: Drawn, phase: Hashable) -> dict[str, torch.Tensor]:
        """Each loss with its weight; they sum to `loss`."""
        articulate, with_masks, warm = cast(tuple[bool, bool, bool], phase)
        if not with_masks:
            return {"keypoints": super().loss(drawn, articulate)}
        out = self.model(self.images(drawn), articulate=articulate, mesh=True)
        # Geometry stays in full precision, as in the network.
        with torch.autocast(out.camera.device.type, enabled=False):
            if warm:
                out = out._replace(prob=torch.full_like(out.prob, 1 / out.prob.shape[1]))
            weighted = dict(self.losses)
            if warm:
                weighted |= {"cycle": 0.0, "visibility": 0.0, "entropy": 0.0}
            found = self._mask_losses(out, drawn)
            return {"keypoints": self.reprojection(out, drawn)} | {n: w * found[n] for n, w in weighted.items()}

    def _mask_losses(self, out: ACSMOutput, drawn: Drawn) -> dict[str, torch.Tensor]:
        surface: Any = out.surface
        known = drawn["mask"] >= 0
        mask, distance = self._seen(drawn, surface.logits.shape[-1])
        b, h = out.prob.shape
        flat, size = out.vertices.flatten(0, 1), mask.shape[-1]
        depth = rasterize(flat, self.faces, size).depth.view(b, h, size, size)
        drawn_mask = silhouette(flat, self.faces, size).view(b, h, size, size)

        def expected(losses: torch.Tensor) -> torch.Tensor:
            return (losses * out.prob).sum(1)

        of_image = {
            "cycle": expected(cycle_loss(surface.points[..., :2], mask)),
            "visibility": expected(visibility_loss(surface.points, depth, mask)),
            "coverage": coverage_loss(out.vertices[..., :2], drawn["contour"]).mean(1),
            "consistency": consistency_loss(drawn_mask, distance).mean(1),
            "segmentation": segmentation_loss(surface.logits, mask),
        }
        count = drawn["count"].sum().to(mask.dtype)
        found = {name: torch.where(known, losses, 0.0).sum() / count for name, losses in of_image.items()}
        found["entropy"] = entropy_loss(out.prob).mean()
        found["rotation"] = rotation_loss(out.camera[..., 3:]).mean()
        return found

    def _seen(self, drawn: Drawn, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks in {0,1} and distances [B,size,size] as the network sees them; distances in the reference's pixels."""
        b, matrix, place = len(drawn["matrix"]), drawn["matrix"], drawn["mask"].clamp(min=0)
        grid = nn.functional.affine_grid(matrix, [b, 1, size, size], align_corners=False)
        mask = nn.functional.grid_sample(self.masks[place, None].to(matrix.dtype), grid, align_corners=False)
        distance = nn.functional.grid_sample(
            self.distances[place, None].to(matrix.dtype), grid, padding_mode="border", align_corners=False
        )
        zoom = torch.linalg.det(matrix[:, :, :2]).abs().sqrt()[:, None, None]
        return (mask[:, 0] > 0.5).to(matrix.dtype), distance[:, 0] * REFERENCE_PIXELS / zoom
