"""Labelled images in: COCO files in every form, bad files by name, and sources that add up or replace each other."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.ingest import ingest, read_coco
from pipelines.label_worker import LabelWorker, decode_mask
from tables import QUADRUPED, Dataset, InputError, Lake, instance_id, to_numpy
from trainers.data import label_table, load_labelled

H, W = 37, 52
NAMES = list(QUADRUPED.names)


def blob() -> np.ndarray:
    """A mask [H,W] with a hole and a part at the border, so that run lengths grow and shrink."""
    ys, xs = np.mgrid[:H, :W]
    mask = ((ys - 18) ** 2 / 150 + (xs - 26) ** 2 / 400) < 1
    mask &= ~(((ys - 18) ** 2 + (xs - 22) ** 2) < 9)
    mask[30:, 45:] = True
    return mask.astype(np.uint8)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Column-major lengths of zeros, ones, zeros and so on, beginning with zeros."""
    runs, now, count = [], 0, 0
    for value in mask.T.reshape(-1).tolist():
        if value != now:
            runs.append(count)
            now, count = value, 0
        count += 1
    return [*runs, count]


def compressed(runs: list[int]) -> str:
    """The string of the COCO API: from the fourth on differences to the last but one, low five bits first."""
    out = []
    for i, run in enumerate(runs):
        x = run - runs[i - 2] if i > 2 else run
        while True:
            low = x & 31
            x >>= 5  # arithmetic: the sign stays
            done = (x == 0 and not low & 16) or (x == -1 and low & 16)
            out.append(chr((low if done else low | 32) + 48))
            if done:
                break
    return "".join(out)


def test_masks_of_run_lengths_in_both_forms() -> None:
    for mask in (blob(), np.zeros((H, W), np.uint8), np.ones((H, W), np.uint8), np.eye(H, W, dtype=np.uint8)):
        runs = run_lengths(mask)
        plain = decode_mask({"size": [H, W], "counts": runs}, H, W)
        packed = decode_mask({"size": [H, W], "counts": compressed(runs)}, H, W)
        assert plain is not None
        assert packed is not None
        np.testing.assert_array_equal(plain, mask)
        np.testing.assert_array_equal(packed, mask)


def test_long_runs_need_several_groups() -> None:
    mask = np.zeros((400, 300), np.uint8)
    mask[:, 100:107] = 1
    mask[5:9, 290] = 1
    packed = decode_mask({"size": [400, 300], "counts": compressed(run_lengths(mask))}, 400, 300)
    np.testing.assert_array_equal(packed, mask)


def test_masks_of_polygons() -> None:
    # Corners in pixel edges: the rectangle from (10, 5) to (20, 15) covers ten by ten pixels.
    mask = decode_mask([[10, 5, 20, 5, 20, 15, 10, 15], [30, 20, 40, 20, 40, 25, 30, 25]], H, W)
    assert mask is not None
    expected = np.zeros((H, W), bool)
    expected[5:15, 10:20] = expected[20:25, 30:40] = True
    np.testing.assert_array_equal(mask, expected)
    assert decode_mask(None, H, W) is None
    assert decode_mask([], H, W) is None


def test_masks_of_real_polygons_have_the_area_of_the_polygons(shared_data: Path) -> None:
    coco = json.loads((shared_data / "coco_animals" / "instances.json").read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in coco["images"]}
    ratios = []
    for a in coco["annotations"]:
        mask = decode_mask(a["segmentation"], *sizes[a["image_id"]])
        assert mask is not None
        x, y, w, h = a["bbox"]
        if a["area"] > 500:
            ratios.append(mask.sum() / a["area"])
            seen = np.argwhere(mask)[:, ::-1]
            assert (seen >= np.array([x, y]) - 0.51).all()
            assert (seen + 1 <= np.array([x + w, y + h]) + 0.51).all()
    assert len(ratios) > 100
    assert np.median(ratios) == pytest.approx(1, abs=1e-3)
    assert np.abs(np.array(ratios) - 1).max() < 0.03


def test_polygons_across_the_border_are_cut() -> None:
    mask = decode_mask([[-5, -5, 60, -5, 60, 10, 30, 10, 30, 5, -5, 5]], H, W)
    expected = np.zeros((H, W), bool)
    expected[:5] = expected[5:10, 30:] = True
    np.testing.assert_array_equal(mask, expected)
    assert not decode_mask([[1, 1, 2, 2]], H, W).any()  # type: ignore[union-attr]


def test_run_lengths_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="segmentation"):
        decode_mask({"size": [W, H], "counts": [3, 4, 5]}, H, W)


# -- files ----------------------------------------------------------------------------------------------------------


def keypoints(seed: int) -> np.ndarray:
    """[16,3] x, y, v in our joint order, all three kinds of v among them."""
    rng = np.random.default_rng(seed)
    out = np.concatenate([rng.uniform(2, 34, (16, 2)).round(2), (np.arange(16)[:, None] + seed) % 3], 1)
    out[out[:, 2] == 0, :2] = 0
    return out


