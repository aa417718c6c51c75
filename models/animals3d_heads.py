"""Camera and part heads exactly as animals3d has them (its camera.py), for its weights and for comparison.

All hypotheses and parts go through grouped layers at once. One thing is kept although it is wrong: the multiplex turns
its cameras by the first three features, and never asks the layer that was meant to predict the angles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.animals3d import AXES
from models.camera import axis_angle_to_quat, matrix_to_quat, quat_multiply

FROM_OURS = matrix_to_quat(torch.from_numpy(AXES.T).float())  # our template's axes -> the reference's
EULER_RANGE = (30.0, 60.0, 60.0)  # degrees of azimuth, elevation and cyclo-rotation about each camera's own start


class Grouped(nn.Module):
    """G linear layers side by side: [B, G or 1, inputs] -> [B, G, outputs]."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs).normal_(0, 0.02))
        self.bias = nn.Parameter(torch.zeros(groups, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("goi,bgi->bgo", self.weight, x.expand(-1, len(self.weight), -1)) + self.bias


def grouped_layers(groups: int, features: int) -> nn.Sequential:
    """Two grouped layers, each with its activation (the reference's `fc_stack`)."""
    first, second = (Grouped(groups, features, features) for _ in range(2))
    return nn.Sequential(first, nn.LeakyReLU(0.1), second, nn.LeakyReLU(0.1))


class Animals3dHeads(nn.Module):
    """Features [B, F] -> camera [B, H, 7], probabilities [B, H], angles [B, H, P]."""

    starts: Tensor

    def __init__(self, features: int, hypotheses: int, parts: int) -> None:
        super().__init__()
        self.hypotheses, self.parts = hypotheses, parts
        self.fc = grouped_layers(1, features)
        self.camera_fc = grouped_layers(hypotheses, features)
        self.rotation = Grouped(hypotheses, features, 4 if hypotheses == 1 else 3)
        self.prob = Grouped(hypotheses, features, 1)
        self.scale = Grouped(hypotheses, features, 1)
        self.shift = Grouped(hypotheses, features, 2)
        self.parts_fc = grouped_layers(hypotheses, features)
        self.part_fc = grouped_layers(hypotheses * parts, features)
        self.angle = Grouped(hypotheses * parts, features, 2)
        with torch.no_grad():
            self.angle.bias[:, 0] = 1.0
        # From the front, and on by 45 degrees each: in the reference's axes the first is a turn of 90 degrees about x.
        # (It writes these quaternions with four digits.)
        x, y = torch.eye(3)[:2]
        front = quat_multiply(axis_angle_to_quat(x, torch.tensor(math.pi / 2)), FROM_OURS)
        starts = [front]
        for _ in range(1, hypotheses):
            starts.append(quat_multiply(axis_angle_to_quat(y, torch.tensor(math.pi / 4)), starts[-1]))
        self.register_buffer("starts", torch.stack(starts), persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, h, p = len(features), self.hypotheses, self.parts
        f = self.fc(features[:, None])
        camera = self.camera_fc(f)  # [B, H, F]
        if h == 1:
            rotation = nn.functional.normalize(self.rotation(camera), dim=-1)
            prob = camera.new_ones(b, 1)
        else:
            rotation = quat_multiply(euler_to_quat(torch.tanh(camera[..., :3])), self.starts.expand(b, h, 4))
            prob = self.prob(camera)[..., 0].softmax(-1)
        scale = 1.0 + 0.05 * self.scale(camera)
        parts = self.parts_fc(f).repeat_interleave(p, 1)  # [B, H P, F]
        turn = nn.functional.normalize(self.angle(self.part_fc(parts)), dim=-1).view(b, h, p, 2)
        angles = torch.atan2(turn[..., 1], turn[..., 0])
        return torch.cat([scale, self.shift(camera), rotation], -1), prob, angles


def euler_to_quat(turn: Tensor) -> Tensor:
    """Shares [..., 3] in [-1, 1] of `EULER_RANGE` -> quaternions q_cyclo q_elevation q_azimuth, about z, x and y."""
    axes = torch.eye(3, dtype=turn.dtype, device=turn.device)
    azimuth, elevation, cyclo = (turn * turn.new_tensor(EULER_RANGE) * (math.pi / 180)).unbind(-1)
    q = quat_multiply(axis_angle_to_quat(axes[0], elevation), axis_angle_to_quat(axes[1], azimuth))
    return quat_multiply(axis_angle_to_quat(axes[2], cyclo), q)
