"""The soft silhouette: areas against a fine z-buffer, gradients against differences, and what must never leak."""

import numpy as np
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


def _scanned(vertices: torch.Tensor, faces: torch.Tensor, height: int, width: int, lines: int) -> np.ndarray:
    """Shares [height, width] from the covered length of `lines` scanlines per pixel: exact along x, midpoints in y."""
    corners = (vertices[faces].numpy()[..., :2] + 1) * (width / 2, height / 2)
    out = np.zeros((height * lines, width))
    for k, y in enumerate((np.arange(height * lines) + 0.5) / lines):
        cuts = []
        for face in corners[(corners[..., 1].min(1) < y) & (corners[..., 1].max(1) > y)]:
            ends = [
                p[0] + (y - p[1]) / (q[1] - p[1]) * (q[0] - p[0])
                for p, q in zip(face, np.roll(face, -1, 0), strict=True)
                if (p[1] < y) != (q[1] < y)
            ]
            cuts.append((min(ends), max(ends)))
        seen = -np.inf
        for left, right in sorted(cuts):
            if right > seen:
                edges = np.clip([max(left, seen), right], 0, width)
                at = np.arange(width)
                out[k] += np.clip(edges[1] - at, 0, 1) - np.clip(edges[0] - at, 0, 1)
                seen = right
    return out.reshape(height, lines, width).mean(1)


@pytest.mark.parametrize("size", [16, (12, 20)])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_is_the_covered_share_of_every_pixel(n, size):
    vertices, faces = _soup(n)
    got = silhouette(vertices, faces, size)
    assert got.min() >= 0
    assert got.max() <= 1
    height, width = (size, size) if isinstance(size, int) else size
    for share, corners in zip(got, vertices, strict=True):
        off = np.abs(share.numpy() - _scanned(corners, faces, height, width, 100))
        assert off.max() < 2e-3  # that of the scanlines; with 1,600 of them it is 5e-6
        assert off.mean() < 1e-4


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_what_the_cpu_draws():
    vertices, faces = _animals(4)
    weights = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pictures, gradients = [], []
    for device in ("cpu", "cuda"):
        leaf = vertices.to(device).requires_grad_()
        drawn = rasterize(leaf, faces.to(device), 64)
        soft = silhouette(leaf, faces.to(device), 64, 1.0)
        loss = (soft * weights.to(device)).sum() + drawn.depth[drawn.mask].sum()
        gradients.append(torch.autograd.grad(loss, leaf)[0].cpu())
        pictures.append([soft.detach().cpu(), drawn.depth.detach().cpu(), drawn.face_id.cpu()])
    torch.testing.assert_close(pictures[1], pictures[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)


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


def test_pulls_a_mesh_into_a_mask():
    vertices, faces = _animals(1)
    place = torch.tensor([0.25, -0.1, 0.6], dtype=torch.float64)

    def drawn(at: torch.Tensor) -> torch.Tensor:
        return silhouette(vertices * at[2] + torch.cat((at[:2], at.new_zeros(1))), faces, 32, 1.0)

    wanted = drawn(place)
    at = torch.tensor([0.0, 0.0, 0.4], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([at], lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        (drawn(at) - wanted).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(at.detach(), place, atol=0.02, rtol=0)
