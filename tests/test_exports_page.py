"""docs/exports.md as its reader goes through it, on a lake with a run: every command, and all Python but FiftyOne's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import ROOT, call, ours, pieces
from test_export import submitted
from tiny import shared_lake

from tables import Lake

TYPED = [p.text for p in pieces("docs/exports.md") if p.language == "sh"]
PYTHON = [p.text for p in pieces("docs/exports.md") if p.language == "python" and "fiftyone" not in p.text]


def run(folder: Path, *arguments: str) -> str:
    """A Python of its own in that folder, with no network."""
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{arguments}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a lake, and the page's exports in it."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(shared_lake().uri, folder / "lake")
    exports = [line for line in TYPED if "ingest" not in line]
    assert [line.split()[2] for line in exports] == ["pipelines.export"] * 2 + ["zipfile"] + ["pipelines.export"]
    said = [run(folder, *line.split()[1:]) for line in exports]
    assert (
        said[0]
        == "run default, round 2: 6 animals in 6 photos, with ATTRIBUTION.csv and ATTRIBUTION.md: pseudo_labels\n"
    )
    return folder


def test_the_python_of_the_page(work: Path) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    pytest.importorskip("datasets", reason="datasets is not installed")
    evaluate, table, newest = PYTHON
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets= 20 ] = 1.000" in run(work, "-c", evaluate)
    lake = Lake(str(work / "lake"))
    two = sum(len(d.read(["instance_id"])) for d in lake.datasets("pseudo_labels", "quadruped"))
    run(work, "-c", f"{table}\nassert joints.shape == ({two}, 16, 3) and joints.dtype == 'float32', joints.shape\n")
    run(work, "-c", f"{newest}\nassert len(rows) == {two // 2} and set(rows['round']) == {{2}}, rows\n")


@pytest.mark.ray
@pytest.mark.slow
def test_what_comes_back_is_ingested(work: Path, ray_local: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    shutil.copy("for_cvat/annotations/person_keypoints_default.json", ".")  # as if CVAT had written it
    tasks = json.loads(Path("for_label_studio/tasks.json").read_text())
    Path("project.json").write_text(json.dumps(submitted(tasks)))
    lake, commands = Lake("lake"), [words for line in TYPED for words in ours(line) if words[0] == "ingest"]
    before = len(lake.datasets("labels", "quadruped"))
    for words in commands:
        call(words)
        newest = max(lake.datasets("labels", "quadruped"), key=lambda d: (d.finished() or {})["finished_at"])
        assert len(newest.read(["instance_id"])) == 6, words
    assert len(lake.datasets("labels", "quadruped")) == before + len(commands) == before + 3
