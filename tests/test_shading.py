import numpy as np
import torch

from models.shading import LIGHT, shade, vertex_normals
from sandbox.animal import animal
from sandbox.surface import vertex_normals as numpy_normals


def test_normals_of_an_animal():
    template = animal()
    faces = torch.from_numpy(np.asarray(template.faces, np.int64))
    got = vertex_normals(torch.from_numpy(np.asarray(template.vertices, np.float64))[None], faces)[0]
    np.testing.assert_allclose(got.numpy(), numpy_normals(template.vertices, template.faces), atol=1e-6)
    alone = vertex_normals(torch.zeros(2, 4, 3), torch.tensor([[0, 1, 2]]))
    assert torch.equal(alone, torch.zeros(2, 4, 3))


def test_a_square_faces_the_light_or_not():
    # Pixel edges: the square fills the middle half of the picture exactly.
    square = torch.tensor([[-0.5, -0.5, 0.0], [-0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, -0.5, 0]])
    colors = torch.tensor([[50.0, 100.0, 200.0]]).expand(4, 3)
    front = torch.tensor([[0, 1, 2], [0, 2, 3]])
    assert vertex_normals(square[None], front)[0, 0, 2] == -1  # towards the viewer
    lit = shade(square[None], front, colors, 8)
    dark = shade(square[None], front.flip(1), colors, 8)
    assert lit.dtype == torch.uint8
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    for picture in (lit, dark):
        assert torch.equal(picture[0, ..., 3] == 255, inside)
        assert (picture[0, ~inside] == 0).all()
    share = 0.38 + 0.62 * -LIGHT[2] / np.linalg.norm(LIGHT)
    expected = torch.tensor([50.0, 100.0, 200.0]) * 1.12
    assert (lit[0, inside][:, :3] - expected * share).abs().max() <= 0.5
    assert (dark[0, inside][:, :3] - expected * 0.38).abs().max() <= 0.5


def test_edges_are_smooth_and_keep_their_colour():
    triangle = torch.tensor([[[-0.9, -0.8, 0.0], [-0.7, 0.9, 0], [0.8, 0.1, 0]]])
    colors = torch.full((3, 3), 180.0)
    picture = shade(triangle, torch.tensor([[0, 1, 2]]), colors, 16)[0].int()
    partly = (picture[..., 3] > 0) & (picture[..., 3] < 255)
    assert partly.any()
    whole = picture[picture[..., 3] == 255][:, 0].median()
    assert (picture[partly][:, 0] - whole).abs().max() <= 1


def test_batch_equals_one_by_one_and_none():
    template = animal()
    faces = torch.from_numpy(np.asarray(template.faces, np.int64))
    turns = torch.linalg.qr(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
    poses = torch.from_numpy(np.asarray(template.vertices, np.float32)) @ turns
    colors = torch.full((poses.shape[1], 3), 128.0)
    whole = shade(poses, faces, colors, 32)
    assert all(torch.equal(whole[i : i + 1], shade(poses[i : i + 1], faces, colors, 32)) for i in range(3))
    assert shade(poses[:0], faces, colors, 32).shape == (0, 32, 32, 4)
