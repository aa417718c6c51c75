"""Forward kinematics over a tree of parts, and linear blend skinning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from models.camera import axis_angle_to_quat, quat_to_matrix


@lru_cache(maxsize=256)
def _levels(parents: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Parts by depth, the roots first."""
    depth: list[int] = []
    for part, parent in enumerate(parents):
        if not -1 <= parent < part:
            raise ValueError(f"parents={parents}: parents[{part}] must be -1 or smaller than {part}")
        depth.append(0 if parent < 0 else depth[parent] + 1)
    return tuple(tuple(p for p, d in enumerate(depth) if d == level) for level in range(max(depth, default=-1) + 1))


def part_transforms(
    axes: Tensor, angles: Tensor, pivots: Tensor, parents: Sequence[int], root_first: bool = False
) -> Tensor:
    """Each part turned about its own axis at its own pivot, then carried by its ancestors.

    T_p = T_parent(p) L_p with L_p x = R(axis_p, angle_p) (x - pivot_p) + pivot_p: own rotation first, the root last.

    Args:
        axes: [P, 3] or [..., P, 3] rotation axes in the bind pose; their length does not matter.
        angles: [..., P] radians.
        pivots: [P, 3] bind-pose rotation centres.
        parents: P entries, parents[p] < p, or -1 for a root.
        root_first: after its own rotation a part goes through the root's and its parent's last, as animals3d has it
            (geom_utils.py:259-307); that is no kinematic chain.

    Returns:
        [..., P, 3, 4] matrices that map bind-pose points to posed points.

    Raises:
        ValueError: a parent does not come before its child, or P differs between the arguments.
    """
    levels = _levels(tuple(int(p) for p in parents))
    if not len(parents) == angles.shape[-1] == axes.shape[-2] == pivots.shape[-2]:
        sizes = f"axes {tuple(axes.shape)}, angles {tuple(angles.shape)}, pivots {tuple(pivots.shape)}"
        raise ValueError(f"parents={tuple(parents)}: its length must be the P of {sizes}")
    rotation = quat_to_matrix(axis_angle_to_quat(axes, angles))
    centre = pivots.unsqueeze(-1)
    local = torch.cat((rotation, centre - rotation @ centre), -1)
    # Stacks of views, not index tensors: an index would be a host copy, which a CUDA graph cannot hold.
    single = local.unbind(-3)
    done: dict[int, Tensor] = {p: single[p] for p in (levels[0] if levels else ())}
    carry = dict(done)  # what a part does to its children
    for level in levels[1:]:
        above = torch.stack([carry[parents[p]] for p in level], -3)
        own = torch.stack([single[p] for p in level], -3)
        turned = _after(above, own).unbind(-3)
        done.update(zip(level, turned, strict=True))
        carry.update(zip(level, _after(own, above).unbind(-3) if root_first else turned, strict=True))
    return torch.stack([done[p] for p in range(len(parents))], -3)


def _after(second: Tensor, first: Tensor) -> Tensor:
    """One rigid transform [..., 3, 4] after another."""
    turned = second[..., :3] @ first
    return torch.cat((turned[..., :3], turned[..., 3:] + second[..., 3:]), -1)


def skin(vertices: Tensor, weights: Tensor, transforms: Tensor) -> Tensor:
    """Linear blend skinning: v' = (sum_p w_vp T_p) v.

    Args:
        vertices: [V, 3] or [..., V, 3] in the bind pose; a subset of the mesh is fine.
        weights: [V, P], rows that sum to 1, for the same vertices.
        transforms: [..., P, 3, 4] from `part_transforms`.

    Returns:
        [..., V, 3]
    """
    blended = (weights @ transforms.flatten(-2)).unflatten(-1, (3, 4))
    return (blended[..., :3] * vertices.unsqueeze(-2)).sum(-1) + blended[..., 3]
