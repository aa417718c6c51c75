"""Detect, keypoints and evaluate as real stages: lost units, budgets, skipping, and repair of what is missing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tiny import CATEGORY, shared_lake

from models.checkpoint import checkpoint_bytes
from models.heatmap import Detector
from pipelines.detect import detect
from pipelines.evaluate import evaluate
from pipelines.keypoints import infer
from pipelines.model_files import newest_models, pick_model
from pipelines.stage import parts_as_units, run_stage
from tables import Dataset, InputError, Lake, schema, to_numpy

pytestmark = pytest.mark.ray
RULES = {"score": 0.0, "overlap": 0.5, "most": 2, "min_side": 2, "crop_px": 96, "radius": 0}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """A copy of the tiny lake that this file may change, its photos in three parts instead of one."""
    copied = tmp_path_factory.mktemp("stages") / "lake"
    shutil.copytree(shared_lake().uri, copied)
    yield Lake(str(copied))
    shutil.rmtree(copied)


@pytest.fixture(scope="module")
def photos(lake: Lake) -> Dataset:
    """The crawled photos in three parts, and one photo that is a duplicate."""
    rows = lake.latest("photos", CATEGORY).read()
    split = lake.dataset("photos", CATEGORY, {"stage": "crawl", "parts": 3})
    for number in range(3):
        split.write(f"p{number}", rows.take(list(range(number, len(rows), 3))), schema("photos"))
    split.finish("tiny")
    return split


@pytest.fixture(scope="module")
def detector(lake: Lake) -> str:
    """A detector with random weights: what it finds does not matter, that it repeats does."""
    import torch

    torch.manual_seed(0)
    job = {"category": CATEGORY, "settings": {"image_size": 96}}
    lake.files.write(
        "models/detector/x/model.safetensors", checkpoint_bytes(Detector(width=8, channels=16), {"job": job})
    )
    return f"{lake.uri}/models/detector/x/model.safetensors"


@pytest.fixture(scope="module")
def instances(lake: Lake, photos: Dataset, detector: str, ray_local: SimpleNamespace) -> Dataset:
    return detect(lake, CATEGORY, photos, detector, RULES, ray_local)


def models(lake: Lake) -> dict[str, str | None]:
    """The tiny lake's checkpoints, in the copy."""
    pose = pick_model(lake, "pose", CATEGORY, None, "pose")
    found: dict[str, str | None] = {"pose": pose, "aux": pick_model(lake, "pose", CATEGORY, None, "aux", skip=pose)}
    found["acsm"] = pick_model(lake, "acsm", CATEGORY, None, "acsm")
    return found


def files(dataset: Dataset) -> dict[str, int]:
    """Every file of a dataset with the time it was written."""
    folder = Path(dataset.files.uri) / dataset.path
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def forget(dataset: Dataset, part: str) -> None:
    """Undo one commit, as if the stage had been killed before it."""
    folder = Path(dataset.files.uri) / dataset.path
    (folder / "_manifests" / f"{part}.json").unlink()
    (folder / "_finished.json").unlink()


def test_detect_looks_at_photos_that_are_ok_and_no_duplicates(instances: Dataset, photos: Dataset) -> None:
    rows = instances.read()
    known = {
        r["photo_id"]: r for r in photos.read(["photo_id", "status", "duplicate_of", "width", "height"]).to_pylist()
    }
    seen = set(rows["photo_id"].to_pylist())
    wanted = {p for p, r in known.items() if r["status"] == "ok" and not r["duplicate_of"]}
    assert seen
    assert seen <= wanted
    boxes = to_numpy(rows["bbox"], 4)
    sizes = np.array([(known[p]["width"], known[p]["height"]) for p in rows["photo_id"].to_pylist()])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes + 1e-3).all()
    assert (boxes[:, 2:] >= RULES["min_side"]).all()
    assert len(set(rows["instance_id"].to_pylist())) == len(rows)
    windows = to_numpy(rows["window"], 3)
    np.testing.assert_allclose(windows[:, 2], 1.5 * boxes[:, 2:].max(1), rtol=1e-5)
    assert sorted(instances.manifests()) == ["p0", "p1", "p2"]
    summary = (instances.finished() or {})["summary"]
    assert summary["photos"] == len(wanted)
    assert summary["instances"] == len(rows)
    assert (summary["units"], summary["units_lost"], summary["units_skipped"]) == (3, 0, 0)


