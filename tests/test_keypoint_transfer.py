"""Carrying keypoints from photo to photo through the template's surface."""

from __future__ import annotations

import numpy as np
import torch
from test_acsm import TEMPLATE

from models.acsm import ACSM, ACSMOutput
from models.camera import project
from models.keypoint_transfer import PAIRS, SurfaceMaps, image_pairs, surface_maps, transfer
from sandbox.animal import animal


def posed(net: ACSM, cameras: torch.Tensor) -> ACSMOutput:
    """The still template seen by cameras [N,7]."""
    vertices = project(cameras, net.vertices)[:, None]  # type: ignore[arg-type]
    n, angles = len(cameras), torch.zeros(len(cameras), 1, net.parts)
    return ACSMOutput(cameras[:, None], angles, vertices[:, :, net.index, :2], vertices, torch.ones(n, 1))  # type: ignore[index]


def test_visible_keypoints_come_where_they_are() -> None:
    net = ACSM(animal(), width=8, image_size=64, features=16)
    # Three views from the animal's left, nearer, farther and a little turned: the same points are seen in all.
    turn = torch.tensor([[0.0, 0.7071, 0, 0.7071], [0, 0.7071, 0, 0.7071], [0.0, 0.8, 0, 0.6]])
    cameras = torch.cat([torch.tensor([[0.9, 0, 0], [0.6, 0.2, -0.1], [0.8, 0, 0.1]]), turn], 1)
    out = posed(net, cameras)
    maps = surface_maps(net, out)
    assert maps.mask.any((1, 2)).all()
    names = net.template.keypoint_names
    side = "L" if out.vertices[0, 0, net.index[names.index("L_eye")], 2] < 0 else "R"  # type: ignore[index]
    seen = [
        k for k, n in enumerate(names) if n in ("Nose", "Tail", f"{side}_F_paw", f"{side}_B_paw", f"{side}_F_elbow")
    ]
    for source in range(3):
        found = transfer(out.keypoints[source, 0], maps, source, torch.arange(3))
        error = (found - out.keypoints[:, 0]).norm(dim=-1)[:, seen]
        assert error.max() < 0.08, error  # two and a half of the maps' pixels


def test_an_empty_mask_gives_nan_and_a_template_point_is_a_vertex_of_its_face() -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1, 1] = True
    maps = SurfaceMaps(torch.zeros(2, 4, 4, 3), mask)
    keypoints = torch.zeros(3, 2)
    assert transfer(keypoints, maps, 0, torch.tensor([1])).isnan().all()
    assert transfer(keypoints, maps, 1, torch.tensor([0])).isnan().all()
    np.testing.assert_allclose(transfer(keypoints, maps, 0, torch.tensor([0]))[0, 2].numpy(), [-0.25, -0.25])
    net = ACSM(TEMPLATE, width=8, image_size=64, features=16)
    found = surface_maps(net, posed(net, torch.tensor([[0.8, 0, 0, 1.0, 0, 0, 0]])))
    inside = found.points[found.mask]
    assert (inside.amax(0) <= torch.from_numpy(TEMPLATE.vertices).amax(0) + 1e-5).all()


def test_pairs_are_all_or_ten_thousand_and_never_an_image_with_itself() -> None:
    np.testing.assert_array_equal(image_pairs(3), [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]])
    assert len(image_pairs(1)) == len(image_pairs(0)) == 0
    many = image_pairs(300)
    assert len(np.unique(many, axis=0)) == len(many) == PAIRS
    assert (many[:, 0] != many[:, 1]).all()
    assert set(many.ravel()) == set(range(300))
    np.testing.assert_array_equal(many, image_pairs(300))
