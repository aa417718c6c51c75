"""The soft silhouette: areas against a fine z-buffer, gradients against differences, and what must never leak."""

import pytest
import torch

from models import silhouette
from models.raster import rasterize
from sandbox.animal import animal


def _soup(n: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Triangles of all sizes through each other, some outside the image."""
    g = torch.Generator().manual_seed(n)
    centres = torch.rand(batch, n, 1, 3, generator=g, dtype=torch.float64) * 2.4 - 1.2
    corners = centres + 0.4 * torch.randn(batch, n, 3, 3, generator=g, dtype=torch.float64)
    return corners.flatten(1, 2), torch.arange(3 * n).reshape(n, 3)


def _animals(batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The sandbox's animal seen from anywhere."""
    template = animal()
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(batch, 3, 3, generator=g, dtype=torch.float64))[0]
    shape = torch.from_numpy(template.vertices).double()
    return 0.8 * shape / shape.norm(dim=1).max() @ turn, torch.from_numpy(template.faces).long()


def _sampled(vertices: torch.Tensor, faces: torch.Tensor, size: int, finer: int) -> torch.Tensor:
    """Share of `finer` x `finer` samples of every pixel that the z-buffer covers."""
    mask = rasterize(vertices, faces, size * finer).mask.double()
    return mask.reshape(len(mask), size, finer, size, finer).mean((2, 4))


@pytest.mark.parametrize("n", [1, 7, 60])
def test_is_the_covered_share_of_every_pixel(n):
    vertices, faces = _soup(n)
    got = silhouette(vertices, faces, 32)
    assert got.min() > -1e-12
    assert got.max() < 1 + 1e-12
    assert (got - _sampled(vertices, faces, 32, 32)).abs().max() < 0.02
    wide = silhouette(vertices, faces, (16, 48))
    mask = rasterize(vertices, faces, (16 * 32, 48 * 32)).mask.double().reshape(3, 16, 32, 48, 32)
    assert (wide - mask.mean((2, 4))).abs().max() < 0.02


def test_an_animal_and_its_mask():
    vertices, faces = _animals(4)
    got = silhouette(vertices, faces, 64)
    assert (got - _sampled(vertices, faces, 64, 16)).abs().max() < 0.04
    assert ((got > 0.5) != rasterize(vertices, faces, 64).mask).float().mean() < 0.01


def test_mirrored_halves_that_coincide_leave_no_streaks():
    # Seen exactly from the side, the outlines of left and right limbs lie on each other.
    template = animal()
    side = torch.from_numpy(template.vertices).double()[None, :, [2, 1, 0]]
    faces = torch.from_numpy(template.faces).long()
    got = silhouette(0.9 * side / side.abs().max(), faces, 64)
    assert (got - _sampled(0.9 * side / side.abs().max(), faces, 64, 16)).abs().max() < 0.04


def test_whole_numbers_everywhere():
    # Vertices on pixel corners: horizontal, vertical and shared edges, faces without area, crossings on vertices.
    g = torch.Generator().manual_seed(0)
    vertices = torch.randint(-1, 10, (6, 40, 3), generator=g).double() / 4 - 1
    faces = torch.randint(0, 40, (30, 3), generator=g)
    got = silhouette(vertices, faces, 8)
    assert (got - _sampled(vertices + 1e-5, faces, 8, 32)).abs().max() < 0.04
    square = torch.tensor([[[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]]], dtype=torch.float64)
    square.requires_grad_()
    area = silhouette(square, torch.tensor([[0, 1, 2], [0, 2, 3]]), 5)
    share = torch.tensor([0, 0.75, 1, 0.75, 0], dtype=torch.float64)
    torch.testing.assert_close(area[0], share[:, None] * share, atol=1e-7, rtol=0)
    (gradient,) = torch.autograd.grad(area.sum() * (2 / 5) ** 2, square)
    torch.testing.assert_close(gradient, square.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.0, 0.7])
