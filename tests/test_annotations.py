"""Annotations of other data sets: their joints under our names, their boxes, masks and cameras, on real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.camera import project, quat_to_matrix
from pipelines.annotation_animals3d import read_animals3d
from pipelines.annotation_coco import read_animal_pose, read_coco
from pipelines.annotation_pascal import read_pascal
from pipelines.ingest import ingest
from pipelines.label_worker import decode_mask
from tables import QUADRUPED, InputError
from tables.skeleton import joint_order

NAMES = QUADRUPED.names


def joints(animal: dict[str, Any]) -> dict[str, np.ndarray]:
    """x, y, v by our name, of the labelled joints."""
    rows = np.reshape(animal["keypoints"], (16, 3))
    return {n: row for n, row in zip(NAMES, rows, strict=True) if row[2] > 0}


def theirs(category: dict[str, Any], keypoints: Any) -> dict[str, np.ndarray]:
    return dict(zip(category["keypoints"], np.reshape(keypoints, (-1, 3)), strict=True))


def empty_photos(folder: Path, names: list[str]) -> str:
    """Readers look whether photos are there, not into them."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


# -- joint maps -----------------------------------------------------------------------------------------------------


def test_our_own_names_in_any_order_and_case() -> None:
    shuffled = np.random.default_rng(0).permutation(16)
    assert [shuffled[i] for i in joint_order([NAMES[j].upper() for j in shuffled])] == list(range(16))
    assert joint_order(["tip", *NAMES])[0] == 1


def test_unknown_lists_are_refused_with_what_they_lack() -> None:
    with pytest.raises(ValueError, match=r"lacks the joints Nose and is no list of Animal Pose.*AP-10K"):
        joint_order([n for n in NAMES if n != "Nose"])
    with pytest.raises(ValueError, match=r"lacks the joints L_eye, R_eye"):
        joint_order([])


def test_left_stays_left_and_right_right(shared_data: Path) -> None:
    samples = shared_data / "keypoint_samples"
    for file in ("test_ap10k.json", "test_animalpose.json"):
        names = json.loads((samples / file).read_text())["categories"][0]["keypoints"]
        for ours, at in zip(NAMES, joint_order(names), strict=True):
            if at >= 0 and ours[:2] in ("L_", "R_"):
                assert names[at].lower().startswith({"L_": ("l_", "left"), "R_": ("r_", "right")}[ours[:2]])
                assert ("_F_" in ours) == any(w in names[at].lower() for w in ("_f_", "front", "shoulder"))


# -- real files -----------------------------------------------------------------------------------------------------


def test_ap10k(shared_data: Path) -> None:
    samples = shared_data / "keypoint_samples"
    content = json.loads((samples / "test_ap10k.json").read_text())
    photos = read_coco(str(samples / "test_ap10k.json"), str(samples))
    assert [p["file"] for p in photos] == ["000000000004.jpg", "000000037516.jpg"]
    (row,) = (a for a in content["annotations"] if a["image_id"] == 37516)
    category = next(c for c in content["categories"] if c["id"] == row["category_id"])
    there, (animal,) = theirs(category, row["keypoints"]), photos[1]["animals"]
    found = joints(animal)
    assert animal["bbox"] == row["bbox"]
    # Drawn on the photo: the upper visible joint of each leg is the one that AP-10K calls shoulder and hip.
    for ours, name in {
        "L_F_elbow": "left_shoulder", "R_F_elbow": "right_shoulder", "L_B_elbow": "left_hip", "R_B_elbow": "right_hip",
        "L_F_paw": "left_front_paw", "R_B_paw": "right_back_paw", "Tail": "root_of_tail", "Nose": "nose",
    }.items():  # fmt: skip
        np.testing.assert_array_equal(found[ours], there[name])
    assert not {"Throat", "Withers", "L_ear", "R_ear", "R_eye"} & set(found)  # it has none, and one eye is hidden
    assert len(found) == 11
    for leg in ("L_F", "R_F", "L_B", "R_B"):
        assert found[f"{leg}_elbow"][1] < found[f"{leg}_paw"][1]


