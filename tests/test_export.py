"""What leaves the lake can be read by others: pycocotools, CVAT and Label Studio as they answer, our own readers."""

from __future__ import annotations

import copy
import csv
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from tiny import CATEGORY, TOP_N, shared_lake

from models.gltf import read_glb
from pipelines.annotation_label_studio import read_label_studio
from pipelines.export import check, find_selection, write_meshes
from pipelines.export_coco import cvat_labels, write_coco, write_cvat
from pipelines.export_label_studio import interface, write_label_studio
from pipelines.export_labels import Exported, Form, export_labels, selected
from pipelines.ingest import read_coco
from pipelines.run_record import RunRecord, open_run
from tables import QUADRUPED, InputError

NAMES = list(QUADRUPED.names)


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return open_run(shared_lake(), "default")


@pytest.fixture(scope="module")
def coco(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `what=coco`."""
    out = tmp_path_factory.mktemp("export") / "coco"
    assert export_labels(record, 1, write_coco, str(out)) == Exported(TOP_N, len(list((out / "data").iterdir())))
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def same(found: list[dict[str, Any]], record: RunRecord, px: float = 0.0) -> None:
    """What a reader found is the round's selection: boxes and joints, to `px` pixels."""
    animals = [a for photo in found for a in photo["animals"]]
    joints = np.array([a["keypoints"] for a in animals]).reshape(-1, 16, 3)
    boxes = np.array([a["bbox"] for a in animals])
    expected = selected(record, 1).animals
    assert len(animals) == len(expected) == TOP_N
    for animal in expected:
        (at,) = np.flatnonzero((abs(boxes - animal.bbox) <= px + 1e-9).all(1))
        np.testing.assert_allclose(joints[at], animal.keypoints, atol=px + 1e-9)


def test_a_coco_folder_reads_back(coco: Path, record: RunRecord) -> None:
    document = read(coco / "labels.json")
    assert [a["rank"] for a in document["annotations"]] == list(range(1, TOP_N + 1))
    assert {v for a in document["annotations"] for v in a["keypoints"][2::3]} == {2}
    assert all(len(a["keypoint_scores"]) == 16 and min(a["keypoint_scores"]) >= 0 for a in document["annotations"])
    assert not any({"instance", "instance_id"} & set(a) for a in document["annotations"])  # FiftyOne's own names
    bones = np.array(document["categories"][0]["skeleton"])
    assert (bones.min(), bones.max()) == (1, 16)
    assert {i["author"] for i in document["images"]} == {"A. Nyone"}
    licence = {"id": 0, "name": "CC BY 2.0", "url": "http://creativecommons.org/licenses/by/2.0/"}
    assert document["licenses"] == [licence]
    same(read_coco(str(coco / "labels.json"), str(coco / "data")), record)


@pytest.mark.parametrize("form", [write_coco, write_cvat, write_label_studio])
def test_every_photo_leaves_as_it_came_and_names_its_author(form: Form, record: RunRecord, tmp_path: Path) -> None:
    done = export_labels(record, 1, form, str(tmp_path / "one"))
    files = {p.name: p.read_bytes() for p in (tmp_path / "one").rglob("*.jpg")}
    if form is write_cvat:
        with zipfile.ZipFile(tmp_path / "one" / "coco_keypoints.zip") as archive:
            files = {Path(n).name: archive.read(n) for n in archive.namelist() if n.startswith("images/default/")}
    with open(tmp_path / "one" / "ATTRIBUTION.csv", encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(files)
    assert len(rows) == done.photos
    crawled = record.photos()
    assert crawled is not None
    known = {r["photo_id"]: r["bytes"] for r in crawled.read(["photo_id", "bytes"]).to_pylist()}
    assert all(known[row["photo_id"]] == files[name] for name, row in rows.items())
    assert {(row["author"], row["license"]) for row in rows.values()} == {("A. Nyone", "CC BY 2.0")}
    export_labels(record, 1, form, str(tmp_path / "two"))
    written = [{p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("one", "two")]
    assert written[0] == written[1]


def test_unsure_joints_are_not_labelled(record: RunRecord) -> None:
    scores = sorted(s for a in selected(record, 1).animals for s in a.scores)
    middle = scores[len(scores) // 2]
    animals = selected(record, 1, min_confidence=middle).animals
    assert {v for a in animals for v in a.keypoints[:, 2].tolist()} == {0, 2}
    assert not any(a.keypoints[a.keypoints[:, 2] == 0].any() for a in animals)
    score, seen = np.concatenate([a.scores for a in animals]), np.concatenate([a.keypoints[:, 2] > 0 for a in animals])
    assert score[seen].min() > middle - 1e-4 > score[~seen].max() - 2e-4  # what is written is rounded


def test_pycocotools_evaluates_it(coco: Path) -> None:
    pycoco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from pycocotools.cocoeval import COCOeval

    truth = pycoco.COCO(str(coco / "labels.json"))
    size = np.mean([np.sqrt(a["area"]) for a in truth.dataset["annotations"]])

    def average_precision(shift: float) -> float:
        moved = copy.deepcopy(truth.dataset["annotations"])
        for a in moved:
            joints = np.array(a["keypoints"], float).reshape(16, 3)
            joints[:, :2] += np.random.default_rng(a["id"]).normal(0, shift * size, (16, 2))
            a["keypoints"] = joints.ravel().tolist()
        judged = COCOeval(truth, truth.loadRes(moved), "keypoints")
        judged.params.kpt_oks_sigmas = np.full(16, 0.05)  # COCO's own are of people's 17 joints
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        return float(judged.stats[0])

    assert average_precision(0.0) == 1.0
    assert 0.05 < average_precision(0.05) < 0.95
    assert average_precision(1.0) < 0.05


def test_cvat_brings_boxes_and_names_back(record: RunRecord, tmp_path: Path) -> None:
    export_labels(record, 1, write_cvat, str(tmp_path / "out"))
    with zipfile.ZipFile(tmp_path / "out" / "coco_keypoints.zip") as archive:
        archive.extractall(tmp_path)
    path = tmp_path / "annotations" / "person_keypoints_default.json"
    document = read(path)
    joints = np.array([a["keypoints"] for a in document["annotations"]]).reshape(-1, 16, 3)
    # CVAT writes the hull of the joints as the box, and the joints in its own order, by name.
    order = np.random.default_rng(0).permutation(16)
    document["categories"][0]["keypoints"] = [NAMES[i] for i in order]
    for a, points in zip(document["annotations"], joints, strict=True):
        a["bbox"] = [*points[:, :2].min(0), *np.ptp(points[:, :2], axis=0)]
        a["keypoints"] = points[order].ravel().tolist()
        assert a["segmentation"] == []  # CVAT's reader asks for one
    path.write_text(json.dumps(document))
    same(read_coco(str(path), str(tmp_path / "images" / "default")), record)
    document["annotations"][0]["attributes"]["animal_box"] = "1,2,three"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="animal_box=1,2,three is no box"):
        read_coco(str(path), str(tmp_path / "images" / "default"))


def test_cvat_draws_the_skeleton_that_the_labels_name() -> None:
    (label,) = cvat_labels(CATEGORY)
    drawn = Xml.fromstring(f"<svg>{label['svg']}</svg>")
    nodes = {c.attrib["data-node-id"]: c.attrib["data-label-name"] for c in drawn.iter("circle")}
    assert list(nodes.values()) == NAMES == [s["name"] for s in label["sublabels"]]
    edges = {(e.attrib["data-node-from"], e.attrib["data-node-to"]) for e in drawn.iter("line")}
    assert {(nodes[a], nodes[b]) for a, b in edges} == {(NAMES[a], NAMES[b]) for a, b in QUADRUPED.edges}


def submitted(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Label Studio exports when a person accepted every prediction."""
    return [{"data": t["data"], "annotations": [{"result": t["predictions"][0]["result"]}]} for t in tasks]


def test_label_studio_shows_the_animals_and_brings_them_back(record: RunRecord, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_labels(record, 1, write_label_studio, str(out))
    view, tasks = Xml.fromstring((out / "interface.xml").read_text()), read(out / "tasks.json")
    labels = {tag.attrib["name"]: [x.attrib["value"] for x in tag] for tag in view if len(tag)}
    assert labels == {"box": [CATEGORY], "joint": NAMES}
    assert tasks[0]["data"]["credit"] == "A. Nyone, CC BY 2.0"
    for region in (r for t in tasks for r in t["predictions"][0]["result"]):
        assert region["value"][region["type"]][0] in labels[region["from_name"]]
        assert all(0 <= region["value"][axis] <= 100 for axis in "xy")
    path = tmp_path / "done.json"
    path.write_text(json.dumps(submitted(tasks)))
    same(read_label_studio(str(path), str(out / "photos"), CATEGORY), record, px=1e-6)


def test_label_studio_says_whose_joint_is_whose(record: RunRecord, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_labels(record, 1, write_label_studio, str(out))
    (task, *_) = submitted(read(out / "tasks.json"))
    path = tmp_path / "done.json"
    result = task["annotations"][0]["result"]
    result[:] = [r for r in result if r["id"].startswith(result[0]["id"])]

    def found(task: dict[str, Any]) -> list[Any]:
        path.write_text(json.dumps([task]))
        return read_label_studio(str(path), str(out / "photos"), CATEGORY)[0]["animals"]

    (whole,) = found(task)
    for region in result:
        region.pop("parentID", None)
    assert found(task) == [whole]  # the photo has one rectangle
    skipped = {"result": [], "was_cancelled": True}
    assert found({**task, "annotations": [*task["annotations"], skipped]}) == [whole]
    nose = next(r for r in result if r["value"].get("keypointlabels") == ["Nose"])
    nose["value"]["keypointlabels"] = ["Snout"]
    with pytest.raises(InputError, match="joint Snout is none of L_eye"):
        found(task)
    result.append({**result[0], "id": "other"})
    with pytest.raises(InputError, match="joint L_eye lies under none of its rectangles"):
        found(task)
    with pytest.raises(InputError, match="not Label Studio's JSON export"):
        found({"data": {"image": "x.jpg"}})


def test_an_odd_name_does_not_break_the_interface() -> None:
    box = Xml.fromstring(interface('roe <deer> & "co"')).find("RectangleLabels/Label")
    assert box is not None
    assert box.attrib["value"] == 'roe <deer> & "co"'


def test_meshes_are_the_template_posed(record: RunRecord, tmp_path: Path) -> None:
    paths = write_meshes(record, 1, 3, str(tmp_path))
    assert [Path(p).name[:5] for p in paths] == ["00001", "00002", "00003"]
    scene = read_glb(paths[0])
    assert scene.joint_names[0] == "body"
    assert np.isfinite(scene.vertices).all()
    assert 0.5 < np.ptp(scene.vertices, axis=0).max() < 4


def test_bad_requests_are_named(record: RunRecord, tmp_path: Path) -> None:
    good = {"what": "coco", "round": None, "top": 1, "min_confidence": 0.0, "out": str(tmp_path / "new" / "x"),
            "format": "parquet", "shard_mb": 1}  # fmt: skip
    check(SimpleNamespace(**good))
    (tmp_path / "file").write_text("")
    bad = [
        ("what", "obj"), ("out", ""), ("out", 5), ("out", "s3://bucket/x"), ("out", str(tmp_path)),
        ("out", str(tmp_path / "file" / "x")), ("round", 0),
        ("round", True), ("top", 0), ("top", "abc"), ("min_confidence", 2), ("min_confidence", "abc"),
        ("format", "zip"), ("shard_mb", 0), ("shard_mb", 1.5), ("shard_mb", 10**6),
    ]  # fmt: skip
    for key, value in bad:
        with pytest.raises(InputError, match=f"^{key}="):
            check(SimpleNamespace(**{**good, key: value}))
    for what in ("glb", "photos", "cvat"):
        with pytest.raises(InputError, match=r"^out="):
            check(SimpleNamespace(**{**good, "what": what, "out": str(tmp_path / "file")}))
    check(SimpleNamespace(**{**good, "what": "glb", "out": str(tmp_path)}))
    assert find_selection(record, None) == 2
    with pytest.raises(InputError, match="round=7"):
        find_selection(record, 7)
