"""`predict`: a real photo end to end, the same answers as the pipeline's, a row for each photo whatever it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from documented import ROOT, pieces
from tiny import CATEGORY
from tiny import add_pseudo_labels as keypoints_of

from models.articulation import skin
from models.camera import project
from models.checkpoint import checkpoint_bytes, load_checkpoint
from models.gltf import read_glb
from models.heatmap import Detector
from models.photo import decode_photo
from pipelines import predict
from pipelines.chosen_models import Chosen
from pipelines.detect_worker import DetectWorker
from pipelines.label_worker import rows_to_table
from pipelines.pose_picture import overlay
from pipelines.predict_files import names_of
from pipelines.run_record import open_run
from tables import QUADRUPED, InputError, Lake, schema, to_numpy
from trainers.app import Exit

RULES = {"score": 0.0, "overlap": 0.5, "most": 2, "min_side": 8, "crop_px": 352, "radius": 0}


@pytest.fixture(scope="module")
def photos(lake: Lake) -> list[Path]:
    return sorted(Path(lake.uri, "sandbox/tiny/labelled/photos").glob("test*.jpg"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A detector of random weights: it finds something everywhere, and is sure of nothing."""
    torch.manual_seed(0)
    job = {"category": CATEGORY, "settings": {"image_size": 96}}
    path = tmp_path_factory.mktemp("own") / "model.safetensors"
    path.write_bytes(checkpoint_bytes(Detector(width=8, channels=16), {"job": job}))
    return str(path)