def test_a_category_of_many(shared_data: Path) -> None:
    file, samples = str(shared_data / "keypoint_samples" / "test_ap10k.json"), str(shared_data / "keypoint_samples")
    assert [p["file"] for p in read_coco(file, samples, "Jaguar")] == ["000000037516.jpg"]
    with pytest.raises(InputError, match=r"category=okapi: .*has keypoints of antelope, .*zebra"):
        read_coco(file, samples, "okapi")
    with pytest.raises(InputError, match="no annotation has a labelled joint"):
        read_coco(file, samples, "zebra")
    assert len(read_coco(file, samples, ids={"4"})) == 1


def test_animal_pose_as_coco(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "keypoint_samples" / "test_animalpose.json"
    content = json.loads(file.read_text())
    folder = empty_photos(tmp_path / "photos", [i["file_name"] for i in content["images"]])
    photos = read_coco(str(file), folder, "horse")  # one category alone: whatever the file calls it
    assert len(photos) == 2
    row, (animal,) = content["annotations"][0], photos[0]["animals"]
    there, found = theirs(content["categories"][0], row["keypoints"]), joints(animal)
    for ours, name in {
        "L_ear": "L_EarBase",
        "Tail": "TailBase",
        "R_F_elbow": "R_F_Elbow",
        "L_B_paw": "L_B_Paw",
    }.items():
        np.testing.assert_array_equal(found[ours], there[name])
    assert len(found) == 14  # 17 labelled, 3 of them knees


def test_another_skeleton_is_refused(shared_data: Path) -> None:
    samples = shared_data / "keypoint_samples"
    with pytest.raises(InputError, match=r"category horse lacks the joints L_eye, .* and is no list of"):
        read_coco(str(samples / "test_horse10.json"), str(samples))


def test_animal_pose(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "animal_pose" / "keypoints.json"
    content = json.loads(file.read_text())
    folder = empty_photos(tmp_path / "photos", list(content["images"].values()))
    photos = read_animal_pose(str(file), folder, "horse")
    category = next(c for c in content["categories"] if c["name"] == "horse")
    rows = [a for a in content["annotations"] if a["category_id"] == category["id"]]
    animals = [(p["file"], a) for p in photos for a in p["animals"]]
    order = joint_order(category["keypoints"])
    labelled = [a for a in rows if any(a["keypoints"][j][2] for j in order)]
    assert len(animals) == len(labelled) > 900

    expected: dict[str, list[list[float]]] = {}
    for row in labelled:
        x, y, right, bottom = row["bbox"]
        expected.setdefault(content["images"][str(row["image_id"])], []).append([x, y, right - x, bottom - y])
    assert {p["file"]: [a["bbox"] for a in p["animals"]] for p in photos} == expected

    found = np.array([a["keypoints"] for _, a in animals]).reshape(-1, 16, 3)
    assert set(np.unique(found[..., 2])) == {0.0, 2.0}
    total = sum(bool(a["keypoints"][j][2]) for a in rows for j in order)
    assert (found[..., 2] > 0).sum() == total
    # A horse's elbows lie half way from withers to paw, its stifles above its hocks: knees were not taken for them.
    at = {n: i for i, n in enumerate(NAMES)}
    for top, elbow, paw, low, high in (
        ("Withers", "L_F_elbow", "L_F_paw", 0.4, 0.6), ("Tail", "R_B_elbow", "R_B_paw", 0.3, 0.5),
    ):  # fmt: skip
        three = found[:, [at[top], at[elbow], at[paw]]]
        y = three[(three[..., 2] > 0).all(1)][..., 1]
        assert low < np.median((y[:, 1] - y[:, 0]) / np.maximum(y[:, 2] - y[:, 0], 1)) < high


@pytest.mark.parametrize("content", [[], {}, {"images": {}, "annotations": []}, {"images": {"x": "a.jpg"}}])
def test_what_is_not_animal_pose_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"not Animal Pose's keypoints\.json"):
        read_animal_pose(str(file), str(tmp_path))


# -- animals3d ------------------------------------------------------------------------------------------------------


def test_animals3d_with_mask_and_camera(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    h, w = 20, 30
    mask = rng.random((h, w)) < 0.4
    labels = np.concatenate([rng.uniform(0, 20, (16, 2)), rng.integers(0, 2, (16, 1))], 1)
    labels[0, 2] = 0.4  # a confidence counts as seen
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    matrix *= np.sign(np.linalg.det(matrix))
    row = {
        "img_id": 17, "img_path": "a.jpg", "img_bbox": [1, 2, 15, 10], "joints": labels.tolist(),
        "seg": mask.astype(int).tolist(), "cam_scale": 8.0, "cam_trans": [12.0, 9.0], "cam_rot": matrix.tolist(),
        "valid_cam": 1,
    }  # fmt: skip
    plain = {k: row[k] for k in ("img_path", "img_bbox", "joints")} | {"img_id": "18"}
    file = tmp_path / "horse.json"
    file.write_text(json.dumps([row, plain, {**row, "img_id": 19, "valid_cam": 0}]))
    folder = empty_photos(tmp_path / "photos", ["a.jpg"])

    ((photo,), (only,)) = (read_animals3d(str(file), folder), read_animals3d(str(file), folder, ids={"17"}))
    animal, bare, doubted = photo["animals"]
    assert [a["bbox"] for a in only["animals"]] == [animal["bbox"]] == [[1, 2, 15, 10]]
    found = np.reshape(animal["keypoints"], (16, 3))
    np.testing.assert_array_equal(found[:, 2], 2.0 * (labels[:, 2] > 0))
    np.testing.assert_array_equal(found[:, :2], labels[:, :2] * (labels[:, 2:] > 0))
    np.testing.assert_array_equal(decode_mask(animal["segmentation"], h, w), mask)
    assert bare["segmentation"] is None
    assert bare["camera"] is None
    assert doubted["camera"] is None

    # The reference projects its template by s R v + t; ours is that template with Y up and the nose at +Z.
    v = rng.normal(size=(5, 3))
    ours = np.stack([v[:, 0], v[:, 2], -v[:, 1]], 1)
    camera = torch.tensor(animal["camera"], dtype=torch.float64)
    seen = project(camera, torch.from_numpy(ours)).numpy()
    np.testing.assert_allclose(seen[:, :2], 8 * (v @ matrix.T)[:, :2] + [12, 9], atol=1e-9)
    assert float(quat_to_matrix(camera[3:]).det()) == pytest.approx(1)


def test_masks_that_begin_and_end_with_the_animal(tmp_path: Path) -> None:
    folder = empty_photos(tmp_path / "photos", ["a.jpg"])
    for mask in (np.ones((3, 4), int), np.eye(4, dtype=int)):
        row = {"img_id": 1, "img_path": "a.jpg", "img_bbox": [0, 0, 4, 3], "joints": [[1, 1, 1]] * 16}
        (tmp_path / "a.json").write_text(json.dumps([{**row, "seg": mask.tolist()}]))
        (photo,) = read_animals3d(str(tmp_path / "a.json"), folder)
        np.testing.assert_array_equal(decode_mask(photo["animals"][0]["segmentation"], *mask.shape), mask)


@pytest.mark.parametrize("content", [{}, [1], [{"img_id": 1}], [{"img_id": 1, "joints": [[0, 0, 1]]}], "x"])
def test_what_is_not_animals3d_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_animals3d(str(file), str(tmp_path))
    assert caught.value.argument == "source.path"


# -- Pascal ---------------------------------------------------------------------------------------------------------

PASCAL_NAMES = (
    "L_Eye", "R_Eye", "L_EarBase", "R_EarBase", "Nose", "Throat", "TailBase", "Withers", "L_F_Elbow", "R_F_Elbow",
    "L_B_Elbow", "R_B_Elbow", "L_F_Knee", "R_F_Knee", "L_B_Knee", "R_B_Knee", "L_F_Paw", "R_F_Paw", "L_B_Paw",
    "R_B_Paw",
)  # fmt: skip


def pascal(names: tuple[str, ...], image: str, category: str, top: str = "ymin", skip: int = -1) -> str:
    rows = "".join(
        f'<keypoint name="{n}" visible="{int(i != 3)}" x="{10.5 + i}" y="{20 + i}" z="0"/>'
        for i, n in enumerate(names)
        if i != skip
    )
    box = f'<visible_bounds height="40.0" width="30.0" xmin="5.0" {top}="6.0"/>'
    inner = f"<image>{image}</image><category>{category}</category>{box}<keypoints>{rows}</keypoints>"
    return f"<?xml version='1.0'?><annotation>{inner}</annotation>"


def test_pascal_folders(tmp_path: Path) -> None:
    first, second = tmp_path / "xml" / "one", tmp_path / "xml" / "two"
    for folder in (first, second):
        folder.mkdir(parents=True)
    (first / "2007_1_1.xml").write_text(pascal(PASCAL_NAMES, "2007_1", "horse"))
    (first / "2007_1_2.xml").write_text(pascal(PASCAL_NAMES, "2007_1", "horse", skip=7))  # withers not in the file
    (first / "2007_2_1.xml").write_text(pascal(PASCAL_NAMES, "2007_2", "cat"))
    # The second part of Animal Pose: our own names, and a slip of the pen in the box.
    own = tuple(n.replace("W", "w") for n in NAMES)
    (second / "ho1.xml").write_text(pascal(own, "ho1.jpeg", "horse", top="xmax"))
    photos = empty_photos(tmp_path / "photos", ["2007_1.jpg", "2007_2.jpg", "ho1.jpeg"])

    found = read_pascal(str(tmp_path / "xml"), photos, "horse")
    assert [(p["file"], len(p["animals"])) for p in found] == [("2007_1.jpg", 2), ("ho1.jpeg", 1)]
    whole, without = (joints(a) for a in found[0]["animals"])
    assert found[0]["animals"][0]["bbox"] == [5, 6, 30, 40] == found[1]["animals"][0]["bbox"]
    assert set(NAMES) - set(whole) == {"R_ear"}
    assert set(NAMES) - set(without) == {"R_ear", "Withers"}
    np.testing.assert_array_equal(whole["L_F_paw"], [10.5 + 16, 36, 2])
    np.testing.assert_array_equal(joints(found[1]["animals"][0])["Withers"], [17.5, 27, 2])
    assert len(read_pascal(str(tmp_path / "xml"), photos)) == 3
    assert [p["file"] for p in read_pascal(str(tmp_path / "xml"), photos, ids={"2007_2"})] == ["2007_2.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", "not XML"),
        ("<annotation/>", "lacks the joints"),
        (pascal(PASCAL_NAMES, "a", "horse").replace("<image>a</image>", ""), "not a Pascal-style animal"),
        (pascal(PASCAL_NAMES, "a", "horse").replace('width="30.0"', 'width="wide"'), "not a Pascal-style animal"),
        (pascal(PASCAL_NAMES, "a", "horse").replace('width="30.0"', 'width="0"'), "empty box"),
        (pascal(PASCAL_NAMES, "gone", "horse"), "1 photos are missing, the first is gone"),
        (None, "no folder with .xml files"),
    ],
)
def test_bad_pascal_folders_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    folder = empty_photos(tmp_path / "photos", ["a.jpg"])
    (tmp_path / "xml").mkdir()
    if content is not None:
        (tmp_path / "xml" / "a.xml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_pascal(str(tmp_path / "xml"), folder)


# -- the stage ------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_ingest_takes_all_formats_to_one_table(tmp_path: Path, ray_local: Any) -> None:
    from tables import Lake
    from trainers.data import label_table

    photos = tmp_path / "photos"
    photos.mkdir()
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        pixels = np.random.default_rng(i).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / name)
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text(pascal(PASCAL_NAMES, "a", "horse"))
    row = {"img_path": "b.png", "img_bbox": [2, 3, 30, 20], "joints": [[9, 9, 1]] * 16}
    (tmp_path / "horse.json").write_text(json.dumps([{**row, "img_id": 1}, {**row, "img_id": 2, "img_path": "c.png"}]))
    (tmp_path / "train.txt").write_text("1\n")
    (tmp_path / "val.txt").write_text("2")
    lake = str(tmp_path / "lake")
    source: dict[str, Any] = {"images": str(photos)}
    for split, fmt, path, ids in (
        ("train", "pascal", "xml", None), ("train", "animals3d", "horse.json", "train.txt"),
        ("val", "animals3d", "horse.json", "val.txt"),
    ):  # fmt: skip
        source |= {"format": fmt, "path": str(tmp_path / path), "ids": ids and str(tmp_path / ids)}
        ingest(lake, "horse", split, source, 96, ray_local)
    found = label_table(Lake(lake), "horse", ["instance_id", "split"])["split"].to_pylist()
    assert sorted(found) == ["train", "train", "val"]
    with pytest.raises(InputError, match=r"source\.ids"):
        ingest(lake, "horse", "val", {**source, "ids": str(tmp_path / "none.txt")}, 96, ray_local)
