"""What MLflow shows of a training while it runs, and afterwards."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_extensions import acsm_job
from test_mask_mode import SIZE, task
from tiny import CATEGORY, _train_settings, shared_lake

from models.heatmap import Detector
from models.template import Template
from tables import InputError, Lake
from trainers.data import Instances, load_labelled
from trainers.engine import Plan, fit
from trainers.jobs import run_job
from trainers.notes import FOUND, SIDE, TRUE, Note, draw, note_taker
from trainers.steps import DetectorTask
from trainers.tracking import Tracker, check_store, open_tracker, scalars, store_of

MLFLOW = {"uri": None, "experiment": "wildshape"}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    shutil.copytree(shared_lake().uri, tmp_path / "lake")
    return Lake(str(tmp_path / "lake"))


def test_losses_and_pictures_are_there_while_it_trains(lake: Lake) -> None:
    tracker = open_tracker(MLFLOW, lake, "run")
    job = acsm_job(lake)
    job["settings"]["plan"]["steps"] = 4
    write, seen = tracker.watch(1, "train acsm"), []

    def watch(note: Note) -> None:
        write(note)
        run = tracker.client.get_run(tracker.ids["round 1/train acsm"])
        seen.append((run.info.status, run.data.metrics["loss"], note.loss))

    done = run_job(job, tell=watch)
    assert [s[0] for s in seen] == ["RUNNING"] * 4
    assert all(logged == pytest.approx(told) for _, logged, told in seen)
    run = tracker.ids["round 1/train acsm"]
    assert [m.step for m in tracker.client.get_metric_history(run, "loss")] == [1, 2, 3, 4]
    images = [f.path for f in tracker.client.list_artifacts(run, "images")]
    assert {name.split("+step+")[1].split("+")[0] for name in images} == {"1", "2", "3", "4"}

    tracker.stage(1, "train acsm", {"model": done["model"]}, scalars(done["metrics"]))
    finished = tracker.client.get_run(run)
    assert finished.info.status == "FINISHED"
    assert finished.data.metrics["test_auc_06_10"] == pytest.approx(done["metrics"]["test"]["auc_06_10"])
    # Continued: the same run; a training that is done tells nothing.
    again = open_tracker(MLFLOW, lake, "run")
    run_job(job, tell=again.watch(1, "train acsm"))
    assert again.ids == tracker.ids
    assert len(again.client.get_metric_history(run, "loss")) == 4
    # A training of its own is a new run each time, and the lake's runs stay as they are.
    runs = lake.files.names("runs")
    assert open_tracker(MLFLOW, lake, "run", goes_on=False).root != tracker.root
    assert lake.files.names("runs") == runs


def statuses(tracker: Tracker) -> dict[str, str]:
    return {key: tracker.client.get_run(run).info.status for key, run in tracker.ids.items()}


def test_runs_that_an_exception_leaves_open_have_failed_until_the_loop_goes_on(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    tracker = open_tracker(MLFLOW, lake, "run")

    def half() -> None:
        with tracker:
            tracker.stage(1, "keypoints", {}, {})
            tracker.watch(1, "train acsm")(Note(1, 2, 0.5, {}, None))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    failed = {"": "FAILED", "round 1": "FAILED", "round 1/keypoints": "FINISHED", "round 1/train acsm": "FAILED"}
    assert statuses(tracker) == failed
    again = open_tracker(MLFLOW, lake, "run")
    with again:
        assert statuses(again) == {k: v.replace("FAILED", "RUNNING") for k, v in failed.items()}
        again.stage(1, "train acsm", {}, {})
        again.close({})
    assert set(statuses(again).values()) == {"FINISHED"}


def test_a_lake_that_was_moved_is_tracked_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    open_tracker(MLFLOW, Lake(str(tmp_path / "old")), "run").close({"note.txt": "then"})
    (tmp_path / "old").rename(tmp_path / "new")
    tracker = open_tracker(MLFLOW, Lake(str(tmp_path / "new")), "run")
    tracker.close({"note.txt": "now"})
    assert not (tmp_path / "old").exists()
    assert sorted(p.read_text() for p in tmp_path.glob("new/mlartifacts/*/artifacts/note.txt")) == ["now", "then"]
    assert {e.name for e in tracker.client.search_experiments()} == {
        "Default", "wildshape", f"wildshape of {tmp_path / 'old'}",
    }  # fmt: skip
    again = open_tracker(MLFLOW, Lake(str(tmp_path / "new")), "run")
    assert (again.experiment, again.root) == (tracker.experiment, tracker.root)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    linked = open_tracker(MLFLOW, Lake(str(tmp_path / "link")), "run")
    assert (linked.experiment, linked.root) == (tracker.experiment, tracker.root)
    for place, other in (("old", "new"), ("new", "old")) * 2:  # to and fro: each place has the experiment begun there
        (tmp_path / other).rename(tmp_path / place)
        there = open_tracker(MLFLOW, Lake(str(tmp_path / place)), "run")
        assert (there.experiment == tracker.experiment) == (place == "new")


def test_a_store_that_the_user_named_keeps_its_experiments_and_a_copied_lake_its_own_runs(tmp_path: Path) -> None:
    named = {**MLFLOW, "uri": f"sqlite:///{tmp_path}/own.db"}
    (tmp_path / "a").mkdir()
    tracker = open_tracker(named, Lake(str(tmp_path / "a")), "run")
    kept = tracker.client.create_experiment("bulk", artifact_location=str(tmp_path / "bulk" / "mlartifacts"))
    assert open_tracker({**named, "experiment": "bulk"}, Lake(str(tmp_path / "a")), "other").experiment == kept
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_tracker(named, Lake(str(tmp_path / "a")), "run").root == tracker.root
    assert open_tracker(named, Lake(str(tmp_path / "b")), "run").root != tracker.root


def test_a_store_that_goes_away_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = open_tracker(MLFLOW, Lake(str(tmp_path)), "run")
    watch = tracker.watch(None, "train pose")
    watch(Note(1, 3, 0.5, {}, None))
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        store.execute("DROP TABLE metrics")
    watch(Note(2, 3, 0.5, {}, None))
    watch(Note(3, 3, 0.5, {}, None))
    assert [r.message.split(":")[0] for r in caplog.records if r.name == "trainers.tracking"] == ["train pose"]


def test_a_store_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        check_store(f"http://127.0.0.1:{port}")
    check_store(f"sqlite:///{tmp_path}/deep/mlflow.db")
    for name in ("deer%20farm", "deer?"):
        with pytest.raises(InputError, match=r"^lake=.*: MLflow reads"):
            store_of({"uri": None}, Lake(str(tmp_path / name)))
    assert store_of({"uri": None}, Lake(str(tmp_path / "90% deer"))).endswith("/90% deer/mlflow.db")
    for uri in (f"http://127.0.0.1:{port}", "http://127.0.0.1:port", "sqlite:////proc/nope/mlflow.db"):
        with pytest.raises(InputError, match=rf"^mlflow\.uri={uri}: (no tracking server answers|cannot be written)"):
            check_store(uri)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def labelled() -> tuple[Instances, Template]:
    """Labelled animals with masks, and their template."""
    lake = shared_lake()
    template = Template.load(str(Path(lake.uri) / "sandbox" / "tiny" / "animal.template"))
    return load_labelled(lake, CATEGORY, "train", SIZE), template


def detector_task() -> DetectorTask:
    torch.manual_seed(0)
    photos = np.full((4, 96, 96, 3), 128, np.uint8)
    boxes = [np.array([[20.0, 30, 40, 30]])] * 4
    return DetectorTask(
        Detector(width=8, channels=16), photos, boxes, {"zoom": 0, "shift": 0, "flip": 0, "colour": 0.1}, "cpu"
    )


def test_terms_sum_to_the_loss() -> None:
    made, notes = detector_task(), []
    take = note_taker(made, 4, (made.photos.numpy(), made.boxes), notes.append)
    fit(made, Plan(steps=4, batch=2, precision="float32"), on_step=take)
    assert [set(n.terms) for n in notes] == [{"centre", "box"}] * 4
    for n in notes:
        assert sum(n.terms.values()) == pytest.approx(n.loss, rel=1e-5)
    picture: Any = notes[-1].picture
    assert (picture[30, 116:156] == TRUE).all()  # the upper side of the true box, in the first photo's second tile
    assert (picture[:96, :96] == 128).all(-1).mean() > 0.9


@pytest.mark.parametrize("masks", [False, True])
def test_watching_changes_nothing(labelled: Any, masks: bool) -> None:
    plan = Plan(steps=2, batch=3, lr=1e-3, precision="float32", freeze_norm=True)
    kept = []
    for watched in (False, True):
        made, notes = task(labelled, 2), []
        made.keypoints_first = 0.0 if masks else 1.0
        take = note_taker(made, 2, labelled[0], notes.append) if watched else None
        kept.append(fit(made, plan, on_step=take).state_dict())
    assert [k for k in kept[0] if not torch.equal(kept[0][k], kept[1][k])] == []
    assert set(notes[-1].terms) >= ({"keypoints", "cycle", "coverage"} if masks else {"keypoints"})
    assert sum(notes[-1].terms.values()) == pytest.approx(notes[-1].loss, rel=1e-4)


def test_a_picture_shows_keypoints_where_they_are(labelled: Any) -> None:
    made = task(labelled, 2)
    picture = draw(made, labelled[0])
    assert picture.shape == (3 * SIDE, 3 * SIDE, 3)
    x, y = ((labelled[0].keypoints[0, :, :2] + 1) / 2 * SIDE).round().astype(int).T
    visible = (labelled[0].keypoints[0, :, 2] > 0) & (np.minimum(x, y) >= 0) & (np.maximum(x, y) < SIDE)
    shown = picture[y[visible], SIDE + x[visible]].astype(int)
    marked = [(np.abs(shown - c).max(-1) < 60) for c in (TRUE, FOUND)]
    assert (marked[0] | marked[1]).mean() > 0.7
    assert marked[0].mean() > 0.3
    photo, mesh = picture[:SIDE, :SIDE].astype(int), picture[:SIDE, 2 * SIDE :].astype(int)
    assert 0.02 < (np.abs(photo - mesh).max(-1) > 20).mean() < 0.9
    assert made.model.training


@pytest.mark.ray
def test_the_commands_write_too(lake: Lake, ray_local: SimpleNamespace) -> None:
    from omegaconf import OmegaConf

    from trainers.command import train_command

    pose = {**_train_settings()["pose"], "start": None}
    train = {"workers": 1, "cpus": 0.01, "gpus": 0, "threads": 1, "max_failures": 0}
    cfg = {"lake": lake.uri, "category": CATEGORY, "seed": 3, "mlflow": MLFLOW, "train": {"pose": pose}}
    done = train_command(OmegaConf.create({**cfg, "resources": {"address": None, "train": train}}), "pose")
    client = open_tracker(MLFLOW, lake, "any", goes_on=False).client
    runs = client.search_runs([client.get_experiment_by_name("wildshape").experiment_id])  # type: ignore[union-attr]
    (run,) = [r for r in runs if r.info.run_name == "train pose"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["model_id"] == done["model_id"]
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 2
    assert client.list_artifacts(run.info.run_id, "images")
