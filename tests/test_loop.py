"""The whole loop as a person starts it: undisturbed, killed three times, and with bad input."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from looped import ROUNDS, SMALL, command, environment, finish, undisturbed
from mlflow import MlflowClient
from processes import kill_alone
from test_vitpose import vitposes

from models.checkpoint import weights_digest
from pipelines.chosen_models import Chosen
from tables import Lake, fingerprint


@pytest.fixture(scope="module", name="undisturbed")
def _undisturbed() -> tuple[Path, str]:
    return undisturbed()


def read(folder: Path, name: str, run: str = "tiny") -> Any:
    return json.loads((folder / "lake" / "runs" / run / name).read_text())


def photos(folder: Path) -> list[dict[str, Any]]:
    dataset = Lake(str(folder / "lake")).latest("photos", "quadruped")
    return dataset.read(["photo_id", "url", "status", "sha256", "duplicate_of"]).to_pylist()


def chosen(folder: Path) -> list[list[dict[str, Any]]]:
    """The selection of each round, all columns of all rows."""
    lake, made = Lake(str(folder / "lake")), [r["selections"] for r in read(folder, "rounds.json")[1:]]
    return [lake.find("selections", "quadruped", path.rsplit("/", 1)[1]).read().to_pylist() for path in made]


@pytest.mark.ray
@pytest.mark.slow
def test_the_loop_measures_every_round(undisturbed: tuple[Path, str]) -> None:
    folder, printed = undisturbed
    rows = read(folder, "metrics.json")
    assert [(r["round"], r["split"]) for r in rows] == [(r, s) for r in range(ROUNDS + 1) for s in ("val", "test")]
    for r in rows:
        assert 0 <= r["auc_06_10"] <= 100
        curve = list(r["pck"].values())
        assert curve == sorted(curve)
        assert r["auc_06_10"] == pytest.approx(sum(r["pck"][f"{t:.2f}"] for t in (0.06, 0.07, 0.08, 0.09, 0.1)) / 5)
        assert 0 <= r["camera_error_deg"] <= 180
        assert 0 <= r["miou"] <= 1
        assert f"{r['auc_06_10']:.2f}" in printed
    rounds = read(folder, "rounds.json")
    # Pseudo-labels are made anew by each round's model. Two rounds may keep the same animals, and then train the same
    # network; a round with pseudo-labels never trains what the labels alone do.
    assert len({r["pseudo_labels"] for r in rounds[1:]}) == len({r["selections"] for r in rounds[1:]}) == ROUNDS
    assert rounds[0]["model"] not in {r["model"] for r in rounds[1:]}
    assert [r["round"] for r in rounds] == list(range(ROUNDS + 1))
    assert [r["items"] for r in rounds][1:] == [rounds[0]["items"] + 8] * ROUNDS
    summary = read(folder, "run.json")
    scores = {r["round"]: r["auc_06_10"] for r in rows if r["split"] == "val"}
    assert scores[summary["best_round"]] == max(scores.values())
    page = folder / "lake" / "runs" / "tiny" / "report.html"
    assert "<html" in page.read_text(encoding="utf-8")[:500].lower()
    assert sorted(p.name for p in folder.iterdir()) == ["lake"]
    # Each line of its log says where it belongs, those of actors too.
    lines = [json.loads(line) for line in (folder / "lake/runs/tiny/log.jsonl").read_text().splitlines()]
    assert (lines[0]["message"], lines[-1]["message"]) == ("command begins", "command ended")
    assert {(x["run"], x["command"]) for x in lines} == {("tiny", "selftrain")}
    stages = {x["stage"] for x in lines}
    assert {"crawl", "detect", "train pose", "train acsm round 0", "keypoints round 1", "select round 2"} <= stages
    tables = {x["stage"].split("/")[0] for x in lines if x["unit"] and x["message"] == "unit ended"}
    assert tables >= {"labels", "photos", "instances", "pseudo_labels"}


@pytest.mark.ray
@pytest.mark.slow
def test_the_crawl_has_one_row_for_every_url(undisturbed: tuple[Path, str]) -> None:
    rows = photos(undisturbed[0])
    assert len({r["url"] for r in rows}) == len({r["photo_id"] for r in rows}) == len(rows)
    count = Counter(r["status"] for r in rows)
    assert count["ok"] > 20
    assert sum(count.values()) > count["ok"]  # the sandbox's web has dead links


@pytest.mark.ray
@pytest.mark.slow
def test_mlflow_holds_runs_within_runs(undisturbed: tuple[Path, str]) -> None:
    folder = undisturbed[0]
    with sqlite3.connect(folder / "lake" / "mlflow.db") as store:
        names = dict(store.execute("select run_uuid, name from runs").fetchall())
        status = dict(store.execute("select run_uuid, status from runs").fetchall())
        parents = dict(store.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'").fetchall())
        metrics = store.execute("select run_uuid, key, step, value from metrics").fetchall()
    (root,) = [r for r in names if r not in parents]
    assert names[root] == "tiny"
    assert set(status.values()) == {"FINISHED"}
    rounds = {names[r]: r for r, parent in parents.items() if parent == root}
    assert {f"round {n}" for n in range(ROUNDS + 1)} < rounds.keys()
    assert {"crawl", "detect"} < rounds.keys()
    for number in range(1, ROUNDS + 1):
        stages = {names[r] for r, parent in parents.items() if parent == rounds[f"round {number}"]}
        assert {"keypoints", "select", "train acsm"} <= stages
    by_step = {step: value for run, key, step, value in metrics if run == root and key == "test_auc_06_10"}
    assert by_step == {r["round"]: r["auc_06_10"] for r in read(folder, "metrics.json") if r["split"] == "test"}


@pytest.mark.ray
@pytest.mark.slow
def test_any_auc_leads_back_to_what_it_came_from(undisturbed: tuple[Path, str]) -> None:
    """Walk from each AUC in MLflow to its network, pseudo-labels, selection, teacher and config, which must agree."""
    lake = Lake(str(undisturbed[0] / "lake"))
    client = MlflowClient(tracking_uri=f"sqlite:///{lake.uri}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "wildshape"]
    runs = client.search_runs([experiment.experiment_id], "tags.mlflow.runName = 'tiny'")
    (root,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]

    def below(run: Any) -> dict[str, Any]:
        wanted = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        return {r.info.run_name: r for r in client.search_runs([experiment.experiment_id], wanted)}

    config = yaml.safe_load((Path(root.info.artifact_uri.removeprefix("file://")) / "config.yaml").read_text())
    assert config == yaml.safe_load((Path(lake.uri) / "runs/tiny/config.yaml").read_text())
    assert int(root.data.tags["best_round"]) == read(undisturbed[0], "run.json")["best_round"]
    networks = below(root)["train pose"].data.tags["model"], below(root)["train aux"].data.tags["model"]
    teacher = ""
    for point in client.get_metric_history(root.info.run_id, "test_auc_06_10"):
        stages = below(below(root)[f"round {point.step}"])
        training = stages["train acsm"]
        tags = training.data.tags
        assert training.data.metrics["test_auc_06_10"] == point.value
        assert tags["config"] == fingerprint(config)
        known = lake.files.read_json(f"models/acsm/{tags['model_id']}/model.json")
        assert known["metrics"]["test"]["auc_06_10"] == point.value
        assert Path(tags["model"]).exists()
        if point.step:
            chosen, pseudo, instances = (
                lake.find(t, "quadruped", tags[t].rsplit("/", 1)[1])
                for t in ("selections", "pseudo_labels", "instances")
            )
            assert known["job"]["pseudo"]["selections"]["identity"] == chosen.identity
            assert chosen.identity["pseudo_labels"] == pseudo.fingerprint
            assert chosen.identity["criterion"] == config["criterion"]
            assert (
                sum(chosen.read()["selected"].to_pylist()) + read(undisturbed[0], "rounds.json")[0]["items"]
                == (known["items"])
            )
            assert pseudo.identity["instances"] == instances.fingerprint
            assert stages["keypoints"].data.tags["teacher"] == teacher
            assert pseudo.identity["models"] == {
                name: weights_digest(path)
                for name, path in zip(("pose", "aux", "acsm"), (*networks, teacher), strict=True)
            }
        teacher = tags["model"]
        (version,) = client.search_model_versions(f"run_id = '{training.info.run_id}'")
        assert version.source == teacher
        assert version.tags["round"] == str(point.step)
    best = client.get_model_version_by_alias("wildshape-quadruped-tiny", "best")
    assert best.tags["round"] == root.data.tags["best_round"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_schedule_an_average_as_teacher_the_2d_net_again_and_a_guard(undisturbed: tuple[Path, str]) -> None:
    folder = undisturbed[0]
    grown = ("run=grown", "rounds=3", "top_n=[4,6,1000]", "teacher=ema", "retrain_pose=true", "stop.kept=[0,0.9]")
    printed = finish(folder, *grown)
    rounds, lake = read(folder, "rounds.json", "grown"), Lake(str(folder / "lake"))
    assert [r["items"] - rounds[0]["items"] for r in rounds] == [0, 4, 6]
    stopped = read(folder, "run.json", "grown")["stopped"]
    assert stopped.startswith("round 3 was not trained: 100.0% of the animals were selected")
    assert stopped.split(",")[0] in " ".join(printed.split())
    one, two = (lake.find("pseudo_labels", "quadruped", r["pseudo_labels"].rsplit("/", 1)[1]) for r in rounds[1:])
    first, second = one.identity["models"], two.identity["models"]
    assert first["acsm"] == weights_digest(rounds[0]["model"])
    assert second["acsm"] not in {weights_digest(r["model"]) for r in rounds}
    assert first["pose"] != second["pose"]
    assert first["aux"] == second["aux"]
    a, b = (d.read().sort_by("instance_id") for d in (one, two))
    assert a["keypoints_aux"].equals(b["keypoints_aux"])
    assert not a["keypoints"].equals(b["keypoints"])
    trained = lake.files.read_json("runs/grown/round-2/diagnostics.json")
    assert (trained["selected"], trained["round"]) == (6, 2)
    assert 0 <= trained["jaccard"] <= 4 / 6
    names = {p.name for p in (folder / "lake/runs/grown/round-2").iterdir()}
    assert {"diagnostics.json", "viewpoints.png", "contact_sheet.png"} <= names


@pytest.mark.ray
@pytest.mark.slow
def test_a_given_2d_network_teaches_in_place_of_one_trained_here(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    net = vitposes(tmp_path)["plain"]
    folder = undisturbed[0]
    finish(folder, "run=given", "rounds=1", f"pose_model={net}", "train.acsm.start=null")
    run, lake = read(folder, "run.json", "given"), Lake(str(folder / "lake"))
    assert run["networks"]["pose"] == net
    both = run["metrics_2d"]
    assert both["pose"]["test"]["instances"] == both["aux"]["test"]["instances"] > 0
    assert run["rounds"][1]["items"] - run["rounds"][0]["items"] == 8
    made = lake.find("pseudo_labels", "quadruped", run["rounds"][1]["pseudo_labels"].rsplit("/", 1)[1])
    assert made.identity["models"]["pose"] == weights_digest(net)
    config = SimpleNamespace(lake=lake.uri, run="given", category="quadruped", acsm=None, pose=None)
    assert Chosen(config).pose == net
    assert "pose net, AUC" in (folder / "lake/runs/given/report.html").read_text()


# -- kill -9 --------------------------------------------------------------------------------------------------------


def kill_when(folder: Path, moment: Callable[[Path], bool]) -> None:
    """Start the loop, kill its driver alone as soon as the lake shows the moment, and wait for its children to go."""
    with (folder / "killed.log").open("ab") as log:
        driver = subprocess.Popen(command(folder, *SMALL), cwd=folder, env=environment(), stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while not moment(folder / "lake"):
        assert driver.poll() is None, f"ended before the moment: {(folder / 'killed.log').read_text()[-3000:]}"
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.002)
    kill_alone(driver)


def begun(lake: Path, table: str) -> Iterator[Path]:
    """Datasets of a table that have a committed part and are not finished."""
    for manifest in lake.glob(f"{table}/category=quadruped/*/_manifests/*.json"):
        if not (manifest.parents[1] / "_finished.json").exists():
            yield manifest.parents[1]


def crawling(lake: Path) -> bool:
    # Labelled photos lie in the same table: a crawl's dataset has no slot.
    return any(json.loads((d / "_dataset.json").read_text())["slot"] == "" for d in begun(lake, "photos"))


def training(lake: Path) -> bool:
    return any(lake.glob("models/pose/*/checkpoint.pt"))


def labelling(lake: Path) -> bool:
    return any(begun(lake, "pseudo_labels"))


@pytest.mark.ray
@pytest.mark.slow
def test_killed_three_times_it_ends_like_an_undisturbed_run(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    whole = undisturbed[0]
    for moment in (crawling, training, labelling):
        kill_when(tmp_path, moment)
        # The kill came in the middle: something is left to do, and something is done.
        assert moment(tmp_path / "lake"), f"killed too late for {moment.__name__}"
    (tmp_path / "killed.log").unlink()
    finish(tmp_path)
    # Two runs of one seed: the same numbers to the last digit, and the same animals for the same reasons.
    assert read(tmp_path, "metrics.json") == read(whole, "metrics.json")
    assert chosen(tmp_path) == chosen(whole)
    ours, theirs = read(tmp_path, "rounds.json"), read(whole, "rounds.json")
    paths = [[{k: v for k, v in r.items() if k != "model"} for r in rounds] for rounds in (ours, theirs)]
    assert paths[0] == paths[1]
    mine = photos(tmp_path)
    assert len({r["url"] for r in mine}) == len(mine)
    # The sandbox's origin has another port each time, but the same photos.
    assert [{**r, "url": ""} for r in mine] == [{**r, "url": ""} for r in photos(whole)]
    left = [p for p in (tmp_path / "lake").rglob("*") if p.name == "checkpoint.pt" or p.name.endswith(".tmp")]
    assert [p for p in left if p.name == "checkpoint.pt"] == []


# -- bad input ------------------------------------------------------------------------------------------------------


def template(folder: Path) -> str:
    """A readable template file."""
    from test_acsm import TEMPLATE

    TEMPLATE.save(str(folder / "deer.template"))
    return "template=deer.template"


def refused(folder: Path, module: str, *arguments: str) -> str:
    """Run a command that must refuse its input at once; its one line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stdout + done.stderr
    assert not (folder / "lake" / "sandbox").exists()
    assert not list(folder.glob("lake/**/session_*"))
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rounds=-1"], "rounds=-1"),
        (["rounds=two"], "rounds=two"),
        (["criterion=nonsense"], "criterion=nonsense"),
        (["criterion=oracle", "template=own.template"], "criterion=oracle"),
        (["top_n=[8,0]"], "top_n=0"),
        (["top_n=[]"], "top_n=[]"),
        (["gate=0"], "gate=0"),
        (["teacher=me"], "teacher=me"),
        (["pose_model=nowhere"], "pose_model=nowhere"),
        (["pose_model=17"], "pose_model=17"),
        (["resources.train.workers=[1,24]"], "train.detector.plan.batch=16 is not enough for all"),
        (["retrain_pose=2"], "retrain_pose=2"),
        (["stop.kept=[0.5]"], "stop.kept=[0.5]"),
        (["stop.drop=-1"], "stop.drop=-1"),
        (["stop.views=2"], "stop.views=2"),
        (["detector=onnx"], "detector_model=null"),
        (["detector=onnx", "detector_model=garbage.template"], "detector_model=garbage.template: not a YOLOX export"),
        (["detector_model=gone.safetensors"], "detector_model=gone.safetensors"),
        (["top_n=0"], "top_n=0"),
        (["template=missing.template"], "template=missing.template: no such file"),
        (["template=garbage.template"], "template=garbage.template"),
        (["category=deer"], "template=null"),
        (["source.path=rows.tsv"], "source.path=rows.tsv"),
        (["detector=other"], "detector=other"),
        (["run=a/b"], "run=a/b"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "garbage.template").write_bytes(b"no template" * 9)
    assert message in refused(tmp_path, "pipelines.selftrain", *arguments)
    assert not (tmp_path / "lake").exists()


