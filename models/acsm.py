"""ACSM (Kulkarni et al. 2020) as the reference method uses it: one image -> camera, part angles, posed template.

The shape is a fixed template with articulation; keypoint training touches only the keypoint vertices.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from models.animals3d_heads import Animals3dHeads
from models.articulation import part_transforms, skin
from models.camera import (
    axis_angle_to_quat,
    matrix_to_quat,
    project,
    quat_multiply,
    quat_to_matrix,
    sixd_to_matrix,
)
from models.resnet import ResNet
from models.sphere import sphere_map, surface_points
from models.surface import Surface, SurfaceHead, stages_of
from models.template import Template
from tables import InputError


class ACSMOutput(NamedTuple):
    """What the network says of B images under H camera hypotheses.

    Attributes:
        camera: [B,H,7] weak perspective s, tx, ty, quaternion wxyz, in the network frame [-1,1].
        angles: [B,H,P] radians about each part's axis.
        keypoints: [B,H,K,2] reprojected keypoint vertices in the network frame.
        vertices: [B,H,V,3] posed template in the image frame, z away from the viewer; V is 0 if not asked for.
        prob: [B,H] probability of each hypothesis.
        surface: what the map head says, None for a network without one.
        hypothesis: of `best` alone, [B]: which of the network's hypotheses each is.
    """

    camera: torch.Tensor
    angles: torch.Tensor
    keypoints: torch.Tensor
    vertices: torch.Tensor
    prob: torch.Tensor
    surface: Surface | None = None
    hypothesis: torch.Tensor | None = None

    def best(self) -> ACSMOutput:
        """The most probable hypothesis alone, H = 1."""
        index = self.prob.argmax(1)
        rows = torch.arange(len(index), device=index.device)

        def chosen(field: torch.Tensor) -> torch.Tensor:
            return field[rows, index][:, None]

        surface = self.surface and self.surface._replace(points=chosen(self.surface.points))
        camera, angles, keypoints, vertices, prob = (chosen(field) for field in self[:5])
        return ACSMOutput(camera, angles, keypoints, vertices, prob, surface, index)


class ACSM(nn.Module):
    """Image encoder with a camera head and a part head.

    Args:
        template: the animal.
        hypotheses: H cameras, each with a rotation layer of its own; 1 is the reference's setting.
        depth, width: of the ResNet trunk.
        image_size: S, pixels of the square input; at least 64. The first linear layer reads all S // 64 squared cells
            of the squeezed trunk (4096 numbers at 256 px, as the reference), so a network is made for one size: it
            says which in its configuration, and crops are resampled to it.
        features: width of the fully connected layers (nz_feat).
        surface: with the map head of the mask mode; the template's body must be watertight.
        compat: `animals3d` for the reference's heads and its order of part rotations, defects included; None for ours.

    Raises:
        InputError: the image is too small, `compat` is unknown, or the template cannot be laid out on a sphere.
    """

    def __init__(
        self,
        template: Template,
        hypotheses: int = 1,
        depth: int = 18,
        width: int = 64,
        image_size: int = 256,
        features: int = 200,
        surface: bool = False,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        if compat not in (None, "animals3d"):
            raise InputError("compat", compat, "use animals3d or null")
        self.config: dict[str, Any] = {
            "hypotheses": hypotheses, "depth": depth, "width": width, "image_size": image_size, "features": features,
            "surface": surface, "compat": compat,
        }  # fmt: skip
        self.template = template
        self.hypotheses, self.parts = hypotheses, len(template.parts)
        self.register_buffer("vertices", torch.from_numpy(np.array(template.vertices, np.float32)), persistent=False)
        self.register_buffer("weights", torch.from_numpy(np.array(template.weights, np.float32)), persistent=False)
        self.register_buffer("pivots", torch.from_numpy(np.array(template.pivots, np.float32)), persistent=False)
        index = torch.from_numpy(np.array(template.keypoints, np.int64))
        self.register_buffer("index", index, persistent=False)

        self.backbone = ResNet(depth, width)
        cells = image_size // 32 // 2
        if cells < 1:
            raise InputError("image_size", image_size, "use at least 64")
        squeezed = 4 * width
        self.squeeze = nn.Sequential(
            nn.Conv2d(self.backbone.channels, squeezed, 4, 2, 1), nn.BatchNorm2d(squeezed), nn.LeakyReLU(0.2)
        )
        self.encode = _layers(squeezed * cells * cells, features)
        self.axes = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0]]).repeat(self.parts, 1))
        self.heads: Animals3dHeads | None = None
        if compat:
            self._as_animals3d(features)
        else:
            self._as_ours(features)
        self.surface_head = SurfaceHead(self.backbone, squeezed) if surface else None
        if surface:
            sphere = sphere_map(template)
            # Kept with the weights, which mean nothing on another layout.
            self.register_buffer("sphere", torch.from_numpy(sphere.directions.copy()))
            self.register_buffer("sphere_faces", torch.from_numpy(sphere.faces.copy()))
            self.register_buffer("sphere_table", torch.from_numpy(sphere.table.copy()))

    def _as_ours(self, features: int) -> None:
        h, p = self.hypotheses, self.parts
        self.camera_fc = _layers(features, features)
        self.camera_head = nn.Linear(features, h * 10)  # rotation 6, scale, translation 2, logit
        self.parts_fc = _layers(features, features)
        self.parts_head = nn.Linear(features, h * p * 2)  # (cos, sin) of each angle
        for m in (*self.encode, *self.camera_fc, *self.parts_fc):
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, a=0.1)
                nn.init.zeros_(m.bias)
        with torch.no_grad():
            for head in (self.camera_head, self.parts_head):
                head.weight.normal_(0, 0.02)
                head.bias.zero_()
            self.camera_head.bias.view(h, 10)[:, :6] = _start_cameras(h)
            self.parts_head.bias.view(h, p, 2)[..., 0] = 1.0

    def _as_animals3d(self, features: int) -> None:
        self.heads = Animals3dHeads(features, self.hypotheses, self.parts)
        if self.hypotheses > 1:
            self.axes = nn.Parameter(self.axes.detach().repeat(self.hypotheses, 1, 1))  # each hypothesis has its own
        for m in (*self.squeeze, *self.encode):
            if isinstance(m, nn.Linear | nn.Conv2d):
                nn.init.normal_(m.weight, std=0.02)
                nn.init.zeros_(m.bias)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor, articulate: bool = True, mesh: bool = True) -> ACSMOutput:
        """Images [B,3,S,S], ImageNet-normalised -> `ACSMOutput`.

        Args:
            articulate: False keeps the template rigid (the reference's warm-up).
            mesh: False leaves `vertices` empty and computes the keypoint vertices alone.
        """
        stages = stages_of(self.backbone, images) if self.surface_head is not None and mesh else []
        trunk = self.squeeze(stages[-1] if stages else self.backbone(images)).flatten(1)
        maps = self.surface_head(stages) if self.surface_head is not None and mesh else None
        # Geometry stays in full precision, whatever the convolutions were computed in.
        with torch.autocast(images.device.type, enabled=False):
            out = self._geometry(trunk.to(self.axes.dtype), articulate, mesh)
            return out if maps is None else out._replace(surface=self._surface(maps[0], maps[1], out.vertices))

    def _geometry(self, trunk: torch.Tensor, articulate: bool, mesh: bool) -> ACSMOutput:
        camera, prob, angles = (self.heads or self._heads)(self.encode(trunk))
        if not articulate:
            angles = torch.zeros_like(angles)
        transforms = self.pose(angles)
        keypoints = self.place(camera, transforms, self.index)[..., :2]
        vertices = self.place(camera, transforms) if mesh else keypoints.new_zeros(*keypoints.shape[:2], 0, 3)
        return ACSMOutput(camera, angles, keypoints, vertices, prob)

    def _heads(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features [B,F] -> camera [B,H,7], probabilities [B,H], angles [B,H,P]."""
        b, h, p = len(features), self.hypotheses, self.parts
        raw = self.camera_head(self.camera_fc(features)).view(b, h, 10)
        scale = 1.0 + 0.05 * raw[..., 6:7]
        camera = torch.cat([scale, raw[..., 7:9], matrix_to_quat(sixd_to_matrix(raw[..., :6]))], -1)
        turn = nn.functional.normalize(self.parts_head(self.parts_fc(features)).view(b, h, p, 2), dim=-1)
        return camera, raw[..., 9].softmax(-1), torch.atan2(turn[..., 1], turn[..., 0])

    def _surface(self, raw: torch.Tensor, logits: torch.Tensor, vertices: torch.Tensor) -> Surface:
        """The maps, and where their points project to: a projection is affine, so corners are enough."""
        directions = nn.functional.normalize(raw.to(vertices.dtype), dim=-1)
        corners, weights = self.on_template(directions)
        b, h, w, _ = corners.shape
        at = corners.view(b, 1, h * w * 3, 1).expand(-1, vertices.shape[1], -1, 3)
        taken = vertices.gather(2, at).view(b, -1, h, w, 3, 3)
        return Surface(directions, logits.to(vertices.dtype), (taken * weights[:, None, ..., None]).sum(-2))

    def on_template(self, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Corners [...,3] and weights [...,3] of the template's points at unit directions [...,3] of its sphere."""
        return surface_points(directions, self.sphere, self.sphere_faces, self.sphere_table)  # type: ignore[arg-type]

    def pose(self, angles: torch.Tensor, hypothesis: int | None = None) -> torch.Tensor:
        """Part angles [...,P] -> rigid part transforms [...,P,3,4].

        Args:
            hypothesis: whose angles they are, where each has axes of its own (several of animals3d's); None: [...,H,P].
        """
        axes = self.axes if hypothesis is None or self.axes.ndim == 2 else self.axes[hypothesis]
        axes = nn.functional.normalize(axes, dim=-1)
        root_first = self.heads is not None
        return part_transforms(axes, angles, self.pivots, self.template.parents, root_first)  # type: ignore[arg-type]

    def place(self, camera: torch.Tensor, transforms: torch.Tensor, index: Any = None) -> torch.Tensor:
        """Posed vertices (all, or those of `index`) in the image frame [...,V,3]."""
        vertices: Any = self.vertices if index is None else self.vertices[index]  # type: ignore[index]
        weights: Any = self.weights if index is None else self.weights[index]  # type: ignore[index]
        return project(camera, skin(vertices, weights, transforms))


def _layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LeakyReLU(0.1), nn.Linear(outputs, outputs), nn.LeakyReLU(0.1))


def _start_cameras(hypotheses: int) -> torch.Tensor:
    """Upright views spread evenly in azimuth, as two matrix columns [H,6]; the first looks at the animal's face.

    From there the way to a left and to a right view is equally long.
    """
    face = torch.tensor([0.0, 1.0, 0.0, 0.0])
    azimuth = torch.arange(hypotheses) * (2 * math.pi / hypotheses)
    up = torch.tensor([0.0, 1.0, 0.0]).expand(hypotheses, 3)
    matrix = quat_to_matrix(quat_multiply(face.expand(hypotheses, 4), axis_angle_to_quat(up, azimuth)))
    return matrix[..., :2].transpose(-1, -2).reshape(hypotheses, 6)
