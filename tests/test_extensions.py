"""Extensions of the 3D training, each off in the reference: what a key does, and that it makes another model."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CATEGORY, _train_settings, shared_lake

from models.acsm import ACSM
from models.checkpoint import checkpoint_bytes, load_checkpoint
from models.heatmap import PoseNet
from models.losses import keypoint_loss
from models.resnet import ResNet
from selection import passing, select_round
from tables import Dataset, InputError, Lake, join_rows
from trainers.acsm import check_start_from
from trainers.data import concatenate, image_weights, load_labelled, load_pseudo_labelled
from trainers.engine import grouped_batch
from trainers.jobs import _acsm_task, _crop_data, run_job
from trainers.settings import check_settings
from trainers.start import start_keys, start_weights
from trainers.steps import ACSMTask

SIZE = 64


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    copied = tmp_path_factory.mktemp("extensions") / "lake"
    shutil.copytree(shared_lake().uri, copied)
    return Lake(str(copied))


def round_one(lake: Lake) -> dict[str, Dataset]:
    """What the first round with pseudo-labels was trained on."""
    made = lake.files.read_json("runs/default/rounds.json")[1]
    return {t: lake.find(t, CATEGORY, made[t].rsplit("/", 1)[1]) for t in ("instances", "pseudo_labels", "selections")}


def acsm_job(lake: Lake) -> dict[str, Any]:
    lineage = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in round_one(lake).items()}
    template = str(Path(lake.uri) / "sandbox" / "tiny" / "animal.template")
    settings = copy.deepcopy(_train_settings()["acsm"])
    settings["plan"]["steps"] = 1
    return {
        "kind": "acsm", "lake": lake.uri, "category": CATEGORY, "settings": settings, "seed": 0, "template": template,
        "pseudo": lineage,
    }  # fmt: skip


# -- gate and weights -----------------------------------------------------------------------------------------------


def middle_gate(made: dict[str, Dataset]) -> float:
    """A gate that passes some joints of the kept instances and not others."""
    chosen = made["selections"].read(["instance_id", "selected"])
    rows = join_rows(chosen.filter(chosen["selected"]), made["pseudo_labels"].read(), "instance_id")
    rows = join_rows(rows, made["instances"].read(["instance_id", "bbox"]), "instance_id")
    gates = [g for g in np.linspace(0.05, 2, 40).tolist() if 0.3 < passing(rows, g).mean() < 0.7]
    return gates[0]


def test_the_gate_silences_joints_that_the_3d_network_places_elsewhere(lake: Lake) -> None:
    made = round_one(lake)
    gate = middle_gate(made)
    three = made["instances"], made["pseudo_labels"], made["selections"]
    free, held = load_pseudo_labelled(*three, SIZE), load_pseudo_labelled(*three, SIZE, gate)
    assert held.ids == free.ids
    silent = held.keypoints[..., 2] == 0
    kept = ~silent
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_array_equal(held.keypoints[kept], free.keypoints[kept])
    rows = join_rows(made["pseudo_labels"].read(), made["instances"].read(["instance_id", "bbox"]), "instance_id")
    near = dict(zip(rows["instance_id"].to_pylist(), passing(rows, gate), strict=True))
    np.testing.assert_array_equal(kept, np.stack([near[i] for i in free.ids]) & (free.keypoints[..., 2] > 0))


def test_a_selection_with_a_gate_brings_it_along(lake: Lake) -> None:
    made = round_one(lake)
    gate = middle_gate(made)
    chosen = select_round(lake, made["pseudo_labels"], made["instances"], "cf_cm2", 6, 1, gate=gate)
    if not any(chosen.read(["selected"])["selected"].to_pylist()):
        pytest.fail("the gate rejects every instance")
    three = made["instances"], made["pseudo_labels"], chosen
    np.testing.assert_array_equal(
        load_pseudo_labelled(*three, SIZE).keypoints, load_pseudo_labelled(*three, SIZE, gate).keypoints
    )
    assert (load_pseudo_labelled(*three, SIZE, 100.0).keypoints[..., 2] > 0).mean() > 0.9


def test_pseudo_labels_count_what_they_are_told_to(lake: Lake) -> None:
    made = round_one(lake)
    labelled = load_labelled(lake, CATEGORY, "train", SIZE)
    data = concatenate(
        labelled, load_pseudo_labelled(made["instances"], made["pseudo_labels"], made["selections"], SIZE)
    )
    n = len(labelled)
    data.keypoints[n, :, 2] = 0
    data.keypoints[n + 1, :, 2] = [0.5] * 4 + [0.25] * 4 + [0] * 8
    assert image_weights(data, n, 1.0) is None
    for pseudo in (0.25, "confidence"):
        weights: Any = image_weights(data, n, pseudo)
        assert (weights[:n] == 1).all()
        if pseudo == 0.25:
            assert (weights[n:] == 0.25).all()
        else:
            assert weights[n] == 0
            assert weights[n + 1] == 0.375
            assert ((weights[n + 2 :] > 0) & (weights[n + 2 :] < 1)).all()

    net = load_checkpoint(
        lake.files.read_json("runs/default/rounds.json")[0]["model"].replace(shared_lake().uri, lake.uri)
    )
    augment = {"rotate": 0.0, "zoom": 0.0, "shift": 0.0, "flip": 0.0, "colour": 0.0}
    index = torch.tensor([0, 1, n + 1, n + 2])

    def loss(weights: np.ndarray | None, rows: torch.Tensor) -> float:
        rest: Any = {"rigid": 0.0, "weight": 3.0, "robust": 0.0, "labels": n, "image_weights": weights}
        task = ACSMTask(net, data, SIZE, augment, "cpu", **rest)
        return float(task.loss(task.draw(rows, torch.Generator().manual_seed(0)), True).detach())

    labels, others = loss(None, index[:2]), loss(None, index[2:])
    assert loss(None, index) == pytest.approx((labels + others) / 2, rel=1e-5)
    assert loss(image_weights(data, n, 0.25), index) == pytest.approx((labels + 0.25 * others) / 2, rel=1e-5)
    assert loss(image_weights(data, n, 0.0), index) == pytest.approx(labels / 2, rel=1e-5)


def test_a_weight_of_one_is_no_weight() -> None:
    torch.manual_seed(0)
    args = torch.rand(3, 2, 5, 2), torch.rand(3, 5, 2), torch.rand(3, 5), torch.full((3, 2), 0.5)
    assert torch.equal(keypoint_loss(*args), keypoint_loss(*args, weight=torch.ones(3)))


# -- the other keys -------------------------------------------------------------------------------------------------


def test_labels_keep_their_share_and_have_the_last_steps(lake: Lake) -> None:
    data, n = _crop_data(lake, acsm_job(lake))
    assert 0 < n < len(data)
    still = {"rotate": 0.0, "zoom": 0.0, "shift": 0.0, "flip": 0.0, "colour": 0.0}

    def groups(progress: float, **settings: Any) -> Any:
        rest: Any = {"rigid": 0.0, "weight": 3.0, "robust": 0.0, "labels": n, **settings}
        return ACSMTask(acsm(lake, 0), data, SIZE, still, "cpu", **rest).groups(progress)

    def labels(progress: float, **settings: Any) -> int:
        return int((grouped_batch(groups(progress, **settings), 100, 0, 0) < n).sum())

    assert groups(0.9) == [(len(data), 1.0)]  # alike, as in the reference: one chain over all
    assert labels(0.9, label_share=0.8) == 80
    assert labels(0.2, labels_from=0.3, label_share=0.1) == 10
    assert labels(0.3, labels_from=0.3, label_share=0.1) == 100


@pytest.mark.parametrize(("key", "value", "fix"), [("labels_from", 0.3, "1.0"), ("label_share", 0.5, "null")])
def test_labels_that_are_not_there_have_no_share(lake: Lake, key: str, value: float, fix: str) -> None:
    data, _ = _crop_data(lake, acsm_job(lake))
    settings = {**_train_settings()["acsm"], "labels_from": 1.0, "label_share": None}
    assert _acsm_task(acsm(lake, 0), data, 0, settings, "cpu").groups(0.9) == [(len(data), 1.0)]
    with pytest.raises(InputError, match=rf"^train\.acsm\.{key}={value}: there are no training labels.* use {fix}"):
        _acsm_task(acsm(lake, 0), data, 0, {**settings, key: value}, "cpu")


def test_unsure_joints_of_pseudo_labels_do_not_count(lake: Lake) -> None:
    job = acsm_job(lake)
    job["settings"]["min_confidence"] = 0.0
    free, n = _crop_data(lake, job)
    job["settings"]["min_confidence"] = middle = float(np.median(free.keypoints[n:, :, 2]))
    held, _ = _crop_data(lake, job)
    np.testing.assert_array_equal(held.keypoints[:n], free.keypoints[:n])
    unsure = free.keypoints[n:, :, 2] < middle
    assert 0.2 < unsure.mean() < 0.8
    assert (held.keypoints[n:][unsure] == 0).all()
    np.testing.assert_array_equal(held.keypoints[n:][~unsure], free.keypoints[n:][~unsure])


@pytest.mark.parametrize("robust", [0.05, 0.1])
def test_a_robust_error_is_squared_nearby_and_linear_far_away(robust: float) -> None:
    def loss(distance: float, robust: float) -> float:
        predicted = torch.tensor([[[[distance, 0.0]]]], dtype=torch.float64)
        one = torch.ones(1, 1, dtype=torch.float64)
        return float(keypoint_loss(predicted, torch.zeros(1, 1, 2), one, one, robust)) * (1 + 1e-4)

    assert loss(0.01 * robust, robust) == pytest.approx(loss(0.01 * robust, 0.0), rel=1e-3)
    far = 1000 * robust
    assert loss(2 * far, robust) == pytest.approx(2 * loss(far, robust), rel=1e-2)
    assert loss(2 * far, 0.0) == pytest.approx(4 * loss(far, 0.0))


@pytest.mark.parametrize("key", ["rotate", "zoom", "colour"])
def test_an_augmentation_reaches_as_far_as_it_says(lake: Lake, key: str) -> None:
    most = {"rotate": 30.0, "zoom": 0.25, "colour": 0.4}[key]
    data = load_labelled(lake, CATEGORY, "train", SIZE)

    def drawn(augment: dict[str, float]) -> dict[str, torch.Tensor]:
        zero = {"rotate": 0.0, "zoom": 0.0, "shift": 0.0, "flip": 0.0, "colour": 0.0}
        rest: Any = {"rigid": 0.0, "weight": 3.0, "robust": 0.0}
        task = ACSMTask(acsm(lake, 0), data, SIZE, {**zero, **augment}, "cpu", **rest)
        return task.draw(torch.zeros(400, dtype=torch.long), torch.Generator().manual_seed(1))

    plain, ours = drawn({}), drawn({key: most})
    assert (plain["matrix"] == plain["matrix"][0]).all()
    assert "gain" not in plain
    turn = ours["matrix"][:, :, :2]
    angle = torch.atan2(turn[:, 1, 0], turn[:, 0, 0]).rad2deg()
    scale = (torch.linalg.det(turn) / torch.linalg.det(plain["matrix"][0, :, :2])).sqrt()
    reach = {"rotate": angle.abs(), "zoom": torch.maximum(scale, 1 / scale) - 1}
    for name, values in reach.items():
        if name == key:
            assert 0.9 * most < values.max() <= most * 1.001
            assert values.min() < 0.1 * most
        else:
            assert values.max() < 1e-3
    if key == "colour":
        assert (torch.log(ours["gain"]).abs() <= 1.5 * most).all()
        assert ours["gain"].std() > 0.1
        assert 0.9 * most < ours["offset"].abs().max() <= most


# -- start ----------------------------------------------------------------------------------------------------------

TRAIN: dict[str, Any] = {
    "imagenet": {"resnet18": "weights/18.pth", "resnet34": None},
    "pose": {"start": None, "net": {"depth": 18, "width": 64}},
    "aux": {"start": "imagenet", "net": {"depth": 34, "width": 64}},
    "acsm": {"start": "pose", "net": {"depth": 18, "width": 64}},
}


def with_start(start: str | None) -> dict[str, Any]:
    return {**TRAIN, "acsm": {**TRAIN["acsm"], "start": start}}


def test_where_a_network_starts_by_its_key() -> None:
    assert start_keys(TRAIN, "pose", "p", "f") == {"start_from": None}
    assert start_keys(with_start("pose"), "acsm", "p", "f") == {"start_from": "p"}
    assert start_keys(with_start("former"), "acsm", "p", "f") == {"start_from": "f"}
    assert start_keys(with_start("former"), "acsm", "p") == {"start_from": "p"}  # round 0
    assert start_keys(with_start(None), "acsm", "p", "f") == {"start_from": None}
    given = start_keys(with_start("imagenet"), "acsm", "p", "f")
    assert given == {"start_from": None, "imagenet": str(Path("weights/18.pth").resolve())}
    with pytest.raises(InputError, match=r"train\.imagenet\.resnet34"):
        start_keys(TRAIN, "aux")


def test_a_start_that_cannot_be_is_refused() -> None:
    settings = {**_train_settings()["acsm"], "start": "imagenet"}
    with pytest.raises(InputError, match=r"train\.acsm\.net\.width=8: .* width 64"):
        check_settings("acsm", settings)
    for name, start in (("acsm", "none"), ("pose", "former"), ("detector", "pose")):
        with pytest.raises(InputError, match=rf"train\.{name}\.start={start}"):
            check_settings(name, {**_train_settings()[name], "start": start})


def test_a_start_goes_with_a_checkpoint_or_without() -> None:
    for start, path in (("pose", "p"), ("former", "f"), ("imagenet", None), (None, None)):
        check_start_from(start, path)
    for start in ("pose", "former"):
        with pytest.raises(InputError, match=rf"^start_from=null: train\.acsm\.start={start} needs a checkpoint"):
            check_start_from(start, None)
    for start in ("imagenet", None):
        with pytest.raises(InputError, match=rf"^start_from=p: goes with .*, not {start or 'null'}"):
            check_start_from(start, "p")


def acsm(lake: Lake, seed: int, **net: Any) -> ACSM:
    from models.template import Template

    torch.manual_seed(seed)
    template = Template.load(str(Path(lake.uri) / "sandbox" / "tiny" / "animal.template"))
    return ACSM(template, image_size=SIZE, **{"hypotheses": 4, "width": 8, "features": 32, **net})


def test_weights_come_from_imagenet_from_a_2d_network_or_from_the_former_one(lake: Lake, tmp_path: Path) -> None:
    torch.manual_seed(5)
    trunk = ResNet(18, 8)
    torch.save(trunk.state_dict() | {"fc.weight": torch.zeros(10, 64)}, tmp_path / "18.pth")
    pose = PoseNet(16, width=8, channels=16)
    former = acsm(lake, 7)
    for name, net in (("pose", pose), ("former", former)):
        (tmp_path / name).write_bytes(checkpoint_bytes(net))

    def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

    net: Any = acsm(lake, 1)
    start_weights(net, {"imagenet": str(tmp_path / "18.pth")})
    assert same(net.backbone, trunk)
    assert same(net.encode, acsm(lake, 1).encode)  # the rest is as it was
    start_weights(net, {"start_from": str(tmp_path / "pose")})
    assert same(net.backbone, pose.backbone)
    assert not same(net, former)
    start_weights(net, {"start_from": str(tmp_path / "former")})
    assert same(net, former)
    net2d: Any = PoseNet(16, width=8, channels=16)
    start_weights(net2d, {"imagenet": str(tmp_path / "18.pth")})
    assert same(net2d.backbone, trunk)
    for other in (acsm(lake, 1, hypotheses=2), PoseNet(16, width=8, channels=16)):
        with pytest.raises(InputError, match="start_from"):
            start_weights(other, {"start_from": str(tmp_path / "former")})


# -- names ----------------------------------------------------------------------------------------------------------


def test_each_key_makes_another_model(lake: Lake, tmp_path: Path) -> None:
    job = acsm_job(lake)
    torch.manual_seed(5)
    for name in ("a.pth", "b.pth"):
        torch.save(ResNet(18, 8).state_dict(), tmp_path / name)
    former = run_job(job)
    jobs = {"former": {**job, "start_from": former["model"]}}
    jobs |= {n: {**job, "imagenet": str(tmp_path / n)} for n in ("a.pth", "b.pth")}
    for key, value in (("gate", 100.0), ("pseudo_weight", 0.5), ("pseudo_weight", "confidence"), ("label_share", 0.5)):
        jobs[f"{key}={value}"] = {**job, "settings": {**job["settings"], key: value}}
    for key, value in (("ema", 0.0), ("schedule", "constant")):
        plan = {**job["settings"]["plan"], key: value}
        jobs[key] = {**job, "settings": {**job["settings"], "plan": plan}}
    names = {name: run_job(j)["model_id"] for name, j in jobs.items()}
    assert len({*names.values(), former["model_id"]}) == len(jobs) + 1, names
    shutil.copy(tmp_path / "a.pth", tmp_path / "c.pth")  # the weights name the model, not their path
    assert run_job({**job, "imagenet": str(tmp_path / "c.pth")})["model_id"] == names["a.pth"]
