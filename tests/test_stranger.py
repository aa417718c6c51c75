"""A stranger's species: the four commands of the README on an animal that is not the sandbox's."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documented import pieces
from rig_keypoints import geometric_keypoints, rig_path

from models.gltf import read_glb
from sandbox.origin import Origin
from sandbox.world import build_world
from tables import Lake

ROOT = Path(__file__).resolve().parents[1]
# Few photos and few steps: whether the chain holds, not whether the animal is learned.
SHARES = {"dead": 0.1, "strangers": 0.1, "nothing": 0.1, "duplicate": 0.05, "near_duplicate": 0.0}
WORLD = {
    "name": "stranger", "category": "deer", "seed": 3, "photo_px": 160, "workers": 1,
    "labelled": {"train": 20, "val": 2, "test": 2},
    "web": {"photos": 30, "reserved": 0.0, "shares": {**SHARES, "off_topic": 0.05, "video": 0.05}},
}  # fmt: skip
TINY = [
    "train.pose.plan.steps=4", "train.aux.plan.steps=4", "train.detector.plan.steps=4", "train.acsm.plan.steps=4",
    "train.pose.plan.batch=4", "train.acsm.plan.batch=4", "train.detector.plan.batch=4",
    "detect.score=0.0", "detect.most=2", "top_n=10", "resources.train.threads=1", "rounds=1",
]  # fmt: skip


def command(folder: Path, name: str, *overrides: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", name, *overrides], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{name} {overrides}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.ray
@pytest.mark.slow
def test_four_commands_on_a_real_rig(tmp_path: Path) -> None:
    work = tmp_path / "mine"
    work.mkdir()
    rig, joints = work / "Deer.glb", work / "keypoints.json"
    rig.write_bytes(rig_path("Horse").read_bytes())
    joints.write_text(json.dumps({"keypoints": geometric_keypoints(read_glb(str(rig))), "note": "ignored"}))
    world = build_world(str(tmp_path / "world"), {**WORLD, "rig": str(rig), "keypoints": str(joints)})
    (work / "labelled.json").write_bytes(Path(world.train).read_bytes())
    (work / "photos").symlink_to(world.labelled_photos)
    with Origin(os.path.dirname(world.origin)) as origin:
        rows = Path(world.rows).read_text(encoding="utf-8").replace(f"http://{world.host}", origin.url)
        (work / "rows.tsv").write_text(rows, encoding="utf-8")
        brought = {p.name for p in work.iterdir()}
        typed = [shlex.split(p.text) for p in pieces("README.md", "Your own species")]
        assert [words[2] for words in typed] == [f"pipelines.{s}" for s in ("template", "ingest", "crawl", "selftrain")]
        # The page on new species says the last two again, for public hosts.
        for again, first in zip(pieces("docs/new-species.md", "5. The web"), typed[2:], strict=True):
            assert set(shlex.split(again.text)) <= set(first)
        for _, _, module, *arguments in typed:
            command(work, module, *arguments, *(TINY if module == "pipelines.selftrain" else []))

    metrics = json.loads((work / "lake/runs/deer/metrics.json").read_text())
    assert {(m["round"], m["split"]) for m in metrics} == {(0, "val"), (1, "val")}, "a fifth of train is held out"
    assert all(0 <= m["auc_06_10"] <= 100 and len(m["pck"]) == 15 for m in metrics)
    assert (work / "lake/runs/deer/report.html").stat().st_size > 10_000
    assert {p.name for p in work.iterdir()} - brought == {"deer.template", "deer.template.png", "lake"}
    photos = Lake(str(work / "lake")).latest("photos", "deer").read(["photo_id", "status"])
    assert len(set(photos["photo_id"].to_pylist())) == len(photos) > 15