@pytest.fixture
def call(own: str, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process and in an empty folder; the exit code."""
    monkeypatch.chdir(tmp_path)
    given = [f"lake={lake.uri}", f"detector_model={own}", *(f"detect.{k}={v}" for k, v in RULES.items())]

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["predict", *given, *predict.with_photos(arguments)])
        try:
            predict.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def readme_commands() -> list[str]:
    return [p.text for p in pieces("README.md", "One photo")]


def test_a_real_photo_end_to_end_says_what_it_was_trained_on(lake: Lake, shared_data: Path, tmp_path: Path) -> None:
    """README's first command, by another process, with YOLOX as the detector of a real horse."""
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'wildshape[onnx]'")
    (tmp_path / "photo.jpg").write_bytes((shared_data / "coco_animals/images/000000078499.jpg").read_bytes())
    python, _, *arguments = readme_commands()[0].replace("run=deer lake=./lake", f"lake={lake.uri}").split()
    assert python == "python"
    model = shared_data / "detector" / "yolox_nano.onnx"
    arguments += ["detector=onnx", f"detector_model={model}", "detect.classes=[horse]", "detect.most=1"]
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = open_run(lake, "default")
    labels, both = record.round(0)["items"], record.round(record.best)["items"]
    said = f"3D net: trained on {labels} labels and {both - labels} pseudo-labels of quadruped in run default (data "
    assert said in done.stdout
    assert "1 animal in 1 of 1 photos: predictions" in done.stdout

    out = tmp_path / "predictions"
    assert sorted(p.name for p in out.iterdir()) == ["photo-1.glb", "photo.json", "photo.png"]
    row = json.loads((out / "photo.json").read_text())
    on = row["networks"]["3D net"]["trained_on"]
    assert (on["category"], on["run"], on["items"], on["labels"]) == (CATEGORY, "default", both, labels)
    assert re.fullmatch("[0-9a-f]{16}", on["data"])
    assert row["networks"]["2D net"]["trained_on"]["items"] == labels
    assert row["networks"]["detector"]["trained_on"] is None
    assert (row["status"], row["width"], row["height"]) == ("ok", 640, 428)
    (animal,) = row["animals"]
    assert animal["class"] == "horse"
    assert animal["score"] > 0.8
    assert decode_photo((out / "photo.png").read_bytes()).shape == (428, 640, 3)  # type: ignore[union-attr]
    _agrees(animal, out / animal["mesh"], load_checkpoint(row["networks"]["3D net"]["model"]))


def _agrees(animal: dict[str, Any], mesh: Path, net: Any) -> None:
    """The mesh, and the template posed by the angles and seen by the camera, project to the joints."""
    joints = np.array([animal["keypoints_3d"][name] for name in QUADRUPED.names])
    x0, y0, side = animal["window"]
    seen = read_glb(str(mesh)).vertices[net.template.keypoints]
    at = np.stack([x0 + (seen[:, 0] + 1) * side / 2, y0 + (1 - seen[:, 1]) * side / 2], 1)
    np.testing.assert_allclose(at, joints, atol=0.05)
    camera = animal["camera"]
    angles = torch.tensor([animal["angles_rad"][part] for part in net.template.parts])
    with torch.inference_mode():
        posed = skin(net.vertices, net.weights, net.pose(angles))[net.index]
    numbers = torch.tensor([camera["scale"], *camera["shift"], *camera["quaternion_wxyz"]])
    np.testing.assert_allclose(project(numbers, posed)[:, :2], joints, atol=0.05)
    # The left of the picture is the left of the mesh, and what is near is on the viewer's side.
    away = project(numbers, posed)[:, 2].numpy()
    assert np.corrcoef(seen[:, 2], away)[0, 1] < -0.99


def test_it_says_what_the_pipeline_says(call: Any, lake: Lake, own: str, photos: list[Path], tmp_path: Path) -> None:
    assert call(str(photos[0]), str(photos[1])) == 0
    made = Lake(str(tmp_path / "lake"))
    crawled, instances = (made.dataset(t, CATEGORY, {"stage": t, "photos": "x"}) for t in ("photos", "instances"))
    rows = [
        {"photo_id": p.stem, "url": p.name, "status": "ok", "bytes": p.read_bytes(), "sha256": p.stem}
        for p in photos[:2]
    ]
    crawled.write("all", rows_to_table(rows, "photos"), schema("photos"))
    DetectWorker(crawled, instances, own, "x", CATEGORY, RULES)("all", {})
    record = open_run(lake, "default")
    models = {"pose": record.network("pose"), "aux": record.network("aux"), "acsm": record.model_path(record.best)}
    pseudo = keypoints_of(made, instances, models, 1)  # type: ignore[arg-type]
    boxes = instances.read(["instance_id", "photo_id", "bbox"])
    told = dict(zip(pseudo.read(["instance_id"])["instance_id"].to_pylist(), _rows(pseudo), strict=True))
    compared = 0
    for name, photo, box in zip(*(boxes[c].to_pylist() for c in boxes.column_names), strict=True):
        animals = json.loads((tmp_path / "predictions" / f"{photo}.json").read_text())["animals"]
        animal = next(a for a in animals if np.allclose(a["bbox"], box, atol=0.01))
        for key, expected in zip(("keypoints", "keypoints_3d"), told[name], strict=True):
            np.testing.assert_allclose([animal[key][j] for j in QUADRUPED.names], expected, atol=0.01)
        compared += 1
    assert compared >= 3


def _rows(pseudo: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    table = pseudo.read(["instance_id", "keypoints", "keypoints_3d"])
    return list(zip(to_numpy(table["keypoints"], 16, 3), to_numpy(table["keypoints_3d"], 16, 2), strict=True))


def test_the_other_commands_of_readme_and_docs(
    call: Any, photos: list[Path], own: str, lake: Lake, tmp_path: Path
) -> None:
    acsm = str(open_run(lake, "default").model_path(0))
    (tmp_path / "photos").mkdir()
    for path in ("a.jpg", "b.jpg", "photo.jpg", "photos/c.jpg"):
        (tmp_path / path).write_bytes(photos[0].read_bytes())
    lines = [*readme_commands(), *(p.text for p in pieces("docs/one-photo.md"))]
    assert {line.split()[2] for line in lines} == {"pipelines.predict", "pipelines.visualize"}  # test_visualize.py's
    made = []
    for line in (line for line in lines if "pipelines.predict" in line):
        here = line.replace("run=deer lake=./lake", "").replace("acsm=model.safetensors", f"acsm={acsm}")
        here = re.sub(r"detector=onnx detector_model=\S+ '.*'", f"detector=own detector_model={own}", here)
        shutil.rmtree(tmp_path / "predictions", ignore_errors=True)
        assert call(*here.split()[3:], "detect.most=1") == 0, line
        made.append(sorted(p.stem for p in (tmp_path / "predictions").glob("*.json")))
    assert made == [["photo"], ["c"], ["photo"], ["a", "b", "c"], ["photo"]]


def test_every_photo_of_a_folder_has_its_row(
    call: Any, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    good = photos[0].read_bytes()
    for name, content in (("good.jpg", good), ("cut.jpg", good[:900]), ("text.png", b"words"), ("note.txt", b"")):
        (folder / name).write_bytes(content)
    (folder / "void.jpg").symlink_to(folder / "nothing")
    assert call("photos=holiday", "out=made") == Exit.LOST
    assert call("photos=holiday", "out=made", "resources.failure_budget=0.75") == 0
    rows = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "made").glob("*.json")}
    expected = {"good": "ok", "cut": "truncated", "text": "not_image", "void": "unreadable"}
    assert {name: row["status"] for name, row in rows.items()} == expected
    assert len(rows["good"]["animals"]) == 2
    assert all(row["error"] and not row["animals"] for name, row in rows.items() if name != "good")
    said = capsys.readouterr().out
    assert "holiday/cut.jpg: truncated: " in said
    assert "2 animals in 1 of 4 photos, 3 could not be looked at: made" in said


def test_no_animal_is_said_with_the_fix(
    call: Any, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(str(photos[0]), "detect.min_side=9000") == Exit.NO_ANIMAL
    assert "no animal found; lower detect.score (0)" in capsys.readouterr().out
    (made,) = (tmp_path / "predictions").iterdir()
    row = json.loads(made.read_text())
    assert (row["status"], row["animals"], row["error"]) == ("no_animal", [], None)


def test_what_is_wrong_is_one_line(
    call: Any, own: str, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = f"photos={photos[0]}"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    wrong = {
        "photos=: is required": [],
        "photos=nowhere.jpg: no such file": ["nowhere.jpg"],
        "photos=empty: no photo lies in this folder": ["photos=empty"],
        "out=file: no folder": [photo, "out=file"],
        f"out={photos[0].parent}: the photos lie in this folder": [photo, f"out={photos[0].parent}"],
        "out=s3://x: name a local folder": [photo, "out=s3://x"],
        "run=nobody: ": [photo, "run=nobody"],
        "acsm=nowhere: no such file": [photo, "acsm=nowhere"],
        f"acsm={own}: holds a Detector, not a ACSM": [photo, f"acsm={own}"],
        "detector=magic: use one of own": [photo, "detector=magic"],
        "detect.score=2: ": [photo, "detect.score=2"],
    }
    for said, arguments in wrong.items():
        assert call(*arguments) == 2, said
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: {said}"), errors
        assert errors.count("\n") == 1
    # The tiny run has trained no detector.
    assert call(photo, "detector_model=null") == 2
    assert "run=default: its detector is no longer in the lake; give detector_model=<file>" in capsys.readouterr().err


def test_the_run_names_what_the_user_does_not(tmp_path: Path) -> None:
    made = Lake(str(tmp_path))
    made.files.write("runs/deer/config.yaml", b"category: deer\ndetector: onnx\ndetector_model: yolox.onnx\n")
    asked = {"lake": made.uri, "run": "deer", "category": "quadruped", "acsm": None, "pose": None, "detector": None}

    def chosen(**given: Any) -> Chosen:
        return Chosen(SimpleNamespace(**{**asked, "detector_model": None, **given}))

    with pytest.raises(InputError, match=r"^run=deer: has not ended"):
        _ = chosen().acsm
    made.files.write_json("runs/deer/run.json", {"best_round": 0, "networks": {"pose": "/gone/models/pose/1/m"}})
    assert chosen().detector == ("onnx", "yolox.onnx")
    assert chosen(detector="hf", detector_model="a/b").detector == ("hf", "a/b")
    assert chosen(acsm="mine").acsm == "mine"
    assert chosen(acsm="mine").pose is None
    for what, given in (("acsm", {}), ("pose", {}), ("detector", {"detector": "hf"}), ("detector", {"acsm": "mine"})):
        with pytest.raises(InputError, match=r"give (acsm|pose)=<file>|^detector_model=null: "):
            getattr(chosen(**given), what)


def test_leading_arguments_are_photos() -> None:
    assert predict.with_photos(["a b.jpg", 'c"d.jpg', "out=x", "e"]) == ['photos=["a b.jpg","c\\"d.jpg"]', "out=x", "e"]
    for untouched in (["photos=a.jpg"], ["--cfg", "job"], ["-m", "run=a,b"], []):
        assert predict.with_photos(untouched) == untouched


def test_no_two_photos_share_a_name() -> None:
    assert names_of(["a/x.jpg", "b/x.jpg", "a/x.png", "x_2.gif", "y.jpg"]) == ["x", "x_2", "x_3", "x_2_2", "y"]


def test_the_picture_covers_the_animal_and_nothing_else(lake: Lake, own: str, photos: list[Path]) -> None:
    from pipelines.detect_rules import Rules
    from pipelines.photo_reader import PhotoReader

    record = open_run(lake, "default")
    rules = Rules.read({**RULES, "most": 1})
    acsm = str(record.model_path(record.best))
    with_2d, without = (PhotoReader(acsm, p, "own", own, rules, "") for p in (record.network("pose"), None))
    (seen,) = with_2d([str(photos[0])])
    (bare,) = without([str(photos[0])])
    (animal,), (same,) = seen.animals, bare.animals
    np.testing.assert_array_equal(animal.keypoints_3d, same.keypoints_3d)
    assert same.keypoints is None
    assert seen.image is not None
    template = with_2d.acsm.template
    plain, drawn = (overlay(seen.image, a, template).astype(int) for a in ((), seen.animals))
    assert max(plain.shape) == 640  # a small photo is enlarged
    changed = np.abs(drawn - plain).max(-1) > 8
    scale = 640 / max(seen.image.shape)
    column, row = (((animal.vertices[:, :2] + 1) / 2 * animal.window[2] + animal.window[:2]) * scale).astype(int).T
    inside = (column >= 0) & (column < plain.shape[1]) & (row >= 0) & (row < plain.shape[0])
    assert inside.any()
    assert changed[row[inside], column[inside]].mean() > 0.9
    # Half out of the photo is no error, and what is out is not drawn at the other side.
    moved = animal._replace(window=animal.window - [animal.window[0] + animal.window[2] / 2, 0, 0])
    left = np.abs(overlay(seen.image, [moved], template).astype(int) - overlay(seen.image, [], template)).max(-1) > 8
    box = moved.bbox * scale
    left[:, round(float(box[0])) - 4 :] = False
    assert left.any()
