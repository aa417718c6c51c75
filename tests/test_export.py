"""What leaves the lake can be read by others: COCO keypoints by our own ingest, meshes by our own GLB reader."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import TOP_N, shared_lake

from models.gltf import read_glb
from pipelines.export import check, find_selection, to_coco, write_meshes
from pipelines.ingest import read_coco
from pipelines.run_record import RunRecord, open_run
from tables import InputError


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return open_run(shared_lake(), "default")


def test_coco_holds_the_selection_and_reads_back(record: RunRecord, tmp_path: Path) -> None:
    coco = to_coco(record, 1, images=str(tmp_path / "photos"))
    assert [a["rank"] for a in coco["annotations"]] == list(range(1, TOP_N + 1))
    assert {v for a in coco["annotations"] for v in a["keypoints"][2::3]} == {2}
    assert all(len(a["keypoint_scores"]) == 16 and min(a["keypoint_scores"]) >= 0 for a in coco["annotations"])
    bones = np.array(coco["categories"][0]["skeleton"])
    assert (bones.min(), bones.max()) == (1, 16)
    assert {i["author"] for i in coco["images"]} == {"A. Nyone"}
    (tmp_path / "labels.json").write_text(json.dumps(coco))
    photos = read_coco(str(tmp_path / "labels.json"), str(tmp_path / "photos"))
    assert sum(len(p["animals"]) for p in photos) == TOP_N


def test_unsure_joints_are_not_labelled(record: RunRecord) -> None:
    scores = sorted(s for a in to_coco(record, 1)["annotations"] for s in a["keypoint_scores"])
    middle = scores[len(scores) // 2]
    for a in to_coco(record, 1, min_confidence=middle)["annotations"]:
        joints = np.array(a["keypoints"]).reshape(-1, 3)
        assert set(joints[:, 2]) <= {0, 2}
        assert not joints[joints[:, 2] == 0].any()
        assert a["num_keypoints"] == (joints[:, 2] > 0).sum()


def test_meshes_are_the_template_posed(record: RunRecord, tmp_path: Path) -> None:
    paths = write_meshes(record, 1, 3, str(tmp_path))
    assert [Path(p).name[:5] for p in paths] == ["00001", "00002", "00003"]
    scene = read_glb(paths[0])
    assert scene.joint_names[0] == "body"
    assert np.isfinite(scene.vertices).all()
    assert 0.5 < np.ptp(scene.vertices, axis=0).max() < 4


def test_bad_requests_are_named(record: RunRecord, tmp_path: Path) -> None:
    good = {"what": "coco", "round": None, "top": 1, "min_confidence": 0.0, "out": str(tmp_path / "new" / "x"),
            "images": None, "format": "parquet", "shard_mb": 1}  # fmt: skip
    check(SimpleNamespace(**good))
    (tmp_path / "file").write_text("")
    bad = [
        ("what", "obj"), ("out", ""), ("out", 5), ("out", "s3://bucket/x"), ("out", str(tmp_path)),
        ("out", str(tmp_path / "file" / "x")), ("images", str(tmp_path / "file")), ("images", 5), ("round", 0),
        ("round", True), ("top", 0), ("top", "abc"), ("min_confidence", 2), ("min_confidence", "abc"),
        ("format", "zip"), ("shard_mb", 0), ("shard_mb", 1.5), ("shard_mb", 10**6),
    ]  # fmt: skip
    for key, value in bad:
        with pytest.raises(InputError, match=f"^{key}="):
            check(SimpleNamespace(**{**good, key: value}))
    for what in ("glb", "photos"):
        with pytest.raises(InputError, match=r"^out="):
            check(SimpleNamespace(**{**good, "what": what, "out": str(tmp_path / "file")}))
    assert find_selection(record, None) == 2
    with pytest.raises(InputError, match="round=7"):
        find_selection(record, 7)
