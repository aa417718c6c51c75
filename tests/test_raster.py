import numpy as np
import pytest
import torch

from models.raster import rasterize


def _sphere(n: int = 8, seed: int = 0, size: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """A triangle soup of `size` faces over `3 * size` vertices, some of them outside the image."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.rand(n, size, 1, 3, generator=g) * 2.4 - 1.2
    vertices = centres + 0.4 * torch.randn(n, size, 3, 3, generator=g)
    return vertices.flatten(1, 2), torch.arange(3 * size).reshape(size, 3)


def _brute_force(vertices, faces, height, width):
    """Point in triangle, one face at a time, in float64."""
    v = vertices.astype(np.float64)
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = (np.arange(height) + 0.5) / height * 2 - 1
    px, py = np.meshgrid(x, y)
    depth = np.full((height, width), np.inf, np.float32)
    ids = np.full((height, width), -1)
    edge = np.zeros((height, width), bool)
    for f, (a, b, c) in enumerate(v[faces]):
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        wa = ((b[0] - px) * (c[1] - py) - (b[1] - py) * (c[0] - px)) / area
        wb = ((c[0] - px) * (a[1] - py) - (c[1] - py) * (a[0] - px)) / area
        wc = 1 - wa - wb
        inside = (wa >= 0) & (wb >= 0) & (wc >= 0)
        z = (wa * a[2] + wb * b[2] + wc * c[2]).astype(np.float32)  # ties are told in float32
        nearer = inside & (z < depth)
        depth[nearer], ids[nearer] = z[nearer], f
        edge |= np.abs(np.minimum(np.minimum(wa, wb), wc)) < 1e-5
    return depth, ids, edge


@pytest.mark.parametrize("size", [64, (48, 80)])
def test_equals_brute_force(size):
    vertices, faces = _sphere(6)
    out = rasterize(vertices, faces, size)
    h, w = (size, size) if isinstance(size, int) else size
    assert out.mask.shape == out.depth.shape == out.face_id.shape == (6, h, w)
    assert out.barycentric.shape == (6, h, w, 3)
    assert (out.mask.dtype, out.depth.dtype, out.face_id.dtype) == (torch.bool, torch.float32, torch.int64)
    for b in range(6):
        depth, ids, edge = _brute_force(vertices[b].numpy(), faces.numpy(), h, w)
        sure = ~edge  # a pixel centre on an edge within float32 rounding may go either way
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(out.face_id[b].numpy()[sure], ids[sure])
        np.testing.assert_allclose(out.depth[b].numpy()[sure], depth[sure], atol=2e-4, rtol=1e-4)
        assert (out.face_id[b] >= 0).float().mean() > 0.5
    assert torch.equal(out.mask, out.face_id >= 0)


def test_barycentrics_give_back_the_pixel_centre():
    vertices, faces = _sphere(2)
    out = rasterize(vertices, faces, 40)
    corners = vertices[torch.arange(2)[:, None, None, None], faces[out.face_id.clamp(min=0)]]
    point = (out.barycentric.unsqueeze(-1) * corners).sum(-2)
    x = ((torch.arange(40) + 0.5) / 40 * 2 - 1).expand(2, 40, 40)
    torch.testing.assert_close(point[..., 0][out.mask], x[out.mask], atol=1e-3, rtol=0)
    torch.testing.assert_close(point[..., 1][out.mask], x.transpose(1, 2)[out.mask], atol=1e-3, rtol=0)
    torch.testing.assert_close(point[..., 2][out.mask], out.depth[out.mask], atol=1e-3, rtol=0)
    assert torch.isinf(out.depth[~out.mask]).all()
    assert (out.barycentric[~out.mask] == 0).all()


def test_batch_equals_one_by_one_and_repeats():
    vertices, faces = _sphere(5)
    whole = rasterize(vertices, faces, 50)
    again = rasterize(vertices, faces, 50)
    for a, b in zip(whole, again, strict=True):
        assert torch.equal(a, b)
    for i in range(5):
        for a, b in zip(whole, rasterize(vertices[i : i + 1], faces, 50), strict=True):
            assert torch.equal(a[i : i + 1], b)


def test_chunks_do_not_show(monkeypatch):
    vertices, faces = _sphere(4)
    whole = rasterize(vertices, faces, 50)
    monkeypatch.setattr("models.raster.CHUNK", 5_000)
    for a, b in zip(whole, rasterize(vertices, faces, 50), strict=True):
        assert torch.equal(a, b)


def test_a_known_triangle():
    # Covers the lower left half of a 4 x 4 image: centres with x + (-y) < 0, that is below the diagonal.
    vertices = torch.tensor([[[-1.0, -1.01, 0.5], [-1.0, 1.0, 0.5], [1.01, 1.0, 0.5]]])
    out = rasterize(vertices, torch.tensor([[0, 1, 2]]), 4)
    assert out.mask[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    torch.testing.assert_close(out.depth[out.mask], torch.full((10,), 0.5))


def test_nearest_wins_ties_go_to_the_smallest_id_and_both_windings_draw():
    square = torch.tensor([[-4.0, -2.0], [4.0, -2.0], [0.0, 5.0]])  # covers the image
    near, far = (torch.cat((square, torch.full((3, 1), z)), 1) for z in (-0.3, 0.7))
    vertices = torch.cat((far, near))[None]
    assert (rasterize(vertices, torch.tensor([[0, 1, 2], [3, 4, 5]]), 8).face_id == 1).all()
    assert (rasterize(vertices, torch.tensor([[0, 1, 2], [3, 5, 4], [3, 4, 5]]), 8).face_id == 1).all()
    assert (rasterize(vertices, torch.tensor([[5, 4, 3], [0, 1, 2]]), 8).face_id == 0).all()


def test_nothing_in_view_degenerate_and_non_finite_faces():
    away = torch.tensor([[[5.0, 5, 0], [6, 5, 0], [5, 6, 0]]])
    flat = torch.tensor([[[-0.5, -0.5, 0], [0.0, 0.0, 0], [0.5, 0.5, 0]]])
    broken = torch.tensor([[[-0.5, -0.5, 0], [float("nan"), 0.0, 0], [0.5, 0.5, 0]]])
    face = torch.tensor([[0, 1, 2]])
    for vertices, faces in [
        (away, face),
        (flat, face),
        (broken, face),
        (away, face[:0]),
        (away, face[:, :1].expand(1, 3)),
    ]:
        out = rasterize(vertices, faces, 16)
        assert not out.mask.any()
        assert (out.face_id == -1).all()
        assert torch.isinf(out.depth).all()
    assert rasterize(torch.zeros(0, 3, 3), face, 16).mask.shape == (0, 16, 16)


def test_shared_edges_leave_no_holes():
    # A fan around a point that is a pixel centre: every pixel of the square is covered.
    angle = torch.linspace(0, 2 * torch.pi, 13)[:-1]
    ring = torch.stack((3 * angle.cos(), 3 * angle.sin(), 0 * angle), 1)
    vertices = torch.cat((torch.tensor([[1 / 32, 1 / 32, 0.0]]), ring))[None]
    k = torch.arange(12)
    faces = torch.stack((torch.zeros(12, dtype=torch.long), 1 + k, 1 + (k + 1) % 12), 1)
    assert rasterize(vertices, faces, 32).mask.all()


def test_depth_gradient_by_finite_differences():
    vertices = torch.tensor([[[-0.83, -0.91, 0.1], [0.97, -0.72, 0.9], [0.05, 0.93, -0.4]]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2]])
    inside = rasterize(vertices, faces, 9).barycentric.min(-1).values > 0.02

    def total(v: torch.Tensor) -> torch.Tensor:
        return rasterize(v, faces, 9).depth[inside]

    assert inside.sum() > 10
    assert torch.autograd.gradcheck(total, vertices.requires_grad_())


def test_bad_shapes_are_named():
    vertices, faces = _sphere(1)
    with pytest.raises(ValueError, match="vertices"):
        rasterize(vertices[0], faces, 8)
    with pytest.raises(ValueError, match="faces"):
        rasterize(vertices, faces.flatten(), 8)
    with pytest.raises(ValueError, match="size"):
        rasterize(vertices, faces, 0)
