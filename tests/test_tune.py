"""A sweep of selections: killed and run again it ends whole, MLflow holds it nested, and the loop takes its best."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from mlflow import MlflowClient
from processes import kill_alone
from tiny import shared_lake

from pipelines.run_record import open_run
from tables import Lake
from trainers.sweep import sweep
from trainers.sweep_picture import parallel
from trainers.tune import SPACE, check, points

ROOT = Path(__file__).resolve().parents[1]
# 16 trials
SWEEP = ["criterion=[cf_cm2]", "top_n=[3,6]", "gate=[null,0.5]", "per_view=[null,2]", "label_share=[null,0.5]"]


def command(folder: Path, *more: str) -> list[str]:
    lake = f"lake={folder / 'lake'}"
    return [sys.executable, "-m", "trainers.tune", lake, "run=default", "resources.actors=2", *SWEEP, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}


def finish(folder: Path, *more: str) -> str:
    done = subprocess.run(
        command(folder, *more), cwd=folder, env=environment(), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def models(folder: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in (folder / "lake/models/acsm").glob("*/model.json")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_survives_a_kill_and_does_nothing_twice(folder: Path) -> None:
    before = models(folder)
    with (folder / "killed.log").open("wb") as log:
        driver = subprocess.Popen(command(folder), cwd=folder, env=environment(), stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while len(models(folder)) < len(before) + 3:
        assert driver.poll() is None, (folder / "killed.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill_alone(driver)
    half = models(folder)
    assert not (folder / "lake/runs/default/tuned").exists(), "killed too late"

    printed = finish(folder)
    after = models(folder)
    assert half.items() <= after.items()
    rows = json.loads((folder / "lake/runs/default/tuned/trials.json").read_text())
    assert len(rows) == 16
    scores = [r["val_auc_06_10"] for r in rows]
    assert scores == sorted(scores, reverse=True)
    for r in rows:
        known = json.loads((folder / f"lake/models/acsm/{r['model_id']}/model.json").read_text())
        assert known["metrics"]["val"]["auc_06_10"] == r["val_auc_06_10"]
        assert known["job"]["settings"]["label_share"] == r["label_share"]
    # Trials share the pseudo-labels.
    made = [p for p in (folder / "lake/pseudo_labels/category=quadruped").iterdir() if p.is_dir()]
    assert {p.name for p in made} == {
        p.name for p in Path(shared_lake().uri, "pseudo_labels/category=quadruped").iterdir()
    }
    assert "+tuned=best" in printed
    assert (folder / "lake/runs/default/tuned/parallel.png").read_bytes().startswith(b"\x89PNG")

    # Trials of another search stand beside these, and what both do is done once.
    finish(folder, "search=asha", "trials=4")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'lake/mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "wildshape"]
    (sweep,) = client.search_runs([experiment.experiment_id], "tags.mlflow.runName = 'tune'")
    wanted = f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'"
    trials = client.search_runs([experiment.experiment_id], wanted)
    assert sweep.data.tags["mlflow.parentRunId"]
    assert {t.info.status for t in trials} == {"FINISHED"}
    whole = {(*(t.data.params[k] for k in SPACE),): t for t in trials}
    assert len(whole) == 16
    for r in rows:
        trial = whole[(*(str(r[k]) for k in SPACE),)]
        assert trial.data.metrics["val_auc_06_10"] >= 0
        selection = json.loads((folder / "lake" / trial.data.tags["selection"] / "_dataset.json").read_text())
        assert selection["identity"].get("rules", {}).get("per_view") == r["per_view"]
        assert selection["identity"]["top_n"] == r["top_n"]


@pytest.mark.ray
@pytest.mark.slow
def test_the_loop_takes_the_best(folder: Path) -> None:
    best = json.loads((folder / "lake/runs/default/tuned/trials.json").read_text())[0]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.selftrain", "--cfg", "job", "--config-dir", "lake/runs/default",
         "+tuned=best"],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cfg = yaml.safe_load(done.stdout)
    choice = [k for k in SPACE if k != "label_share"]
    assert {k: cfg[k] for k in choice} == {k: best[k] for k in choice}
    assert cfg["train"]["acsm"]["label_share"] == best["label_share"]
    assert cfg["train"]["acsm"]["start"] == "pose"


@pytest.mark.ray
def test_a_small_sweep_of_a_moved_lake_stands_beside_a_former_one(tmp_path: Path, ray_local: SimpleNamespace) -> None:
    """In a lake whose files name a folder that is gone; and what fails is FAILED in MLflow."""
    shutil.copytree(shared_lake().uri, tmp_path / "lake")
    lake = Lake(str(tmp_path / "lake"))
    for file in [*tmp_path.glob("lake/models/*/*/model.json"), *tmp_path.glob("lake/runs/default/*.json")]:
        file.write_text(file.read_text().replace(shared_lake().uri, "/gone/with/the/disk"))
    run = lake.files.read_json("runs/default/run.json")

    def rows_of(*overrides: str) -> list[dict[str, Any]]:
        cfg: Any = composed(f"lake={lake.uri}", "search=random", "top_n=[3]", "per_view=[null]", *overrides)
        check(cfg)
        sweep(cfg, lake, run, points(cfg))
        return json.loads((tmp_path / "lake/runs/default/tuned/trials.json").read_text())

    first = rows_of("criterion=[kp_conf,cf_mt,random]", "trials=2")
    assert len({r["criterion"] for r in first}) == 2
    both = rows_of("criterion=[cf_cm2]", "trials=9")
    assert sorted(r["criterion"] for r in both) == sorted([*(r["criterion"] for r in first), "cf_cm2"])
    assert all(r in both for r in first)
    best = yaml.safe_load((tmp_path / "lake/runs/default/tuned/best.yaml").read_text())
    assert best["criterion"] == both[0]["criterion"]

    def tracked() -> dict[str, tuple[str, int]]:
        client = MlflowClient(tracking_uri=f"sqlite:///{lake.uri}/mlflow.db")
        (experiment,) = [e for e in client.search_experiments() if e.name == "wildshape"]
        found = client.search_runs([experiment.experiment_id])
        below = Counter(r.data.tags.get("mlflow.parentRunId") for r in found)
        return {r.info.run_name: (r.info.status, below[r.info.run_id]) for r in found}

    assert tracked()["tune"] == ("FINISHED", 3)
    crops = next((tmp_path / "lake" / open_run(lake, "default").round(1)["instances"]).glob("*.parquet"))
    crops.rename(tmp_path / "away")
    with pytest.raises(RuntimeError, match="1 of 1 trials failed"):
        rows_of("criterion=[small_loss]", "trials=1")
    assert tracked()["tune"] == ("FAILED", 4)
    assert tracked()["criterion=small_loss, top_n=3, gate=None, per_view=None, label_share=None"] == ("FAILED", 0)
    (tmp_path / "away").rename(crops)
    rows_of("criterion=[small_loss]", "trials=1")
    assert tracked()["tune"] == ("FINISHED", 5)


def composed(*overrides: str) -> object:
    with initialize_config_module(config_module="conf", version_base="1.3"):
        return compose("tune", overrides=list(overrides))


def test_the_default_sweep_has_twelve_trials() -> None:
    cfg = composed()
    check(cfg)
    assert len(points(cfg)) == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["criterion=cf_cm2"], "criterion=cf_cm2: give a list"),
        (["criterion=[oracle]"], "criterion=oracle"),
        (["criterion=[best]"], "criterion=best: unknown"),
        (["top_n=[]"], r"top_n=\[\]: give a list"),
        (["top_n=[0]"], "top_n=0"),
        (["gate=[-1]"], "gate=-1"),
        (["per_view=38"], "per_view=38: give a list"),
        (["per_view=[0]"], "per_view=0"),
        (["label_share=[2]"], "label_share=2"),
        (["search=all"], "search=all"),
        (["trials=0"], "trials=0"),
    ],
)
def test_what_cannot_be_swept_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(composed(*overrides))


def test_one_trial_draws_too() -> None:
    row = dict.fromkeys(SPACE) | {"criterion": "cf_cm2", "top_n": 3, "steps": 2, "val_auc_06_10": 1.0}
    assert parallel([row], "val_auc_06_10").startswith(b"\x89PNG")
