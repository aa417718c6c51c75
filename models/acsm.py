"""ACSM (Kulkarni et al. 2020) as the reference method uses it: one image -> camera, part angles, posed template.

The shape is a fixed template with articulation; keypoint training touches only the keypoint vertices.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

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
from models.template import Template


class ACSMOutput(NamedTuple):
    """What the network says of B images under H camera hypotheses.

    Attributes:
        camera: [B,H,7] weak perspective s, tx, ty, quaternion wxyz, in the network frame [-1,1].
        angles: [B,H,P] radians about each part's axis.
        keypoints: [B,H,K,2] reprojected keypoint vertices in the network frame.
        vertices: [B,H,V,3] posed template in the image frame, z away from the viewer; V is 0 if not asked for.
        prob: [B,H] probability of each hypothesis.
    """

    camera: torch.Tensor
    angles: torch.Tensor
    keypoints: torch.Tensor
    vertices: torch.Tensor
    prob: torch.Tensor

    def best(self) -> ACSMOutput:
        """The most probable hypothesis alone, H = 1."""
        index = self.prob.argmax(1)
        rows = torch.arange(len(index), device=index.device)
        return ACSMOutput(*(field[rows, index][:, None] for field in self))


class ACSM(nn.Module):
    """Image encoder with a camera head and a part head.

    Args:
        template: the animal.
        hypotheses: H cameras; 1 is the reference's setting.
        depth, width: of the ResNet trunk.
        image_size: S, pixels of the square input; at least 64.
        features: width of the fully connected layers (nz_feat).
    """

    def __init__(
        self,
        template: Template,
        hypotheses: int = 1,
        depth: int = 18,
        width: int = 64,
        image_size: int = 256,
        features: int = 200,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "hypotheses": hypotheses, "depth": depth, "width": width, "image_size": image_size, "features": features,
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
            raise ValueError(f"image_size={image_size}: use at least 64")
        squeezed = 4 * width
        self.squeeze = nn.Sequential(
            nn.Conv2d(self.backbone.channels, squeezed, 4, 2, 1), nn.BatchNorm2d(squeezed), nn.LeakyReLU(0.2)
        )
        self.encode = _layers(squeezed * cells * cells, features)
        self.camera_fc = _layers(features, features)
        self.camera_head = nn.Linear(features, hypotheses * 10)  # rotation 6, scale, translation 2, logit
        self.parts_fc = _layers(features, features)
        self.parts_head = nn.Linear(features, hypotheses * self.parts * 2)  # (cos, sin) of each angle
        self.axes = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0]]).repeat(self.parts, 1))
        for m in (*self.encode, *self.camera_fc, *self.parts_fc):
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, a=0.1)
                nn.init.zeros_(m.bias)
        with torch.no_grad():
            for head in (self.camera_head, self.parts_head):
                head.weight.normal_(0, 0.02)
                head.bias.zero_()
            self.camera_head.bias.view(hypotheses, 10)[:, :6] = _start_cameras(hypotheses)
            self.parts_head.bias.view(hypotheses, self.parts, 2)[..., 0] = 1.0

    def forward(self, images: torch.Tensor, articulate: bool = True, mesh: bool = True) -> ACSMOutput:
        """Images [B,3,S,S], ImageNet-normalised -> `ACSMOutput`.

        Args:
            articulate: False keeps the template rigid (the reference's warm-up).
            mesh: False leaves `vertices` empty and computes the keypoint vertices alone.
        """
        trunk = self.squeeze(self.backbone(images)).flatten(1)
        # Geometry stays in full precision, whatever the convolutions were computed in.
        with torch.autocast(images.device.type, enabled=False):
            return self._geometry(trunk.float(), articulate, mesh)

    def _geometry(self, trunk: torch.Tensor, articulate: bool, mesh: bool) -> ACSMOutput:
        b, h, p = len(trunk), self.hypotheses, self.parts
        features = self.encode(trunk)
        raw = self.camera_head(self.camera_fc(features)).view(b, h, 10)
        scale = 1.0 + 0.05 * raw[..., 6:7]
        camera = torch.cat([scale, raw[..., 7:9], matrix_to_quat(sixd_to_matrix(raw[..., :6]))], -1)
        prob = raw[..., 9].softmax(-1)
        turn = nn.functional.normalize(self.parts_head(self.parts_fc(features)).view(b, h, p, 2), dim=-1)
        angles = torch.atan2(turn[..., 1], turn[..., 0])
        if not articulate:
            angles = torch.zeros_like(angles)
        transforms = self.pose(angles)
        keypoints = self.place(camera, transforms, self.index)[..., :2]
        vertices = self.place(camera, transforms) if mesh else keypoints.new_zeros(b, h, 0, 3)
        return ACSMOutput(camera, angles, keypoints, vertices, prob)

    def pose(self, angles: torch.Tensor) -> torch.Tensor:
        """Part angles [...,P] -> rigid part transforms [...,P,3,4]."""
        axes = nn.functional.normalize(self.axes, dim=-1)
        return part_transforms(axes, angles, self.pivots, self.template.parents)  # type: ignore[arg-type]

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
