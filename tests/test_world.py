"""The embedded world on disk: complete, repeatable, honest in its formats, and never built twice."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from sandbox.labelled import rle
from sandbox.web import plan
from sandbox.world import World, build_world, locate
from sandbox.yfcc import UNAVAILABLE, mirror_hash
from tables import QUADRUPED, InputError, to_numpy

CONFIG = {
    "name": "tiny", "category": "quadruped", "seed": 3, "photo_px": 120, "workers": 1, "rig": None, "keypoints": None,
    "labelled": {"train": 3, "val": 2, "test": 2},
    "web": {
        "photos": 40, "reserved": 0.1,
        "shares": {
            "dead": 0.2, "strangers": 0.1, "nothing": 0.1, "duplicate": 0.05, "near_duplicate": 0.05,
            "off_topic": 0.05, "video": 0.05,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(str(tmp_path_factory.mktemp("world")), CONFIG)


def digests(world: World) -> dict[str, str]:
    root = Path(world.directory)
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def decode(counts: list[int], size: list[int]) -> np.ndarray:
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size, order="F")


def test_run_lengths_are_column_major_and_start_with_zeros() -> None:
    mask = np.array([[1, 0, 0], [1, 1, 0]], bool)
    assert rle(mask) == {"counts": [0, 2, 1, 1, 2], "size": [2, 3]}
    assert np.array_equal(decode(**rle(mask)), mask)
    assert rle(np.zeros((2, 2), bool)) == {"counts": [4], "size": [2, 2]}


def test_labelled_sets_are_coco(world: World) -> None:
    for split, count in CONFIG["labelled"].items():
        data = json.loads(Path(getattr(world, split)).read_text())
        (category,) = data["categories"]
        assert category["keypoints"] == list(QUADRUPED.names)
        assert min(min(e) for e in category["skeleton"]) == 1
        assert len(data["images"]) == count
        assert len(data["annotations"]) >= count
        images = {i["id"]: i for i in data["images"]}
        for a in data["annotations"]:
            image = images[a["image_id"]]
            photo = cv2.imread(os.path.join(world.labelled_photos, image["file_name"]))
            assert photo is not None
            assert photo.shape[:2] == (image["height"], image["width"])
            k = np.array(a["keypoints"]).reshape(16, 3)
            assert set(k[:, 2]) <= {0, 1, 2}
            assert a["num_keypoints"] == (k[:, 2] > 0).sum()
            assert (k[k[:, 2] > 0, :2] >= 0).all()
            assert (k[k[:, 2] == 0] == 0).all()
            mask = decode(**a["segmentation"])
            x, y, w, h = a["bbox"]
            assert mask.sum() == a["area"] > 0
            assert len(a["camera"]) == 7
            assert mask.any(0).nonzero()[0][[0, -1]].tolist() == [x, x + w - 1]
            assert mask.any(1).nonzero()[0][[0, -1]].tolist() == [y, y + h - 1]


def test_rows_are_yfcc_v2(world: World) -> None:
    lines = Path(world.rows).read_bytes().decode().split("\n")
    assert lines[-1] == ""
    rows = [r for r in (line.split("\t") for line in lines[:-1]) if len(r) == 25]
    assert len(rows) == 40
    assert len(lines) - 1 - len(rows) == 2
    origin = json.loads(Path(world.origin).read_text())
    for r in rows:
        assert r[1].isdigit()
        assert "@N" in r[3]
        assert r[24] in ("0", "1")
        assert " " not in r[8]
        assert " " not in r[9]
        assert " " not in r[10]
        assert r[16] == f"http://{world.host}/{r[19]}/{r[1]}_{r[21]}.jpg"
        assert r[16].removeprefix(f"http://{world.host}") in origin
        assert r[2] == mirror_hash(r[16])
    assert len({r[1] for r in rows}) == 40
    assert sum(r[24] == "1" for r in rows) == 2
    assert {"Attribution License"} < {r[17] for r in rows}


def test_mirror_hash_is_that_of_the_real_dump() -> None:
    assert (
        mirror_hash("http://farm7.staticflickr.com/6167/6162540254_5d22abd711.jpg") == "4ccb23d8746b8d9d76ffd603fc7988"
    )


def test_every_answer_names_a_file_that_is_there(world: World) -> None:
    origin = json.loads(Path(world.origin).read_text())
    base = os.path.dirname(world.origin)
    assert UNAVAILABLE in origin
    for path, answer in origin.items():
        assert path.startswith("/")
        assert "file" in answer or "status" in answer or answer.get("redirect") in origin
        if "file" in answer:
            assert os.path.isfile(os.path.join(base, answer["file"]))


def test_duplicates_share_bytes_and_near_duplicates_do_not(world: World) -> None:
    origin, pages = json.loads(Path(world.origin).read_text()), plan(CONFIG)
    exact = [p for p in pages if p.copy_of >= 0 and not p.near and p.listed]
    near = [p for p in pages if p.near]
    assert len(exact) == 2
    assert len(near) == 2
    for p in exact:
        assert origin[p.row.path]["file"] == f"photos/{pages[p.copy_of].file}"
    for p in near:
        a, b = (Path(world.web_photos, q.file).read_bytes() for q in (p, pages[p.copy_of]))
        assert a != b


def test_truth_covers_the_living_photos(world: World) -> None:
    truth, pages = pq.read_table(world.truth), plan(CONFIG)
    ids = set(truth["photo_id"].to_pylist())
    assert {f"yfcc:{p.row.photo_id}" for p in pages if p.subject == "strangers"} <= ids
    empty = (p for p in pages if p.subject == "nothing" or (not p.subject and p.copy_of < 0))
    assert not ids & {f"yfcc:{p.row.photo_id}" for p in empty}
    keypoints = to_numpy(truth["keypoints"], 16, 3)
    target = np.array(truth["is_target"].to_pylist())
    assert target.any()
    assert (~target).any()
    assert (keypoints[~target] == 0).all()
    assert (keypoints[target, :, 2] > 0).any(1).mean() > 0.9
    assert to_numpy(truth["camera"], 7).shape == (len(truth), 7)
    assert (to_numpy(truth["bbox"], 4)[:, 2:] > 0).all()


def test_the_same_config_is_not_built_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.world._develop", lambda *_: pytest.fail("built again"))
    assert build_world(world.directory, {**CONFIG, "workers": 2}) == world


def test_workers_and_an_earlier_attempt_change_nothing(tmp_path) -> None:
    few = {**CONFIG, "labelled": {"train": 1, "val": 1, "test": 1}, "web": {**CONFIG["web"], "photos": 9}}
    world = build_world(str(tmp_path), few)
    first = digests(world)
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "_world.json").unlink()  # as if killed before the end
    Path(world.rows).unlink()
    Path(world.train).write_text("{")
    build_world(str(tmp_path), {**few, "workers": 2})  # in two spawned processes
    second = digests(world)
    assert (tmp_path / "mine.txt").read_text() == "keep"
    for volatile in ("_world.json", "mine.txt"):
        first.pop(volatile, None), second.pop(volatile)
    assert first == second


def test_backgrounds_count_by_what_they_show(tmp_path: Path) -> None:
    def world(folder: str, value: int) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.full((9, 9, 3), value, np.uint8))
        return locate(str(tmp_path / "w"), {**CONFIG, "backgrounds": str(tmp_path / folder)}).fingerprint

    assert world("one", 7) == world("two", 7) != world("two", 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"photo_px": 8}, "sandbox.photo_px"),
        ({"workers": 0}, "sandbox.workers"),
        ({"labelled": {"train": 0, "val": 1, "test": 1}}, "sandbox.labelled.train"),
        ({"labelled": {"train": 1, "val": 1, "test": 1, "as_web": 1.5}}, "sandbox.labelled.as_web"),
        ({"backgrounds": "/nowhere"}, "sandbox.backgrounds"),
        ({"rig": "/nowhere.glb", "keypoints": "/nowhere.json"}, "sandbox.rig"),
        ({"rig": "/nowhere.glb"}, "sandbox.rig"),
        ({"web": {"photos": 10, "reserved": 0, "shares": {"dead": 0.8, "nothing": 0.4}}}, "sandbox.web.shares"),
    ],
)  # fmt: skip
def test_sizes_that_make_no_sense_are_named(tmp_path, change: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        build_world(str(tmp_path / "w"), {**CONFIG, **change})
    assert not (tmp_path / "w").exists()