def test_a_metadata_file_of_no_known_format_is_refused(tmp_path: Path) -> None:
    from test_ingest import coco, take_in, write

    lake = Lake(str(tmp_path / "lake"))
    take_in(lake, write(tmp_path / "a.json", coco(tmp_path / "photos")), str(tmp_path / "photos"), "train", "train:a")
    (tmp_path / "rows.tsv").write_bytes(b"some\tthree\tcolumns\n" * 20)
    own = ["category=deer", template(tmp_path)]
    assert "source.path=rows.tsv" in refused(tmp_path, "pipelines.selftrain", *own, "source.path=rows.tsv")
    assert "source.path=gone.tsv" in refused(tmp_path, "pipelines.selftrain", *own, "source.path=gone.tsv")
    # Without labels there is nothing to begin with.
    assert "category=cow" in refused(tmp_path, "pipelines.selftrain", template(tmp_path), "category=cow")
    assert not list((tmp_path / "lake").glob("models"))


def test_unreadable_checkpoints_are_refused_by_every_command_that_takes_one(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"PK\3\4 nothing of ours")
    assert "model=net.pth" in refused(tmp_path, "pipelines.evaluate", "model=net.pth")
    assert "model=gone.pth" in refused(tmp_path, "pipelines.evaluate", "model=gone.pth")
    assert "net.pth" in refused(tmp_path, "trainers.acsm", template(tmp_path), "start_from=net.pth")


def test_cfg_job_prints_the_config_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['selftrain', '--cfg', 'job']\n"
        "runpy.run_module('pipelines.selftrain', run_name='__main__')\n"
        "heavy = [m for m in ('ray', 'torch', 'mlflow', 'pyarrow.dataset', 'cv2', 'aiohttp') if m in sys.modules]\n"
        "sys.stderr.write(','.join(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "criterion: cf_cm2" in done.stdout
    assert "rounds: 2" in done.stdout
    assert list(tmp_path.iterdir()) == []
