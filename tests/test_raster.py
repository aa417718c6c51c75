from fractions import Fraction

import numpy as np
import pytest
import torch

from models.raster import rasterize
from sandbox.animal import animal


def _sphere(n: int = 8, seed: int = 0, size: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """A triangle soup of `size` faces over `3 * size` vertices, some of them outside the image."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.rand(n, size, 1, 3, generator=g) * 2.4 - 1.2
    vertices = centres + 0.4 * torch.randn(n, size, 3, 3, generator=g)
    return vertices.flatten(1, 2), torch.arange(3 * size).reshape(size, 3)


def _integers(values: np.ndarray) -> np.ndarray:
    """Floats as Python integers in units of 2^-120: from here on nothing is rounded."""
    return np.array([int(Fraction(float(x)) * 2**120) for x in values.ravel()], object).reshape(values.shape)


def _brute_force(vertices: torch.Tensor, faces: torch.Tensor, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Every face against every pixel in exact integers: float32 depth and face id; ties to the smallest id."""
    x, y = (_integers((np.arange(n) + 0.5) / n * 2 - 1) for n in (width, height))
    px, py = np.meshgrid(x, y)
    depth = np.full((height, width), np.inf, np.float32)
    ids = np.full((height, width), -1)
    for f, (a, b, c) in enumerate(_integers(vertices.numpy())[faces.numpy()]):
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        weights = [
            ((p[0] - px) * (q[1] - py) - (p[1] - py) * (q[0] - px)) * (1 if area > 0 else -1)
            for p, q in ((b, c), (c, a), (a, b))
        ]
        inside = np.logical_and.reduce([(w >= 0).astype(bool) for w in weights])
        z = sum(w[inside] * p[2] for w, p in zip(weights, (a, b, c), strict=True)) / (abs(area) << 120)
        z = z.astype(np.float32)
        nearer = z < depth[inside]
        ids[inside] = np.where(nearer, f, ids[inside])
        depth[inside] = np.where(nearer, z, depth[inside])
    return depth, ids


def _soup() -> tuple[torch.Tensor, torch.Tensor]:
    return _sphere(3)


def _lattice() -> tuple[torch.Tensor, torch.Tensor]:
    """Corners on pixel centres and few depths: shared and doubled edges, ties and faces without area abound."""
    g = torch.Generator().manual_seed(1)
    at = torch.randint(-2, 34, (6, 30, 2), generator=g) / 16 - 1 + 1 / 32
    return torch.cat((at, torch.randint(0, 3, (6, 30, 1), generator=g).float()), 2), torch.randint(
        0, 30, (40, 3), generator=g
    )


def _slivers() -> tuple[torch.Tensor, torch.Tensor]:
    """Faces as narrow as 2^-20 of the image, steep in depth, through pixel centres and past them by a hair."""
    g = torch.Generator().manual_seed(2)
    corners = torch.randint(-40, 40, (3, 60, 3, 3), generator=g, dtype=torch.float64) / 32 + 1 / 64
    corners[:, :, 2, :2] = (corners[:, :, 0, :2] + corners[:, :, 1, :2]) / 2
    corners[..., :2] += torch.randint(-1, 2, (3, 60, 3, 2), generator=g) / 2**20
    return corners.flatten(1, 2), torch.arange(180).reshape(60, 3)


def _side_view() -> tuple[torch.Tensor, torch.Tensor]:
    """A whole animal from the side: its mirrored halves project onto each other."""
    template = animal()
    side = torch.from_numpy(template.vertices).float()[None, :, [2, 1, 0]]
    return 0.9 * side / side.abs().max(), torch.from_numpy(template.faces).long()


@pytest.mark.parametrize(
    ("scene", "size"),
    [(_soup, 32), (_soup, (24, 40)), (_lattice, 16), (_lattice, 32), (_slivers, 32), (_slivers, 64), (_side_view, 16)],
)
def test_equals_brute_force(scene, size):
    vertices, faces = scene()
    out = rasterize(vertices, faces, size)
    h, w = (size, size) if isinstance(size, int) else size
    assert out.mask.shape == out.depth.shape == out.face_id.shape == (len(vertices), h, w)
    assert out.barycentric.shape == (len(vertices), h, w, 3)
    assert (out.mask.dtype, out.depth.dtype, out.face_id.dtype) == (torch.bool, vertices.dtype, torch.int64)
    for b in range(len(vertices)):
        depth, ids = _brute_force(vertices[b], faces, h, w)
        np.testing.assert_array_equal(out.face_id[b].numpy(), ids)
        np.testing.assert_array_equal(out.depth[b].float().numpy(), depth)
        assert (ids >= 0).any()
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


@pytest.mark.parametrize("size", [16, 64, 128])
def test_depth_gradient_of_an_animal_by_finite_differences(size):
    g = torch.Generator().manual_seed(size)
    template = animal()
    turns = torch.linalg.qr(torch.randn(2, 3, 3, generator=g, dtype=torch.float64))[0]
    vertices, faces = torch.from_numpy(template.vertices).double() @ turns, torch.from_numpy(template.faces).long()
    way, step = torch.randn(vertices.shape, generator=g, dtype=torch.float64), 1e-7
    moved = vertices.clone().requires_grad_()
    middle, low, high = (rasterize(v, faces, size) for v in (moved, vertices - step * way, vertices + step * way))
    # A pixel that changes its face jumps; there are hardly any.
    same = middle.mask & (middle.face_id == low.face_id) & (middle.face_id == high.face_id)
    assert same.sum() > 0.999 * middle.mask.sum()
    weights = torch.rand(same.shape, generator=g, dtype=torch.float64)[same]
    (gradient,) = torch.autograd.grad((middle.depth[same] * weights).sum(), moved)
    slope = ((high.depth[same] - low.depth[same]) * weights).sum() / (2 * step)
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-4, atol=1e-3)


def test_pytorch3d_draws_the_same():
    pytest.importorskip("pytorch3d", reason="pytorch3d is not installed (it has no wheels; see its guide)")
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    vertices, faces = _side_view()
    vertices = vertices @ torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    # Its x runs left and its y up, and it draws nothing behind the camera.
    frame = vertices * torch.tensor([-1.0, -1, 1]) + torch.tensor([0.0, 0, 5])
    theirs, depth, shares, _ = (
        t[..., 0, :] if t.ndim == 5 else t[..., 0] for t in rasterize_meshes(Meshes(frame, faces[None]), 64, 0.0, 1)
    )
    ours = rasterize(vertices, faces, 64)
    assert ((theirs >= 0) != ours.mask).float().mean() < 0.002
    same = ours.mask & (theirs == ours.face_id)
    assert same.sum() > 0.99 * ours.mask.sum()
    torch.testing.assert_close(depth[same] - 5, ours.depth[same], atol=1e-3, rtol=0)
    torch.testing.assert_close(shares[same], ours.barycentric[same], atol=0.02, rtol=0)


def test_bad_shapes_are_named():
    vertices, faces = _sphere(1)
    with pytest.raises(ValueError, match="vertices"):
        rasterize(vertices[0], faces, 8)
    with pytest.raises(ValueError, match="faces"):
        rasterize(vertices, faces.flatten(), 8)
    with pytest.raises(ValueError, match="size"):
        rasterize(vertices, faces, 0)
