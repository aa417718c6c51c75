"""Weak-perspective cameras [..., 7] = (s, tx, ty, qw, qx, qy, qz) and the quaternions inside them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def quat_to_matrix(q: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of wxyz quaternions [..., 4]; norm and sign do not matter.

    R v = q (0, v) q*, written out. A zero quaternion gives the identity.
    """
    w, x, y, z = normalize(q, dim=-1).unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    xy, xz, yz, wx, wy, wz = x * y, x * z, y * z, w * x, w * y, w * z
    entries = (
        1 - 2 * (yy + zz), 2 * (xy - wz), 2 * (xz + wy),
        2 * (xy + wz), 1 - 2 * (xx + zz), 2 * (yz - wx),
        2 * (xz - wy), 2 * (yz + wx), 1 - 2 * (xx + yy),
    )  # fmt: skip
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product a b [..., 4] of wxyz quaternions: rotate by b first, then by a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        -1,
    )


def axis_angle_to_quat(axis: Tensor, angle: Tensor) -> Tensor:
    """Unit wxyz quaternions [..., 4] of a rotation by `angle` [...] radians about `axis` [..., 3].

    The axis need not be of unit length. A right-handed rotation; the two broadcast against each other.
    """
    half = 0.5 * angle
    vector = normalize(axis, dim=-1) * half.sin().unsqueeze(-1)
    scalar = half.cos().unsqueeze(-1).expand(*vector.shape[:-1], 1)
    return torch.cat((scalar, vector), -1)


def project(camera: Tensor, points: Tensor) -> Tensor:
    """Weak perspective: x, y = s (R X)_xy + t, and depth z = s (R X)_z.

    As animals3d geom_utils.py:223-236, without its depth offset.

    Args:
        camera: [..., 7] (s, tx, ty, wxyz quaternion), in the units wanted for x and y.
        points: [..., V, 3] in the template frame; leading dimensions broadcast.

    Returns:
        [..., V, 3]: x right, y down, z away from the viewer.
    """
    scale, shift = camera[..., :1], camera[..., 1:3]
    matrix = quat_to_matrix(camera[..., 3:7]) * scale.unsqueeze(-1)
    offset = torch.cat((shift, torch.zeros_like(scale)), -1)
    return points @ matrix.transpose(-1, -2) + offset.unsqueeze(-2)


def mirror_camera(camera: Tensor) -> Tensor:
    """The camera [..., 7] of the mirrored photo, seeing the animal with left and right exchanged.

    With D = diag(-1, 1, 1): R(q') = D R(q) D, so a template symmetric about x = 0 projects to the mirror image.
    """
    s, tx, ty, qw, qx, qy, qz = camera.unbind(-1)
    return torch.stack((s, -tx, ty, qw, qx, -qy, -qz), -1)


def matrix_to_quat(matrix: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [...,3,3] -> unit quaternions [...,4] wxyz with smooth gradients.

    Each component in turn can be the divisor; the largest is taken (Shepperd 1978), so nothing is divided by a small
    number.
    """
    m = matrix
    d0, d1, d2 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = torch.stack([1 + d0 + d1 + d2, 1 + d0 - d1 - d2, 1 - d0 + d1 - d2, 1 - d0 - d1 + d2], -1)  # 4 q_i^2
    a = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    b = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    rows = torch.stack(
        [
            torch.stack([squares[..., 0], a[0], a[1], a[2]], -1),
            torch.stack([a[0], squares[..., 1], b[0], b[1]], -1),
            torch.stack([a[1], b[0], squares[..., 2], b[2]], -1),
            torch.stack([a[2], b[1], b[2], squares[..., 3]], -1),
        ],
        -2,
    )  # [...,4,4]: row i is 4 q_i q
    index = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    return torch.nn.functional.normalize(rows.gather(-2, index)[..., 0, :], dim=-1)


def sixd_to_matrix(raw: torch.Tensor) -> torch.Tensor:
    """Six numbers [...,6] -> rotation matrices [...,3,3] by Gram-Schmidt on two columns (Zhou et al. 2019).

    Unlike four numbers normalised to a quaternion this has no seam: near views have near numbers all the way round.
    """
    x = torch.nn.functional.normalize(raw[..., :3], dim=-1)
    y = raw[..., 3:] - (x * raw[..., 3:]).sum(-1, keepdim=True) * x
    y = torch.nn.functional.normalize(y, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y, dim=-1)], -1)
