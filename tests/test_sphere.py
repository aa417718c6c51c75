"""The template on the sphere: no folds, every vertex where the table finds it, and a flow of gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rig_keypoints import RIGS, geometric_keypoints, rig_path

from models.gltf import read_glb
from models.sphere import from_uv, sphere_map, surface_points, to_uv
from models.sphere_embedding import embed_on_sphere
from models.template import Template
from sandbox.animal import animal
from tables import InputError


def folds(directions: np.ndarray, faces: np.ndarray) -> int:
    a, b, c = (directions[faces[:, i]].astype(np.float64) for i in range(3))
    return int((np.einsum("fi,fi->f", a, np.cross(b, c)) <= 0).sum())


def shares(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (points[faces[:, i]].astype(np.float64) for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return area / area.sum()


def test_the_sandbox_animal_lies_flat_on_the_sphere() -> None:
    template = animal()
    sphere = sphere_map(template)
    assert sphere_map(template) is sphere
    np.testing.assert_allclose(np.linalg.norm(sphere.directions, axis=1), 1, atol=1e-6)
    assert folds(sphere.directions, sphere.faces) == 0
    # Legs and ears must not shrink to points: a face's share of the sphere is near its share of the animal.
    ratio = np.log10(shares(sphere.directions, sphere.faces) / shares(template.vertices, sphere.faces))
    assert ratio.min() > -3
    assert np.percentile(ratio, 10) > -1.6
    # Turned so that up is up and left is left.
    assert (np.corrcoef(sphere.directions.T, template.vertices.T)[[0, 1, 2], [3, 4, 5]] > 0.3).all()


@pytest.mark.parametrize("name", RIGS)
def test_real_rigs_lie_flat_on_the_sphere(name: str) -> None:
    path = str(rig_path(name))
    sphere = sphere_map(Template.from_rig(path, geometric_keypoints(read_glb(path))))
    assert folds(sphere.directions, sphere.faces) == 0


def test_every_direction_comes_back_to_its_place() -> None:
    template = animal()
    sphere = sphere_map(template)
    tensors = [torch.from_numpy(x.copy()) for x in sphere]
    middle = torch.from_numpy(sphere.directions[sphere.faces].mean(1))
    middle = torch.nn.functional.normalize(middle, dim=-1)
    corners, weights = surface_points(middle, *tensors)
    vertices = torch.from_numpy(template.vertices.copy())
    found = (vertices[corners] * weights[..., None]).sum(-2)
    wanted = vertices[tensors[1]].mean(1)
    # Faces smaller than a cell of the table are found as a neighbour.
    off = (found - wanted).norm(dim=-1)
    assert off.median() < 0.005
    assert off.max() < 0.15
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))


def test_points_follow_directions_smoothly() -> None:
    sphere = [torch.from_numpy(x.copy()) for x in sphere_map(animal())]
    vertices = torch.from_numpy(animal().vertices.copy()).double()

    def place(raw: torch.Tensor) -> torch.Tensor:
        corners, weights = surface_points(torch.nn.functional.normalize(raw, dim=-1), sphere[0].double(), *sphere[1:])
        return (vertices[corners] * weights[..., None]).sum(-2)

    raw = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(place, raw.requires_grad_(), eps=1e-7, atol=1e-4)
    # Both poles and the seam of the uv map.
    edge = torch.tensor([[0.0, 0, 1], [0, 0, -1], [-1, 0, 0], [-1, -1e-9, 0]], dtype=torch.float64)
    assert torch.isfinite(place(edge)).all()
    torch.testing.assert_close(from_uv(to_uv(edge)), edge, atol=1e-7, rtol=0)


def test_what_cannot_be_laid_out_is_refused() -> None:
    template = animal()
    with pytest.raises(ValueError, match="genus 0"):
        embed_on_sphere(template.vertices, template.faces[1:])
    holed = Template(
        **{**{n: getattr(template, n) for n in template.__dataclass_fields__}, "faces": template.faces[1:]}
    )
    with pytest.raises(InputError, match="watertight"):
        sphere_map(holed)


def test_a_small_piece_beside_the_body_stays_out() -> None:
    template = animal()
    fields = {n: getattr(template, n) for n in template.__dataclass_fields__}
    count = len(template.vertices)
    eye = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]])
    fields["vertices"] = np.concatenate([template.vertices, eye])
    fields["weights"] = np.concatenate([template.weights, template.weights[:3]])
    fields["faces"] = np.concatenate([template.faces, [[count, count + 1, count + 2]]])
    sphere = sphere_map(Template(**fields))
    assert sphere.faces.max() < count
    assert not sphere.directions[count:].any()
