"""`status` and `doctor` say what is there, in one line also of a lake that is missing, empty, foreign or broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from tiny import CATEGORY, shared_lake

from pipelines.doctor import Check, examine
from pipelines.status import show, survey
from tables import Dataset, InputError, Lake
from trainers.app import Exit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    shutil.copytree(shared_lake().uri, tmp_path / "lake")
    return Lake(str(tmp_path / "lake"))


def of_table(found: dict[str, Any], table: str) -> list[dict[str, Any]]:
    return [d for d in found["datasets"] if d["table"] == table]


def test_datasets_and_runs_of_a_lake(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    found = survey(lake)
    assert found["damaged"] == []
    assert [d["slot"] for d in of_table(found, "labels")] == [d.slot for d in lake.datasets("labels", CATEGORY)]
    (crawled,) = [d for d in of_table(found, "photos") if not d["slot"]]
    assert crawled["rows"] == len(lake.latest("photos", CATEGORY).read(["photo_id"]))
    assert {d["state"] for d in of_table(found, "labels")} == {"finished"}
    (run,) = found["runs"]
    assert (run["run"], run["rounds_done"], run["rounds_asked"], run["best"], run["ended"]) == (
        "default",
        3,
        3,
        2,
        True,
    )
    rows = json.loads((lake.files.read("runs/default/metrics.json") or b"").decode())
    assert run["auc"]["test"] == {str(r["round"]): r["auc_06_10"] for r in rows if r["split"] == "test"}
    assert found["models"]["acsm"] == {"trained": 3, "half_trained": 0}
    assert survey(lake, "another")["datasets"] == survey(lake, "another")["runs"] == []
    show(found)
    shown = capsys.readouterr().out
    assert crawled["dataset"] in shown
    assert f"{run['auc']['test']['2']:.2f}*" in shown


def test_what_is_left_to_do(lake: Lake) -> None:
    photos, pseudo = lake.latest("photos", CATEGORY), lake.datasets("pseudo_labels", CATEGORY)[0]
    instances = lake.find("instances", CATEGORY, str(pseudo.identity["instances"]))

    def state_of(ds: Dataset) -> tuple[str, str | None]:
        (entry,) = [d for d in survey(lake)["datasets"] if d["dataset"] == ds.fingerprint]
        return entry["state"], entry["to_do"]

    pseudo.finish(instances.state())
    assert state_of(pseudo) == ("finished", None)
    instances.overlay(instances.read(["instance_id"]))
    assert state_of(pseudo) == ("behind", "its end alone")
    pseudo.forget(pseudo.parts()[0])
    assert state_of(pseudo) == ("behind", "1 of 1 parts")
    pseudo.unfinish()
    assert state_of(pseudo) == ("open", "1 of 1 parts")
    photos.unfinish()
    rows = len(photos.read(["photo_id"]))
    photos.files.write_json(f"{photos.path}/_plan/p/plan.json", {"counts": {"wanted": rows + 5}})
    assert state_of(photos) == ("open", f"5 of {rows + 5} URLs")
    lake.files.write("models/acsm/0123/checkpoint.pt", b"")
    assert survey(lake)["models"]["acsm"] == {"trained": 3, "half_trained": 1}


def test_what_is_damaged_is_named_and_the_rest_is_shown(lake: Lake) -> None:
    whole = survey(lake)
    (data,) = (Path(lake.uri) / lake.datasets("pseudo_labels", CATEGORY)[0].path).glob("all-*.parquet")
    data.unlink()
    lake.files.write("runs/default/run.json", b"{")
    torn = lake.latest("photos", CATEGORY)
    lake.files.write(f"{torn.path}/_manifests/all.json", b'{"part"')
    found = survey(lake)
    assert len(found["damaged"]) == 3
    assert any(data.name in line and "gone" in line for line in found["damaged"])
    assert any("runs/default/run.json" in line for line in found["damaged"])
    assert any(torn.path in line for line in found["damaged"])
    assert len(found["datasets"]) == len(whole["datasets"]) - 1


@pytest.mark.parametrize(
    ("made", "said"),
    [(None, "is not there yet"), ("file", "is a file"), ("other/x.txt", "is no lake: it holds other")],
)
def test_what_is_no_lake_is_one_line(made: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "some"
    if made == "file":
        path.write_text("x")
    elif made:
        (path / made).parent.mkdir(parents=True)
        (path / made).write_text("x")
    with pytest.raises(InputError, match=said) as caught:
        survey(Lake(str(path)))
    assert "\n" not in str(caught.value)


def test_an_empty_lake_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(survey(Lake(str(tmp_path))))
    assert capsys.readouterr().out == f"lake {tmp_path} is empty\n"
    show(survey(Lake(str(tmp_path)), "deer"), "deer")
    assert capsys.readouterr().out == f"lake {tmp_path} holds nothing of category=deer\n"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which tells on its last line what it imported."""
    script = (
        "import sys, atexit\nfrom pipelines.cli import main\n"
        "heavy = {'ray', 'torch', 'mlflow'}\n"
        "atexit.register(lambda: sys.stderr.write(f'imported {sorted(heavy & sys.modules.keys())}\\n'))\n"
        "main()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", script, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def test_the_command_is_quick_and_its_exit_code_tells_of_damage(lake: Lake, tmp_path: Path) -> None:
    done = run("status", f"lake={lake.uri}", "json=true", cwd=tmp_path)
    assert done.returncode == Exit.DONE, done.stderr
    assert json.loads(done.stdout) == survey(lake)
    assert done.stderr == "imported []\n"
    lake.files.write("runs/default/run.json", b"{")
    assert run("status", f"lake={lake.uri}", cwd=tmp_path).returncode == Exit.LOST
    assert run("status", "lake=nowhere", cwd=tmp_path).returncode == Exit.REFUSED
    assert [p.name for p in tmp_path.iterdir()] == ["lake"]


# -- doctor ---------------------------------------------------------------------------------------------------------


def checks(*overrides: str) -> dict[str, Check]:
    with initialize_config_module(config_module="conf", version_base="1.3"):
        found = list(examine(compose("doctor", overrides=list(overrides))))
    assert all(c.state in ("ok", "warn", "fail") for c in found)
    assert all(c.fix for c in found if c.state != "ok")
    assert not [c for c in found if "\n" in c.text + c.fix]
    return {c.name: c for c in found}


def test_a_machine_that_runs_the_tests_is_fit(tmp_path: Path) -> None:
    found = checks(f"lake={tmp_path / 'new'}")
    assert not [c for c in found.values() if c.state == "fail"], found
    assert {"python", "wildshape", "torch", "ray", "mlflow", "lake", "memory", "open files"} <= found.keys()
    assert "not there yet" in found["lake"].text
    assert not list(tmp_path.iterdir())


def test_what_is_unfit_is_a_fail_with_a_fix(lake: Lake, tmp_path: Path) -> None:
    lake.files.write("runs/default/run.json", b"{")
    lake.files.write("mlflow.db", b"no database, but longer than a header of one would have to be")
    found = checks(f"lake={lake.uri}", "resources.gpus=1")
    failed = {name for name, c in found.items() if c.state == "fail"}
    assert failed == {"lake", "mlflow"} | (set() if torch.cuda.is_available() else {"torch"})
    assert "run.json" in found["lake"].text
    (tmp_path / "file").write_text("x")
    assert checks(f"lake={tmp_path / 'file'}", "mlflow.uri=http://127.0.0.1:9")["mlflow"].state == "fail"


def test_the_doctors_exit_code(tmp_path: Path) -> None:
    done = run("doctor", f"lake={tmp_path / 'new'}", "json=true", "mlflow.uri=http://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == Exit.LOST, done.stderr
    names = [c["name"] for c in json.loads(done.stdout)["checks"] if c["state"] == "fail"]
    assert names == ["mlflow"]
    assert "'ray'" not in done.stderr