@pytest.mark.parametrize("size", [8, 16, 32])
def test_gradient_by_finite_differences(size, sigma):
    vertices, faces = _animals(1)
    g = torch.Generator().manual_seed(1)
    weights = torch.rand(size, size, generator=g, dtype=torch.float64)
    way = torch.randn(4, *vertices.shape, generator=g, dtype=torch.float64)

    def total(v: torch.Tensor) -> torch.Tensor:
        return (silhouette(v, faces, size, sigma) * weights).sum()

    moved = vertices.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(moved), moved)
    assert gradient[..., 2].abs().max() == 0
    for step in way:
        slope = (total(vertices + 1e-6 * step) - total(vertices - 1e-6 * step)) / 2e-6
        assert (slope - (gradient * step).sum()).abs() < 1e-4 * slope.abs().clamp(min=1)


def test_blur_keeps_the_area_and_knows_what_is_outside():
    vertices, faces = _animals(2)
    sharp, soft = silhouette(vertices, faces, 48), silhouette(vertices, faces, 48, 1.5)
    torch.testing.assert_close(soft.sum((1, 2)), sharp.sum((1, 2)), rtol=1e-3, atol=0)
    assert ((soft > 0.01) & (soft < 0.99)).sum() > 1.5 * ((sharp > 0.01) & (sharp < 0.99)).sum()
    # A triangle over the whole image and beyond: no dark border.
    covering = torch.tensor([[[-9.0, -9, 0], [9, -9, 0], [0, 30, 0]]])
    torch.testing.assert_close(silhouette(covering, torch.tensor([[0, 1, 2]]), 9, 2.0), torch.ones(1, 9, 9))


def test_batch_equals_one_by_one_and_float32():
    vertices, faces = _animals(5)
    whole = silhouette(vertices, faces, 40, 1.0)
    for i in range(5):
        torch.testing.assert_close(whole[i : i + 1], silhouette(vertices[i : i + 1], faces, 40, 1.0))
    single = silhouette(vertices.float(), faces, 40, 1.0)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, whole.float(), atol=1e-4, rtol=0)


def test_chunks_do_not_show(monkeypatch):
    vertices, faces = _soup(30)
    whole = silhouette(vertices, faces, 32)
    monkeypatch.setattr("models.outline._PAIRS", 1)
    assert torch.equal(silhouette(vertices, faces, 32), whole)


def test_nothing_in_view_degenerate_and_non_finite_faces():
    face = torch.tensor([[0, 1, 2]])
    for corners in (
        [[5.0, 5, 0], [6, 5, 0], [5, 6, 0]],
        [[-0.5, -0.5, 0], [0.0, 0.0, 0], [0.5, 0.5, 0]],
        [[-0.5, -0.5, 0], [float("nan"), 0.0, 0], [0.5, 0.5, 0]],
        [[-0.5, -0.5, 0], [0.5, 0.0, float("inf")], [0.5, 0.5, 0]],
    ):
        vertices = torch.tensor([corners], requires_grad=True)
        out = silhouette(vertices, face, 16, 1.0)
        assert out.abs().max() < 1e-6
        (gradient,) = torch.autograd.grad(out.sum(), vertices)
        assert gradient.isfinite().all()
    assert silhouette(torch.zeros(1, 3, 3), face[:0], 16).shape == (1, 16, 16)
    assert silhouette(torch.zeros(0, 3, 3), face, 16, 1.0).shape == (0, 16, 16)
    huge = torch.tensor([[[-1e30, -1e30, 0.0], [1e30, -1e30, 0], [0, 1e30, 0]]])
    torch.testing.assert_close(silhouette(huge, face, 4), torch.ones(1, 4, 4), atol=1e-3, rtol=0)


def test_bad_arguments_are_named():
    vertices, faces = _soup(1)
    with pytest.raises(ValueError, match="vertices"):
        silhouette(vertices[0], faces, 8)
    with pytest.raises(ValueError, match="faces"):
        silhouette(vertices, faces + 1, 8)
    with pytest.raises(ValueError, match="sigma"):
        silhouette(vertices, faces, 8, -1.0)
