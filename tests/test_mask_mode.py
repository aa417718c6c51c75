"""ACSM's mask mode: targets from masks, losses on augmented crops, a training that brings mesh and mask together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny import CATEGORY, WORLD, _train_settings, add_labels

import models.acsm
from models.acsm import ACSM
from models.checkpoint import checkpoint_bytes, load_checkpoint
from models.crops import SEEN, STORED, apply_affine, invert_affine
from models.template import Template
from sandbox.world import build_world
from tables import InputError, Lake
from trainers.data import Instances, load_labelled
from trainers.engine import Plan, fit
from trainers.evaluate import evaluate_acsm
from trainers.jobs import _acsm_task, run_job
from trainers.mask_task import MaskTask
from trainers.masks import CONTOUR, mask_in_window, mask_targets, masks_digest
from trainers.steps import ACSMTask, shares

LOSSES = {
    "keypoints_first": 0.0, "warm_up": 0.0, "cycle": 1.0, "visibility": 1.0, "coverage": 10.0, "consistency": 0.1,
    "segmentation": 1.0, "entropy": 0.05, "rotation": 0.1,
}  # fmt: skip
STILL = {"rotate": 0.0, "zoom": 0.0, "shift": 0.0, "flip": 0.0, "colour": 0.0}
MOVED = {"rotate": 20.0, "zoom": 0.2, "shift": 0.1, "flip": 0.5, "colour": 0.0}
SIZE = 64


@pytest.fixture(scope="module")
def world_lake(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, str]:
    """A lake with the tiny world's training labels, and the template's file."""
    lake = Lake(str(tmp_path_factory.mktemp("masks")))
    world = build_world(os.path.join(lake.uri, "sandbox", "tiny"), WORLD)
    add_labels(lake, world, "train")
    template = os.path.join(lake.uri, "animal.template")
    Template.from_rig(world.glb, keypoints=world.keypoints).save(template)
    return lake, template


@pytest.fixture(scope="module")
def labelled(world_lake: tuple[Lake, str]) -> tuple[Instances, Template]:
    """Training animals with their masks, and the template."""
    lake, template = world_lake
    return load_labelled(lake, CATEGORY, "train", SIZE), Template.load(template)


def task(
    labelled: tuple[Instances, Template], hypotheses: int = 2, augment: dict[str, float] = STILL, **losses: float
) -> MaskTask:
    data, template = labelled
    torch.manual_seed(0)
    net = ACSM(template, hypotheses, width=16, image_size=SIZE, features=64, surface=True)
    return MaskTask(
        net, data, SIZE, augment, "cpu", mask_targets(data), {**LOSSES, **losses}, rigid=0.1, weight=3.0, robust=0.0
    )


def drawn(made: MaskTask, step: int = 0, items: int | None = None) -> dict[str, torch.Tensor]:
    return made.draw(torch.arange(items or made.items), torch.Generator().manual_seed(step))


@pytest.mark.parametrize("hypotheses", [1, 2])
def test_a_few_dozen_steps_bring_mesh_and_mask_together(labelled: tuple[Instances, Template], hypotheses: int) -> None:
    made = task(labelled, hypotheses)
    net: Any = made.model
    before = evaluate_acsm(net.eval(), labelled[0])
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    first: dict[str, float] = {}
    for step in range(30):
        parts = made.parts(drawn(made, step), made.phase(step / 30))
        first = first or {n: float(p.detach()) for n, p in parts.items()}
        optimizer.zero_grad()
        sum(parts.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    last = {n: float(p.detach()) for n, p in parts.items()}
    for name in ("keypoints", "cycle", "visibility", "coverage", "consistency", "segmentation"):
        assert last[name] < 0.6 * first[name], (name, first, last)
    after = evaluate_acsm(net.eval(), labelled[0])
    assert after["miou"] > before["miou"] + 0.2
    assert after["transfer_pck_10"] > before["transfer_pck_10"]
    if hypotheses == 1:
        assert first["entropy"] == first["rotation"] == 0


def test_masks_alone_pull_the_mesh_into_place(labelled: tuple[Instances, Template]) -> None:
    made = task(labelled, 1)
    made.weight = 0.0  # no keypoints
    net: Any = made.model
    before = evaluate_acsm(net.eval(), labelled[0])["miou"]
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for step in range(30):
        optimizer.zero_grad()
        made.loss(drawn(made, step), (False, True, False)).backward()
        optimizer.step()
    assert evaluate_acsm(net.eval(), labelled[0])["miou"] > before + 0.1


def test_every_parameter_learns_and_every_loss_has_a_gradient(labelled: tuple[Instances, Template]) -> None:
    made = task(labelled, 3, MOVED)
    parts = made.parts(drawn(made), (True, True, False))
    assert list(parts) == ["keypoints", *(n for n in LOSSES if n not in ("keypoints_first", "warm_up"))]
    for name, loss in parts.items():
        made.model.zero_grad()
        loss.backward(retain_graph=True)
        gradients = [p.grad for p in made.model.parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in gradients), name
        assert any(g.any() for g in gradients), name
    made.model.zero_grad()
    made.loss(drawn(made), (True, True, False)).backward()
    assert [n for n, p in made.model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_targets_are_the_mask_its_distances_and_its_outline(labelled: tuple[Instances, Template]) -> None:
    data, _ = labelled
    png = cv2.imencode(".png", np.zeros((40, 40), np.uint8))[1].tobytes()
    masks = [None, png, *data.masks[2:]]
    targets = mask_targets(Instances(**{**data.__dict__, "masks": masks}))
    assert targets.place.tolist() == [-1, -1, *range(len(data) - 2)]
    pixels = data.crops.shape[1]
    for row, i in enumerate(range(2, len(data))):
        mask, distance, contour = targets.masks[row], targets.distances[row], targets.contours[row]
        x0, y0, side = data.windows[i]
        seen = mask_in_window(data.masks[i] or b"", (x0, y0, side), pixels)
        # The network's window is the middle of the stored one.
        share = seen.sum() * (SEEN / STORED) ** 2
        assert abs(mask.sum() - share) < 0.06 * share
        assert (distance[mask > 0] == 0).all()
        assert (distance[mask == 0] > 0).all()
        at = np.floor((contour + 1) / 2 * pixels).astype(int)
        assert contour.shape == (CONTOUR, 2)
        assert mask[at[:, 1], at[:, 0]].all()
    nothing = mask_targets(Instances(**{**data.__dict__, "masks": [None] * len(data)}))
    assert nothing.masks.shape == (0, pixels, pixels)


def test_masks_move_with_the_crop(labelled: tuple[Instances, Template]) -> None:
    """Under turning, zooming, shifting and mirroring mask, distance and outline stay on the animal in the picture."""
    made = task(labelled, 1, MOVED)
    for step in range(4):
        batch = drawn(made, step)
        mask, distance = made._seen(batch, SIZE)
        assert (distance[mask > 0] < 2.0 * 256 / SIZE).all()
        contour = batch["contour"]
        inside = (contour.abs() < 0.95).all(-1)
        grown = torch.nn.functional.max_pool2d(mask[:, None], 3, 1, 1)
        near = torch.nn.functional.grid_sample(grown, contour[:, :, None], align_corners=False)[:, 0, :, 0]
        assert (near[inside] > 0.4).float().mean() > 0.99
        # One pixel of the network's view is 256 / SIZE of the reference's.
        alone = mask[0].numpy().astype(np.uint8)
        exact = cv2.distanceTransform(1 - alone, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * (256 / SIZE)
        assert np.abs(exact - distance[0].numpy()).mean() < 1.0 * 256 / SIZE
        stored = apply_affine(batch["matrix"], contour)
        torch.testing.assert_close(apply_affine(invert_affine(batch["matrix"]), stored), contour, atol=1e-5, rtol=1e-5)


def test_an_image_without_a_mask_adds_its_keypoints_alone(labelled: tuple[Instances, Template]) -> None:
    made = task(labelled, 1)
    made.model.eval()
    batch = drawn(made, items=3)
    whole = made.parts(batch, (True, True, False))
    alone = made.parts({n: t[:1] for n, t in batch.items()}, (True, True, False))
    first = {"mask": torch.tensor([int(batch["mask"][0]), -1, -1]), "count": shares(1, 3)}
    one = made.parts({**batch, **first}, (True, True, False))
    none = made.parts({**batch, "mask": torch.full((3,), -1)}, (True, True, False))
    for name in ("cycle", "visibility", "coverage", "consistency", "segmentation"):
        torch.testing.assert_close(one[name], alone[name], atol=1e-5, rtol=1e-4)
        assert float(none[name].detach()) == 0
    for parts in (one, none):
        torch.testing.assert_close(parts["keypoints"], whole["keypoints"])


def test_while_it_warms_up_no_hypothesis_is_preferred(labelled: tuple[Instances, Template]) -> None:
    made = task(labelled, 3, warm_up=0.5, keypoints_first=0.2)
    phases = [(False, False, True), (True, False, True), (True, True, True), (True, True, False)]
    assert [made.phase(p) for p in (0.0, 0.15, 0.6, 0.75)] == phases
    made.model.eval()
    with torch.no_grad():
        parts, later = (made.parts(drawn(made), (True, True, warm)) for warm in (True, False))
    for name in ("cycle", "visibility", "entropy"):
        assert float(parts[name]) == 0
        assert float(later[name]) != 0
    assert float(parts["coverage"]) == pytest.approx(float(later["coverage"]))
    assert float(parts["keypoints"]) != pytest.approx(float(later["keypoints"]), rel=1e-6)


def test_first_come_keypoints_alone(labelled: tuple[Instances, Template]) -> None:
    made = task(labelled, 2)
    alone = ACSMTask(made.model, labelled[0], SIZE, STILL, "cpu", rigid=0.0, weight=3.0, robust=0.0)
    made.model.eval()
    parts = made.parts(drawn(made), (True, False, True))
    assert list(parts) == ["keypoints"]
    torch.testing.assert_close(parts["keypoints"], alone.loss(drawn(made), True))
    torch.testing.assert_close(parts["keypoints"], made.parts(drawn(made), (True, True, False))["keypoints"])


def test_keypoint_training_never_draws(labelled: tuple[Instances, Template], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even with a map head: no mesh, no map, no renderer."""
    data, template = labelled

    def refuse(*_: Any) -> None:
        raise AssertionError("asked for more than keypoints")

    net = ACSM(template, 2, width=8, image_size=SIZE, features=32, surface=True)
    made = ACSMTask(net, data, SIZE, STILL, "cpu", rigid=0.0, weight=3.0, robust=0.0)
    places: list[Any] = []
    place = net.place
    monkeypatch.setattr(
        net, "place", lambda camera, parts, index=None: places.append(index) or place(camera, parts, index)
    )
    monkeypatch.setattr(net, "_surface", refuse)
    monkeypatch.setattr(models.acsm, "stages_of", refuse)
    monkeypatch.setattr("models.raster.rasterize", refuse)
    made.loss(made.draw(torch.arange(4), torch.Generator().manual_seed(0)), made.phase(0.5)).backward()
    assert [len(index) for index in places] == [16]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_masks_train_and_evaluate_on_a_gpu(labelled: tuple[Instances, Template]) -> None:
    data, template = labelled
    net = ACSM(template, 2, width=16, image_size=SIZE, features=64, surface=True)
    made = MaskTask(net, data, SIZE, MOVED, "cuda", mask_targets(data), LOSSES, rigid=0.5, weight=3.0, robust=0.0)
    losses: list[float] = []
    trained = fit(made, Plan(steps=30, batch=4, lr=2e-3), device="cuda", on_step=lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3]), losses
    found: Any = evaluate_acsm(trained, data)  # type: ignore[arg-type]
    assert found["miou"] > 0.2
    assert 0 <= found["transfer_pck_10"] <= 100


