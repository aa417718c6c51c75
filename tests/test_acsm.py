"""The 3D network: geometry against the template, gradients, overfitting, and its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors

from models.acsm import ACSM, ACSMOutput
from models.articulation import part_transforms
from models.camera import quat_to_matrix
from models.checkpoint import checkpoint_bytes, load_checkpoint, weights_digest
from models.gltf import read_glb
from models.heatmap import Detector, PoseNet
from models.losses import keypoint_loss
from models.template import Template
from pipelines.posed_mesh import write_posed
from tables import QUADRUPED, InputError


def toy_template() -> Template:
    """Forty points around a spine in three parts: body, and two that hang on it one behind the other."""
    rng = np.random.default_rng(5)
    vertices = rng.normal(size=(40, 3)).astype(np.float32) * (0.2, 0.3, 0.5)
    vertices -= vertices.mean(0)
    part = np.clip(np.digitize(vertices[:, 2], [0.15, 0.4]), 0, 2)
    weights = np.eye(3)[part] * 0.8 + 0.2 / 3
    return Template(
        vertices=vertices,
        faces=rng.permuted(np.tile(np.arange(40), (30, 1)), axis=1)[:, :3],
        weights=weights,
        pivots=np.array([[0, 0, 0], [0, 0.1, 0.15], [0, 0.2, 0.4]]),
        parents=(-1, 0, 1),
        parts=("body", "neck", "head"),
        keypoints=rng.permutation(40)[:16],
        keypoint_names=QUADRUPED.names,
        part_mirror=(0, 1, 2),
    )


TEMPLATE = toy_template()


def network(hypotheses: int = 1, seed: int = 0) -> ACSM:
    torch.manual_seed(seed)
    return ACSM(TEMPLATE, hypotheses, depth=18, width=8, image_size=64, features=32)


def images(n: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def by_hand(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """x, y = s (R X)_xy + t and z = s (R X)_z, with the rotation from its matrix in the textbook form."""
    s, tx, ty, w, x, y, z = camera.astype(np.float64)
    rotation = np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    )
    return s * points @ rotation.T + [tx, ty, 0]


@pytest.mark.parametrize("hypotheses", [1, 4])
def test_shapes_and_ranges(hypotheses: int) -> None:
    net = network(hypotheses).eval()
    with torch.inference_mode():
        out = net(images())
    assert out.camera.shape == (3, hypotheses, 7)
    assert out.angles.shape == (3, hypotheses, 3)
    assert out.keypoints.shape == (3, hypotheses, 16, 2)
    assert out.vertices.shape == (3, hypotheses, 40, 3)
    assert out.prob.shape == (3, hypotheses)
    np.testing.assert_allclose(out.camera[..., 3:].norm(dim=-1).numpy(), 1, atol=1e-6)
    np.testing.assert_allclose(out.prob.sum(1).numpy(), 1, atol=1e-6)
    assert (out.camera[..., 0] > 0).all()
    assert (out.angles.abs() <= np.pi).all()


def test_hypotheses_start_from_different_views() -> None:
    with torch.inference_mode():
        camera = network(4).eval()(images(1)).camera[0, :, 3:]
    rotation = quat_to_matrix(camera)
    relative = rotation[:, None].transpose(-1, -2) @ rotation[None]
    degrees = ((relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).acos().rad2deg()
    assert degrees[~torch.eye(4, dtype=torch.bool)].min() > 45


@pytest.mark.parametrize("articulate", [True, False])
def test_keypoints_are_the_posed_keypoint_vertices(articulate: bool) -> None:
    net = network(2).eval()
    with torch.no_grad():
        net.parts_head.bias.normal_()  # large angles
        net.axes.normal_()
        out = net(images(), articulate=articulate)
        short = net(images(), articulate=articulate, mesh=False)
    index = torch.from_numpy(np.array(TEMPLATE.keypoints))
    np.testing.assert_allclose(out.keypoints.numpy(), out.vertices[:, :, index, :2].numpy(), atol=1e-5)
    assert short.vertices.shape == (3, 2, 0, 3)
    for name in ("camera", "angles", "keypoints", "prob"):
        torch.testing.assert_close(getattr(short, name), getattr(out, name))
    if articulate:
        assert out.angles.abs().max() > 0.3
        rigid = np.stack([by_hand(c, TEMPLATE.vertices) for c in out.camera[0].numpy()])
        assert np.abs(rigid - out.vertices[0].numpy()).max() > 0.05


def test_a_rigid_template_is_the_projected_template() -> None:
    net = network(2).eval()
    with torch.no_grad():
        net.parts_head.bias.normal_()
        out = net(images(), articulate=False)
    assert not out.angles.any()
    for i in range(3):
        for h in range(2):
            expected = by_hand(out.camera[i, h].numpy(), TEMPLATE.vertices.astype(np.float64))
            np.testing.assert_allclose(out.vertices[i, h].numpy(), expected, atol=1e-5)


def test_zero_angles_leave_the_template_as_it_is() -> None:
    net = network()
    with torch.no_grad():
        camera = torch.tensor([1.0, 0, 0, 1, 0, 0, 0])
        placed = net.place(camera, net.pose(torch.zeros(3)))
        chosen = net.place(camera, net.pose(torch.zeros(3)), net.index)
    np.testing.assert_allclose(placed.numpy(), TEMPLATE.vertices, atol=1e-6)
    np.testing.assert_allclose(chosen.numpy(), TEMPLATE.vertices[TEMPLATE.keypoints], atol=1e-6)


def test_the_best_hypothesis_is_the_most_probable_one() -> None:
    field = torch.arange(6.0).view(2, 3, 1)
    out = ACSMOutput(field, field, field, field, torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])).best()
    assert out.camera.flatten().tolist() == [1, 3]
    assert out.vertices.shape == (2, 1, 1)
    np.testing.assert_allclose(out.prob.flatten().numpy(), [0.5, 0.6])


def test_gradients_reach_every_parameter() -> None:
    net = network(3)
    out = net(images(), mesh=False)
    target = torch.rand(3, 16, 2, generator=torch.Generator().manual_seed(2))
    keypoint_loss(out.keypoints, target, torch.ones(3, 16), out.prob).backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("hypotheses", [1, 2])
def test_it_learns_four_images_by_heart(hypotheses: int) -> None:
    teacher = network(1, seed=7)
    with torch.no_grad():
        cameras = torch.tensor([[0.9, 0.1, 0.0, 0.2, 0.9, 0.3, 0.1], [1.0, 0.0, 0.1, 0.6, 0.6, 0.2, 0.2]]).repeat(2, 1)
        cameras[:, 3:] = torch.nn.functional.normalize(cameras[:, 3:], dim=-1)
        angles = torch.tensor([[0.0, 0.3, -0.2], [0.1, -0.3, 0.2], [0.0, 0.2, 0.3], [0.1, 0.0, -0.3]])
        target = teacher.place(cameras, teacher.pose(angles), teacher.index)[..., :2]
    net, pictures = network(hypotheses), images(4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        out = net(pictures, mesh=False)
        loss = keypoint_loss(out.keypoints, target, torch.ones(4, 16), out.prob)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < losses[0] / 5


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(InputError, match="image_size=32"):
        ACSM(TEMPLATE, image_size=32, width=8)


@pytest.mark.parametrize(
    ("hypotheses", "weights", "first", "losses"),
    [
        (1, 12152.860204, 0.737172842, [0.142977193, 0.136207938, 0.12303954, 0.113279603, 0.104751997]),
        (4, 12193.411646, 0.857587337, [0.154053435, 0.149649535, 0.145428076, 0.137838528, 0.12959981]),
    ],
)
def test_a_fresh_default_network_trains_with_the_numbers_it_always_had(
    hypotheses: int, weights: float, first: float, losses: list[float]
) -> None:
    """Numbers of commit 7aae9c6: a mode that is off may not touch the initialisation nor the arithmetic."""
    net = network(hypotheses)
    assert sum(float(p.detach().double().abs().sum()) for p in net.parameters()) == pytest.approx(weights, rel=1e-6)
    target = torch.rand(3, 16, 2, generator=torch.Generator().manual_seed(2))
    out = net(images())
    loss = keypoint_loss(out.keypoints, target, torch.ones(3, 16), out.prob)
    assert float(loss.detach()) == pytest.approx(first, rel=1e-5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for expected in losses:
        out = net(images(), mesh=False)
        loss = keypoint_loss(out.keypoints, target, torch.ones(3, 16), out.prob, 0.1)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("hypotheses", [1, 3])
def test_animals3d_mode_trains_keeps_its_order_and_its_checkpoint(hypotheses: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ACSM(TEMPLATE, hypotheses, width=8, image_size=64, features=32, compat="animals3d")
    with torch.no_grad():
        net.heads.angle.bias.normal_()  # type: ignore[union-attr]
        net.axes.normal_()
    out = net(images())
    expected = part_transforms(net.axes, out.angles, net.pivots, TEMPLATE.parents, root_first=True)  # type: ignore[arg-type]
    torch.testing.assert_close(net.pose(out.angles), expected)
    other = part_transforms(net.axes, out.angles, net.pivots, TEMPLATE.parents)  # type: ignore[arg-type]
    assert (other - expected).abs().max() > 0.01
    target = torch.rand(3, 16, 2, generator=torch.Generator().manual_seed(2))
    keypoint_loss(out.keypoints, target, torch.ones(3, 16), out.prob).backward()
    without = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # The defect that is kept: a multiplex never asks its rotation layers. A single camera needs no probability.
    asleep = "prob" if hypotheses == 1 else "rotation"
    assert without == {f"heads.{asleep}.weight", f"heads.{asleep}.bias"}
    back = load_checkpoint(write(tmp_path / "m.safetensors", checkpoint_bytes(net)))
    with torch.inference_mode():
        assert torch.equal(back(images()).keypoints, net.eval()(images()).keypoints)
    with pytest.raises(InputError, match="compat=csm"):
        ACSM(TEMPLATE, width=8, image_size=64, compat="csm")


# -- checkpoints ----------------------------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_the_mesh_of_animals3ds_best_hypothesis_turns_about_its_own_axes(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = ACSM(TEMPLATE, 3, width=8, image_size=64, features=32, compat="animals3d").eval()
    with torch.no_grad():
        net.heads.angle.bias.normal_()  # type: ignore[union-attr]
        net.axes.normal_()
        out = net(torch.randn(4, 3, 64, 64))
    best = out.best()
    assert best.hypothesis is not None
    assert best.hypothesis.tolist() == out.prob.argmax(1).tolist()
    for camera, angles, vertices, h in zip(
        best.camera[:, 0], best.angles[:, 0], best.vertices[:, 0], best.hypothesis.tolist(), strict=True
    ):
        write_posed(str(tmp_path / "a.glb"), net, angles, camera, h)
        drawn = read_glb(str(tmp_path / "a.glb")).vertices
        np.testing.assert_allclose(drawn, vertices.numpy() * (1, -1, -1), atol=1e-5)
    write_posed(str(tmp_path / "b.glb"), net, angles, camera, (h + 1) % 3)
    assert np.abs(read_glb(str(tmp_path / "b.glb")).vertices - drawn).max() > 1e-3


def test_checkpoint_round_trip_with_template(tmp_path: Path) -> None:
    net = network(2)
    net(images())  # moves the batch norm statistics
    notes = {"metrics": {"val": {"auc_06_10": 12.5}}, "job": {"seed": 0}}
    back = load_checkpoint(write(tmp_path / "a.safetensors", checkpoint_bytes(net, notes)))
    assert isinstance(back, ACSM)
    assert not back.training
    assert back.template == TEMPLATE
    assert back.template.digest == TEMPLATE.digest
    assert back.config == net.config
    assert back.notes == notes
    with torch.inference_mode():
        for ours, theirs in zip(net.eval()(images())[:5], back(images())[:5], strict=True):
            assert torch.equal(ours, theirs)


def test_checkpoints_of_the_2d_networks(tmp_path: Path) -> None:
    for net in (PoseNet(5, width=8, channels=16), Detector(width=8, channels=16)):
        back = load_checkpoint(write(tmp_path / "m.safetensors", checkpoint_bytes(net)))
        assert type(back) is type(net)
        with torch.inference_mode():
            assert torch.equal(net.eval()(images(1)), back(images(1)))


def test_weights_digest_ignores_notes_alone(tmp_path: Path) -> None:
    net = network()
    plain = weights_digest(write(tmp_path / "a", checkpoint_bytes(net)))
    noted = weights_digest(write(tmp_path / "b", checkpoint_bytes(net, {"metrics": {"x": 1.0}, "job": "elsewhere"})))
    assert plain == noted
    with torch.no_grad():
        net.axes[1, 2] += 1e-6
    assert weights_digest(write(tmp_path / "c", checkpoint_bytes(net))) != plain
    with pytest.raises(InputError, match="no such file"):
        weights_digest(str(tmp_path / "missing"))


def test_unreadable_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    data = checkpoint_bytes(network())
    torch.save({"model": 1}, tmp_path / "torch.pt")
    foreign = save_tensors({"conv1.weight": torch.zeros(2)}, {"format": "pt"})
    unknown = save_tensors({"a": torch.zeros(1)}, {"wildshape": json.dumps({"kind": "gan", "config": {}})})
    no_json = save_tensors({"a": torch.zeros(1)}, {"wildshape": "{"})
    other = network(4)
    wrong = save_tensors(
        {k: v.contiguous() for k, v in other.state_dict().items()},
        {"wildshape": json.dumps({"kind": "pose", "config": {"keypoints": 3, "width": 8}, "notes": {}})},
    )
    bad = {
        "empty": b"", "text": b"not a checkpoint at all", "half": data[: len(data) // 2], "head": data[:100],
        "few": data[:5], "zeros": b"\0" * 64, "torch": (tmp_path / "torch.pt").read_bytes(), "foreign": foreign,
        "unknown": unknown, "no json": no_json, "wrong": wrong,
    }  # fmt: skip
    for name, content in bad.items():
        path = write(tmp_path / name, content)
        with pytest.raises(InputError, match=r"not a readable (wildshape checkpoint|network of animals3d)") as caught:
            load_checkpoint(path)
        assert str(caught.value).startswith(f"checkpoint={path}"), name
        # What a command prints is one line.
        assert "\n" not in str(caught.value), name
    with pytest.raises(InputError, match="no such file"):
        load_checkpoint(str(tmp_path / "missing"))
