import math

import pytest
import torch

from models.articulation import part_transforms, skin
from models.camera import axis_angle_to_quat, quat_to_matrix

PARENTS = (-1, 0, 1, 0, 0)


def _random(batch: tuple[int, ...], parts: int = 5):
    g = torch.Generator().manual_seed(4)
    axes = torch.randn(parts, 3, generator=g, dtype=torch.float64)
    pivots = torch.randn(parts, 3, generator=g, dtype=torch.float64)
    angles = torch.randn(*batch, parts, generator=g, dtype=torch.float64)
    return axes, angles, pivots


def _walk(part, point, axes, angles, pivots):
    """One point through the chain by hand: own rotation first, the root last."""
    while part >= 0:
        r = quat_to_matrix(axis_angle_to_quat(axes[part], angles[part]))
        point = r @ (point - pivots[part]) + pivots[part]
        part = PARENTS[part]
    return point


def test_zero_angles_are_the_identity():
    axes, _, pivots = _random(())
    t = part_transforms(axes, torch.zeros(2, 5, dtype=torch.float64), pivots, PARENTS)
    eye = torch.eye(3, 4, dtype=torch.float64).expand(2, 5, 3, 4)
    torch.testing.assert_close(t, eye)


def test_chain_by_hand():
    # Upper arm from 0 to x=1, lower arm from x=1 to x=2; both bend by 90 degrees about z.
    axes = torch.tensor([[0.0, 0, 1], [0, 0, 1]])
    pivots = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    t = part_transforms(axes, torch.full((2,), math.pi / 2), pivots, (-1, 0))
    posed = skin(torch.tensor([[1.0, 0, 0], [2, 0, 0]]), torch.eye(2), t)
    torch.testing.assert_close(posed, torch.tensor([[0.0, 1, 0], [-1, 1, 0]]), atol=1e-6, rtol=0)


def test_matches_a_walk_up_the_tree_for_batches_and_hypotheses():
    axes, angles, pivots = _random((3, 2))
    t = part_transforms(axes, angles, pivots, PARENTS)
    assert t.shape == (3, 2, 5, 3, 4)
    points = torch.randn(5, 3, dtype=torch.float64)
    posed = skin(points, torch.eye(5, dtype=torch.float64), t)
    for b, h, p in [(0, 0, 2), (1, 1, 2), (2, 0, 4), (2, 1, 1), (0, 1, 0)]:
        torch.testing.assert_close(posed[b, h, p], _walk(p, points[p], axes, angles[b, h], pivots))


def test_skin_blends_linearly_and_takes_subsets():
    axes, angles, pivots = _random((4,))
    t = part_transforms(axes, angles, pivots, PARENTS)
    v = torch.randn(20, 3, dtype=torch.float64)
    w = torch.rand(20, 5, dtype=torch.float64)
    w /= w.sum(-1, keepdim=True)
    whole = skin(v, w, t)
    single = torch.stack([skin(v, torch.eye(5, dtype=torch.float64)[[p] * 20], t) for p in range(5)], -1)
    torch.testing.assert_close(whole, (single * w[None, :, None, :]).sum(-1))
    subset = torch.tensor([3, 17, 5])
    torch.testing.assert_close(skin(v[subset], w[subset], t), whole[:, subset])
    torch.testing.assert_close(skin(v.expand(4, 20, 3), w, t), whole)


def test_gradients_reach_axes_and_angles():
    axes, angles, pivots = _random((2,))
    axes.requires_grad_()
    angles.requires_grad_()
    v = torch.randn(5, 3, dtype=torch.float64)

    def posed(a, x):
        return skin(v, torch.eye(5, dtype=torch.float64), part_transforms(a, x, pivots, PARENTS))

    assert torch.autograd.gradcheck(posed, (axes, angles))


@pytest.mark.parametrize("parents", [(0, -1), (-1, 2, 0), (-1, 0)])
def test_bad_trees_are_named(parents):
    n = 3 if parents == (-1, 0) else len(parents)
    with pytest.raises(ValueError, match="parents="):
        part_transforms(torch.eye(3)[:n], torch.zeros(n), torch.zeros(n, 3), parents)