def test_a_finished_stage_is_skipped_and_a_missing_part_alone_is_redone(
    lake: Lake, photos: Dataset, detector: str, instances: Dataset, ray_local: SimpleNamespace
) -> None:
    before, manifests, state = files(instances), instances.manifests(), instances.state()
    detect(lake, CATEGORY, photos, detector, RULES, None)  # no resources: nothing may start
    assert files(instances) == before

    forget(instances, "p1")
    again = detect(lake, CATEGORY, photos, detector, RULES, ray_local)
    after, redone = files(again), again.manifests()
    assert {p: m for p, m in redone.items() if p != "p1"} == {p: m for p, m in manifests.items() if p != "p1"}
    assert redone["p1"]["digest"] == manifests["p1"]["digest"]
    assert redone["p1"]["rows"] == manifests["p1"]["rows"]
    changed = {f for f in before if after.get(f) != before[f]}
    assert changed == {"_manifests/p1.json", "_finished.json", "_overlay.parquet"}
    assert again.state() == state
    summary = (again.finished() or {})["summary"]
    assert (summary["units"], summary["units_skipped"]) == (1, 2)


def test_other_rules_make_another_dataset(
    lake: Lake, photos: Dataset, detector: str, instances: Dataset, ray_local: SimpleNamespace
) -> None:
    other = detect(lake, CATEGORY, photos, detector, {**RULES, "most": 1}, ray_local)
    assert other.fingerprint != instances.fingerprint
    assert max(np.unique(other.read(["photo_id"])["photo_id"].to_numpy(), return_counts=True)[1]) == 1