def test_the_map_head_is_kept_with_its_sphere(labelled: tuple[Instances, Template], tmp_path: Path) -> None:
    net: Any = task(labelled, 1).model
    (tmp_path / "m.safetensors").write_bytes(checkpoint_bytes(net))
    back: Any = load_checkpoint(str(tmp_path / "m.safetensors"))
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = net.eval()(images).best(), back(images).best()
    assert ours.surface.points.shape == (2, 1, SIZE // 4, SIZE // 4, 3)
    for a, b in zip(ours.surface, theirs.surface, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(net.sphere_table, back.sphere_table)
    # A sphere laid out otherwise, as another machine's rounding may: what was trained with comes with the weights.
    with torch.no_grad():
        net.sphere.neg_()
    (tmp_path / "m.safetensors").write_bytes(checkpoint_bytes(net))
    assert torch.equal(load_checkpoint(str(tmp_path / "m.safetensors")).sphere, net.sphere)  # type: ignore[arg-type]


def test_one_switch_of_the_configuration_trains_with_masks(world_lake: tuple[Lake, str]) -> None:
    lake, template = world_lake
    settings = _train_settings()["acsm"]
    settings["net"].update(surface=True, hypotheses=2)
    job = {"kind": "acsm", "lake": lake.uri, "category": CATEGORY, "settings": settings, "seed": 0}
    job |= {"template": template, "start_from": None, "pseudo": None}
    seen: list[float] = []
    done = run_job(job, tell=lambda note: seen.append(note.loss))
    assert len(seen) == 2
    assert np.isfinite(seen).all()
    net: Any = load_checkpoint(done["model"])
    assert net.surface_head is not None
    assert set(done["metrics"]["val"]) >= {"miou", "joints", "transfer_pck_10", "camera_error_deg", "auc_06_10"}
    settings["net"]["surface"] = False
    assert run_job(job)["model_id"] != done["model_id"]


def test_mask_mode_without_a_mask_is_refused(labelled: tuple[Instances, Template]) -> None:
    data, template = labelled
    bare = Instances(**{**data.__dict__, "masks": [None] * len(data)})
    assert masks_digest(bare) != masks_digest(data)
    settings = _train_settings()["acsm"]
    net = ACSM(template, width=8, image_size=SIZE, features=32, surface=True)
    with pytest.raises(InputError, match=r"train\.acsm\.net\.surface=True: no training label has a mask"):
        _acsm_task(net, bare, len(bare), settings, "cpu")