def coco(folder: Path, photos: int = 3, order: list[int] | None = None, seed: int = 0) -> dict[str, Any]:
    """A COCO keypoint file's content; its photos are written, and the joints stand in the given order."""
    order = list(range(16)) if order is None else order
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    forms = (
        [[10.0, 5, 30, 5, 30, 25, 10, 25]],
        {"size": [H, W], "counts": run_lengths(blob())},
        {"size": [H, W], "counts": compressed(run_lengths(blob()))},
    )
    for i in range(photos):
        pixels = np.random.default_rng(seed + i).integers(0, 256, (H, W, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{seed + i}.png")
        images.append({"id": 100 + i, "file_name": f"p{seed + i}.png", "height": H, "width": W})
        flat = [float(v) for j in order for v in keypoints(seed + i)[j]]
        annotations.append({
            "id": i, "image_id": 100 + i, "category_id": 7, "bbox": [4.25, 3.5, 30.0, 25.75], "keypoints": flat,
            "segmentation": forms[i % 3],
        })  # fmt: skip
    category = {"id": 7, "name": "deer", "keypoints": [NAMES[j].upper() for j in order]}
    return {"images": images, "annotations": annotations, "categories": [category, {"id": 8, "name": "tree"}]}


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def take_in(lake: Lake, path: str, folder: str, split: str, slot: str, version: int = 1) -> Dataset:
    """What `ingest` does, in this process."""
    identity = {
        "stage": "ingest",
        "split": split,
        "version": version,
        "file": hashlib.sha256(path.encode()).hexdigest(),
    }
    made = [lake.dataset(t, "deer", identity, slot) for t in ("labels", "instances", "photos")]
    block = read_coco(path, folder)
    LabelWorker(folder, made[0], made[1], made[2], split, "deer", 96)("all", block)
    for ds in reversed(made):
        ds.finish("x", {"photos": len(block)})
    return made[0]


def test_every_field_arrives(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(16).tolist()
    photos = tmp_path / "photos"
    content = coco(photos, order=order)
    content["annotations"][1]["camera"] = [9.0, 20, 18, 0.5, 0.5, 0.5, 0.5]
    content["annotations"] += [
        {"id": 90, "image_id": 101, "category_id": 8, "bbox": [0, 0, 5, 5]},  # a category without joints
        {"id": 91, "image_id": 101, "category_id": 7, "bbox": [0, 0, 5, 5], "keypoints": [0.0] * 48},  # none labelled
        {**content["annotations"][0], "id": 92, "iscrowd": 1},
    ]
    path = write(tmp_path / "labelled.json", content)
    lake = Lake(str(tmp_path / "lake"))
    labels = take_in(lake, path, str(photos), "train", "train:a")
    rows = {r["instance_id"]: r for r in label_table(lake, "deer").to_pylist()}
    assert len(labels.read(["instance_id"])) == len(rows) == 3
    for i in range(3):
        data = (photos / f"p{i}.png").read_bytes()
        sha = hashlib.sha256(data).hexdigest()
        row = rows[instance_id(sha, [4.25, 3.5, 30.0, 25.75], "label")]
        np.testing.assert_allclose(np.reshape(row["keypoints"], (16, 3)), keypoints(i), atol=1e-5)
        assert row["bbox"] == [4.25, 3.5, 30.0, 25.75]
        assert (row["camera"] is None) == (i != 1)
        mask = cv2.imdecode(np.frombuffer(row["mask"], np.uint8), cv2.IMREAD_GRAYSCALE) > 0
        if i:
            np.testing.assert_array_equal(mask, blob() > 0)
        assert np.asarray(Image.open(io.BytesIO(row["crop"]))).shape[2] == 3
    photo_rows = lake.dataset("photos", "deer", labels.identity, labels.slot).read().to_pylist()
    assert {r["status"] for r in photo_rows} == {"ok"}
    assert {(r["width"], r["height"]) for r in photo_rows} == {(W, H)}
    assert {r["photo_id"] for r in photo_rows} == {r["photo_id"] for r in rows.values()}


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


BAD: dict[str, tuple[Callable[[dict[str, Any]], None], str, str]] = {
    "joint missing": (drop("categories", 0, "keypoints", 4), "source.path", f"lacks the joints {NAMES[4]}"),
    "no joints at all": (drop("categories", 0, "keypoints"), "source.path", "keypoints"),
    "photo missing": (put("gone.png", "images", 1, "file_name"), "source.images", "1 photos are missing.*gone.png"),
    "empty box": (put([5, 5, 0, 10], "annotations", 0, "bbox"), "source.path", "photo 100 has an empty box"),
    "no box": (drop("annotations", 0, "bbox"), "source.path", "bbox"),
    "image not listed": (put(999, "annotations", 2, "image_id"), "source.path", "annotation 2.*999"),
    "no images": (drop("images"), "source.path", "images"),
    "no annotations": (put([], "annotations"), "source.path", "no annotation"),
    "a list": (put(7, "images"), "source.path", "not COCO"),
    "too few numbers": (put([3.0, 4, 2], "annotations", 0, "keypoints"), "source.path", "annotation 0 has only 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    change, argument, message = BAD[name]
    content = coco(tmp_path / "photos")
    change(content)
    with pytest.raises(InputError, match=message) as caught:
        read_coco(write(tmp_path / "a.json", content), str(tmp_path / "photos"))
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[1, 2]", '"text"', "", "\0\1", "null"])
def test_what_is_no_coco_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError, match="not COCO keypoint JSON") as caught:
        read_coco(str(path), str(tmp_path))
    assert caught.value.argument == "source.path"


def test_bad_arguments_of_ingest(tmp_path: Path) -> None:
    source = {"format": "coco", "path": str(tmp_path / "missing.json"), "images": None}
    for split, changes, argument in (
        ("train", {}, "source.path"),
        ("dev", {}, "split"),
        ("train", {"format": "voc"}, "source.format"),
        ("train", {"path": str(tmp_path)}, "source.path"),
    ):
        with pytest.raises(InputError) as caught:
            ingest(str(tmp_path / "lake"), "deer", split, {**source, **changes}, 96, None)
        assert caught.value.argument == argument
    assert not (tmp_path / "lake").exists()


# -- several sources ------------------------------------------------------------------------------------------------


def test_a_second_source_adds_up_and_the_same_again_replaces(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    photos = str(tmp_path / "photos")
    first = write(tmp_path / "first.json", coco(tmp_path / "photos"))
    second = write(tmp_path / "second.json", coco(tmp_path / "photos", photos=2, seed=50))
    test = write(tmp_path / "test.json", coco(tmp_path / "photos", photos=4, seed=80))
    take_in(lake, first, photos, "train", "train:first")
    take_in(lake, second, photos, "train", "train:second")
    take_in(lake, test, photos, "test", "test:test")
    assert len(label_table(lake, "deer")) == 9
    changed = coco(tmp_path / "photos", photos=2)
    changed["annotations"][0]["keypoints"][:3] = [33.0, 33, 2]
    write(tmp_path / "first.json", changed)
    take_in(lake, first, photos, "train", "train:first", version=2)
    rows = label_table(lake, "deer", ["instance_id", "keypoints", "split"])
    assert len(rows) == 8
    assert rows.column_names == ["instance_id", "keypoints", "split"]
    first_joint = to_numpy(rows["keypoints"], 16, 3)[:, 0]
    assert (first_joint == [33, 33, 2]).all(1).sum() == 1


def test_without_a_validation_split_a_fifth_of_train_is_held_out(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    photos = str(tmp_path / "photos")
    train = write(tmp_path / "train.json", coco(tmp_path / "photos", photos=30))
    take_in(lake, train, photos, "train", "train:a")
    take_in(lake, write(tmp_path / "t.json", coco(tmp_path / "photos", 3, seed=70)), photos, "test", "test:a")
    rows = label_table(lake, "deer", ["instance_id", "split"])
    splits = dict(zip(rows["instance_id"].to_pylist(), rows["split"].to_pylist(), strict=True))
    counts = {s: list(splits.values()).count(s) for s in ("train", "val", "test")}
    assert counts["test"] == 3
    assert 1 <= counts["val"] <= 12
    assert counts["train"] + counts["val"] == 30
    data = {s: load_labelled(lake, "deer", s, 64) for s in ("train", "val", "test")}
    assert {s: len(d) for s, d in data.items()} == counts
    assert set(np.unique(data["train"].keypoints[..., 2])) == {0.0, 1.0}
    # A real validation set leaves every training label to training.
    take_in(lake, write(tmp_path / "v.json", coco(tmp_path / "photos", 2, seed=90)), photos, "val", "val:a")
    again = label_table(lake, "deer", ["instance_id", "split"])["split"].to_pylist()
    assert (again.count("train"), again.count("val")) == (30, 2)


@pytest.mark.ray
def test_ingest_commits_once_and_skips_what_is_done(tmp_path: Path, ray_local: SimpleNamespace) -> None:
    path = write(tmp_path / "labelled.json", coco(tmp_path / "photos"))
    uri = str(tmp_path / "lake")
    source = {"format": "coco", "path": path, "images": str(tmp_path / "photos")}
    labels = ingest(uri, "deer", "train", source, 96, ray_local)
    assert (labels.finished() or {})["summary"] == {"photos": 3, "instances": 3, "lost": 0}
    before = {p: p.stat().st_mtime_ns for p in Path(uri).rglob("*") if p.is_file()}
    assert ingest(uri, "deer", "train", source, 96, ray_local).fingerprint == labels.fingerprint
    assert {p: p.stat().st_mtime_ns for p in Path(uri).rglob("*") if p.is_file()} == before
    # The file changed: a new dataset in the same slot replaces the old one.
    write(tmp_path / "labelled.json", coco(tmp_path / "photos", photos=2))
    fresh = ingest(uri, "deer", "train", source, 96, ray_local)
    assert fresh.fingerprint != labels.fingerprint
    assert fresh.slot == labels.slot
    assert len(label_table(Lake(uri), "deer")) == 2
