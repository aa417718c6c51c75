"""docs/new-species.md as its reader goes through it: every command and every piece of Python, on a real rig."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from documented import pieces
from rig_keypoints import geometric_keypoints, rig_path
from test_animals3d import reference_folder
from test_reference_checkpoint import acsm_state, pose_file
from test_stranger import ROOT, command

from models.gltf import read_glb
from models.template import Template
from sandbox.world import build_world

WORLD = {
    "name": "species", "category": "deer", "seed": 4, "photo_px": 160, "workers": 1,
    "labelled": {"train": 8, "val": 1, "test": 3},
    "web": {"photos": 1, "reserved": 0.0, "shares": {
        "dead": 0.0, "strangers": 0.0, "nothing": 0.0, "duplicate": 0.0, "near_duplicate": 0.0, "off_topic": 0.0,
        "video": 0.0,
    }},
}  # fmt: skip
# Whether the chain holds, not whether the animal is learned.
TINY = ["train.pose.plan.steps=3", "train.acsm.plan.steps=3", "train.pose.plan.batch=4", "train.acsm.plan.batch=4"]


# Those of the last section are of the README, where test_stranger.py runs them.
TYPED = [p for p in pieces("docs/new-species.md") if p.language == "sh" and p.heading != "5. The web"]


def python(folder: Path, code: str) -> None:
    """Run it as a script of its own; warnings that a reader would not see either are let pass."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"


@pytest.mark.ray
@pytest.mark.slow
def test_the_page_from_rig_to_network(tmp_path: Path) -> None:
    rig = rig_path("Horse")  # what this test calls a deer
    scene = read_glb(str(rig))
    clicked = {name: scene.vertices[vertex] + 1e-5 for name, vertex in geometric_keypoints(scene).items()}
    work = tmp_path / "work"
    work.mkdir()
    (work / "Deer.glb").write_bytes(rig.read_bytes())
    (work / "points.json").write_text(json.dumps({name: list(at) for name, at in clicked.items()}))
    nearest, one_photo, coming = (p.text for p in pieces("docs/new-species.md", language="python"))
    python(work, nearest)
    keypoints = work / "keypoints.json"
    world = build_world(str(tmp_path / "world"), {**WORLD, "rig": str(rig), "keypoints": str(keypoints)})
    (work / "photos").symlink_to(world.labelled_photos)
    for split in ("train", "test"):
        (work / f"{split}.json").write_bytes(Path(getattr(world, split)).read_bytes())

    for piece in TYPED:
        _, _, module, *arguments = piece.text.split()
        if "<pose>" in piece.text:
            arguments = [a.replace("<pose>", trained(work, "pose")) for a in arguments]
        command(work, module, *arguments, *(TINY if module.startswith("trainers.") else []))
    assert (work / "deer.template.png").stat().st_size > 10_000
    rows = json.loads(next((work / "lake/models/acsm").glob("*/model.json")).read_text())["metrics"]
    assert rows["test"]["instances"] >= 3  # animals in three photos

    photo = sorted((work / "photos").iterdir())[0].name
    code = one_photo.replace("<acsm>", trained(work, "acsm")).replace("one.jpg", photo)
    python(work, code + "\nassert joints.shape == (16, 2) and vertices.shape == net.template.vertices.shape\n")

    # Coming from animals3d: its folders beside each other, with networks of random weights.
    folder = reference_folder(work)
    (work / "results/checkpoints").mkdir(parents=True)
    (work / "cachedir/checkpoints").mkdir()
    pose_file(work / "results/checkpoints/horse.pth", 18)
    torch.save(acsm_state(64), work / "cachedir/checkpoints/horse.pth")
    python(work, coming)
    assert Template.load(str(work / "horse.template")) == Template.from_animals3d(str(folder))
    assert (work / "horse.safetensors").stat().st_size > 10_000


def trained(work: Path, kind: str) -> str:
    """The path that the training printed."""
    (model,) = (work / "lake/models" / kind).glob("*/model.safetensors")
    return str(model)