def test_another_detector_makes_another_dataset(
    lake: Lake, photos: Dataset, instances: Dataset, shared_data: Path, ray_local: SimpleNamespace
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'wildshape[onnx]'")
    model = str(shared_data / "detector" / "yolox_nano.onnx")
    with pytest.raises(InputError, match=r"detect\.classes=null: the detector does not know quadruped"):
        detect(lake, CATEGORY, photos, model, RULES, None, "onnx")  # no resources: nothing may start
    rules = {**RULES, "score": 0.05, "classes": ["horse", "cow", "sheep", "dog"]}
    found = detect(lake, CATEGORY, photos, model, rules, ray_local, "onnx")
    assert found.fingerprint != instances.fingerprint
    summary = (found.finished() or {})["summary"]
    rows = photos.read(["status", "duplicate_of"]).to_pylist()
    assert summary["photos"] == sum(r["status"] == "ok" and not r["duplicate_of"] for r in rows)
    assert summary["other_class"] > 0
    assert summary["instances"] == len(found.read(["instance_id"]))


def test_near_duplicates_are_marked_at_detection_and_left_out_afterwards(
    lake: Lake, photos: Dataset, detector: str, ray_local: SimpleNamespace
) -> None:
    rows = photos.read()
    usable = rows.filter(pc.and_(pc.equal(rows["status"], "ok"), pc.is_null(rows["duplicate_of"])))
    first = usable.slice(0, 1).to_pylist()[0]
    image = cv2.imdecode(np.frombuffer(first["bytes"], np.uint8), cv2.IMREAD_COLOR)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()
    copy = {**first, "photo_id": "zz", "bytes": data, "sha256": "zz"}
    more = lake.dataset("photos", CATEGORY, {"stage": "crawl", "near": True})
    more.write("p0", usable.slice(0, 3), schema("photos"))
    more.write("p1", pa.Table.from_pylist([copy], schema("photos")), schema("photos"))
    more.finish("tiny")

    found = detect(lake, CATEGORY, more, detector, {**RULES, "radius": 4}, ray_local)
    held = found.read(["instance_id", "photo_id", "dhash", "duplicate_of"]).to_pylist()
    copies = [r for r in held if r["photo_id"] == "zz"]
    assert copies
    assert {r["duplicate_of"] for r in copies} == {first["photo_id"]}
    bits = {r["dhash"] for r in held if r["photo_id"] == first["photo_id"]}
    assert len(bits) == 1
    assert (bits.pop() ^ copies[0]["dhash"]).bit_count() <= 4
    assert (found.finished() or {})["summary"]["near_duplicates"] >= 1

    stay = [r["instance_id"] for r in held if r["duplicate_of"] is None]
    assert infer(lake, CATEGORY, found, models(lake), 1, ray_local).read()["instance_id"].to_pylist() == stay

    more.write(
        "p2", pa.Table.from_pylist([{**copy, "photo_id": "aa", "sha256": "aa"}], schema("photos")), schema("photos")
    )
    assert detect(lake, CATEGORY, more, detector, {**RULES, "radius": 4}, ray_local).path == found.path
    held = found.read(["instance_id", "photo_id", "duplicate_of"]).to_pylist()
    assert {r["duplicate_of"] for r in held if r["photo_id"] in (first["photo_id"], "zz")} == {"aa"}
    stay = [r["instance_id"] for r in held if r["duplicate_of"] is None]
    assert infer(lake, CATEGORY, found, models(lake), 1, ray_local).read()["instance_id"].to_pylist() == stay

    every = detect(lake, CATEGORY, more, detector, RULES, ray_local)  # radius 0
    assert every.read(["duplicate_of"])["duplicate_of"].null_count == len(held)


@pytest.mark.parametrize("radius", ["abc", 64, -1, 1.5, None, True])
def test_a_radius_is_a_number_of_bits(lake: Lake, photos: Dataset, radius: Any) -> None:
    with pytest.raises(InputError, match=r"detect\.radius"):
        detect(lake, CATEGORY, photos, "nowhere", {**RULES, "radius": radius}, None)


def test_keypoints_of_every_instance_and_again_with_another_3d_net(
    lake: Lake, instances: Dataset, ray_local: SimpleNamespace
) -> None:
    nets = models(lake)
    first = infer(lake, CATEGORY, instances, nets, 1, ray_local)
    rows = first.read()
    assert rows["instance_id"].to_pylist() == instances.read(["instance_id"])["instance_id"].to_pylist()
    plain, views = to_numpy(rows["keypoints"], 16, 3), to_numpy(rows["keypoints_mt"], 7, 16, 3)
    np.testing.assert_array_equal(plain, views[:, 0])
    for name in ("keypoints", "keypoints_aux", "keypoints_mt", "keypoints_3d", "heatmap_3d"):
        assert np.isfinite(to_numpy(rows[name], -1)).all()
    assert ((plain[..., 2] >= 0) & (plain[..., 2] <= 1)).all()
    assert not np.array_equal(plain, to_numpy(rows["keypoints_aux"], 16, 3))

    state = first.state()
    forget(first, "p2")
    assert infer(lake, CATEGORY, instances, nets, 1, ray_local).state() == state

    # The next round has another 3D net and the same 2D nets: their columns are taken over, not computed anew.
    older = [m["model"] for m in newest_models(lake, "acsm", CATEGORY) if m["model"] != nets["acsm"]][-1]
    taken = infer(lake, CATEGORY, instances, {**nets, "acsm": older}, 2, ray_local, before=first).read()
    assert set(taken["round"].to_pylist()) == {2}
    for name in ("instance_id", "keypoints", "keypoints_aux", "keypoints_mt"):
        assert taken[name].to_pylist() == rows[name].to_pylist()
    for name in ("keypoints_3d", "heatmap_3d"):
        assert taken[name].to_pylist() != rows[name].to_pylist()
    assert set(taken["model_3d"].to_pylist()) != set(rows["model_3d"].to_pylist())


@pytest.mark.parametrize("kind", ["acsm", "pose"])
def test_evaluate_finds_what_training_found(lake: Lake, kind: str, ray_local: SimpleNamespace) -> None:
    known = newest_models(lake, kind, CATEGORY)[0]
    made = evaluate(lake, CATEGORY, kind, known["model"], ["val", "test"], ray_local)
    rows = {r["split"]: r for r in made.read().to_pylist()}
    assert rows.keys() == {"val", "test"}
    for split, row in rows.items():
        theirs = known["metrics"][split]
        assert row["auc_06_10"] == pytest.approx(theirs["auc_06_10"])
        assert row["pck"] == pytest.approx(list(theirs["pck"].values()))
        for name in ("camera_error_deg", "miou"):
            assert (row[name] is None) == (kind == "pose")
            assert kind == "pose" or row[name] == pytest.approx(theirs[name], rel=1e-4)
    before = files(made)
    evaluate(lake, CATEGORY, kind, known["model"], ["val", "test"], None)
    assert files(made) == before
    with pytest.raises(InputError, match="splits"):
        evaluate(lake, CATEGORY, kind, known["model"], ["dev"], None)


def test_models_are_picked_by_kind(lake: Lake, tmp_path: Path) -> None:
    nets = models(lake)
    assert len(set(nets.values())) == 3
    assert pick_model(lake, "pose", CATEGORY, nets["aux"], "pose") == nets["aux"]
    for kind, category, given in (("acsm", CATEGORY, nets["pose"]), ("pose", "cow", None), ("pose", CATEGORY, "gone")):
        with pytest.raises(InputError) as caught:
            pick_model(lake, kind, category, given, "model")
        assert caught.value.argument == "model"


class Poisoned:
    """Worker that fails on some parts."""

    def __init__(self, output: Dataset, poison: list[str]) -> None:
        self.output, self.poison = output, poison

    def __call__(self, part: str, payload: Any) -> Mapping[str, int]:
        if part in self.poison:
            raise ArithmeticError(f"cannot do {payload}")
        row = {"model": payload, "model_id": part, "split": "test"}
        self.output.write(part, pa.Table.from_pylist([row], schema("metrics")), schema("metrics"))
        return {"rows": 1}


def test_lost_units_are_counted_and_the_budget_decides(tmp_path: Path, ray_local: SimpleNamespace) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find test modules by name
    output = Lake(str(tmp_path)).dataset("metrics", "deer", {"n": 1})
    units = {f"u{i}": f"payload {i}" for i in range(4)}
    strict = SimpleNamespace(**{**vars(ray_local), "failure_budget": 0.2})
    with pytest.raises(RuntimeError, match=r"(?s)1 of 4 units were lost.*u2.*cannot do payload 2") as caught:
        run_stage(output, units, Poisoned, {"output": output, "poison": ["u2"]}, strict, "a")
    assert "ArithmeticError" in str(caught.value)
    assert sorted(output.manifests()) == ["u0", "u1", "u3"]  # the others are committed
    assert output.finished() is None
    # A lost unit stays missing however often it is tried: it counts against the whole stage, not against the rest.
    with pytest.raises(RuntimeError, match="1 of 4"):
        run_stage(output, units, Poisoned, {"output": output, "poison": ["u2"]}, strict, "a")
    lenient = SimpleNamespace(**{**vars(ray_local), "failure_budget": 0.25})
    totals = run_stage(output, units, Poisoned, {"output": output, "poison": ["u2"]}, lenient, "a")
    assert (totals["units"], totals["units_skipped"], totals["units_lost"], totals["rows"]) == (1, 3, 1, 0)
    assert output.is_finished("a")
    healed = run_stage(output, units, Poisoned, {"output": output, "poison": []}, strict, "b")
    assert (healed["units"], healed["units_lost"], healed["rows"]) == (1, 0, 1)
    assert parts_as_units(output, {"x": 1}) == {f"u{i}": {"part": f"u{i}", "x": 1} for i in range(4)}
