"""What a person corrected comes back as labels, and the next round trains on them instead of the pseudo-labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import CATEGORY, IMAGE_SIZE, shared_lake

from pipelines.export_coco import write_coco
from pipelines.export_labels import export_labels
from pipelines.ingest import ingest, read_coco
from pipelines.label_worker import LabelWorker
from pipelines.run_record import RunRecord, open_run
from selection import select_round
from selection.corrected import labelled_by_hand, overlap
from tables import Lake
from trainers.data import Instances
from trainers.jobs import _crop_data

ROUND = 2


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """A lake of its own with a run of two rounds."""
    shutil.copytree(shared_lake().uri, tmp_path / "lake")
    return open_run(Lake(str(tmp_path / "lake")), "default")


def training(record: RunRecord) -> Instances:
    """What the 3D network is trained on after round `ROUND`'s selection."""
    made = {t: record.dataset(t, ROUND) for t in ("instances", "pseudo_labels", "selections")}
    pseudo = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in made.items() if d is not None}
    settings = {"image_size": IMAGE_SIZE, "min_confidence": 0.0}
    return _crop_data(record.lake, {"category": CATEGORY, "settings": settings, "pseudo": pseudo})[0]


def corrected(record: RunRecord, folder: Path, rank: int, shift: float = 0.0) -> tuple[str, dict[str, Any]]:
    """A COCO file with the animal of that rank alone, as a person who moved its nose and its box would save it."""
    export_labels(record, ROUND, write_coco, str(folder))
    document = json.loads((folder / "labels.json").read_text())
    (animal,) = (a for a in document["annotations"] if a["rank"] == rank)
    animal["keypoints"][12:15] = [animal["bbox"][0] + 3, animal["bbox"][1] + 5, 2]
    animal["bbox"][0] += shift * animal["bbox"][2]
    document["annotations"] = [animal]
    (folder / "corrected.json").write_text(json.dumps(document))
    return str(folder / "corrected.json"), animal


def take_in(lake: Lake, path: str, folder: Path, split: str = "train") -> None:
    """What `ingest` does, in this process."""
    identity, slot = {"stage": "ingest", "path": path}, f"{split}:{path}"
    labels, instances, photos = (lake.dataset(t, CATEGORY, identity, slot) for t in ("labels", "instances", "photos"))
    LabelWorker(str(folder), labels, instances, photos, split, CATEGORY, 352)("all", read_coco(path, str(folder)))
    for ds in (photos, instances, labels):
        ds.finish("made", {})


def rows(data: Instances) -> dict[str, tuple[Any, ...]]:
    """By id, what a network sees of an instance."""
    columns = (data.crops, data.windows, data.size, data.keypoints, data.cameras)
    return {name: tuple(c[i].tobytes() for c in columns) for i, name in enumerate(data.ids)}


@pytest.mark.ray
def test_a_correction_replaces_one_pseudo_label_in_the_next_round(
    record: RunRecord, tmp_path: Path, ray_local: SimpleNamespace
) -> None:
    before = training(record)
    path, animal = corrected(record, tmp_path / "coco", rank=1)
    source = {"format": "coco", "path": path, "images": str(tmp_path / "coco" / "data")}
    one = SimpleNamespace(**{**vars(ray_local), "actors": 1})
    ingest(record.lake.uri, CATEGORY, "train", source, 352, one)
    after = training(record)
    was, now = rows(before), rows(after)
    gone, new = set(was) - set(now), set(now) - set(was)
    assert gone == {animal["wildshape_id"]}
    (label,) = new
    assert all(was[name] == now[name] for name in set(was) & set(now))
    assert len(after) == len(before)
    # The same animal, with the person's joints, each as sure as a label.
    at, then = after.ids.index(label), before.ids.index(animal["wildshape_id"])
    np.testing.assert_allclose(after.windows[at], before.windows[then], atol=0.05)  # boxes leave with two digits
    assert set(after.keypoints[at, :, 2]) == {1.0}
    pixels = (after.keypoints[at, :, :2] + 1) / 2 * after.windows[at, 2] + after.windows[at, :2]
    np.testing.assert_allclose(pixels, np.reshape(animal["keypoints"], (16, 3))[:, :2], atol=0.01)
    assert after.digest != before.digest  # so another network is trained


@pytest.mark.parametrize("shift", [0.2, -0.3])
def test_a_moved_box_is_still_the_same_animal(record: RunRecord, tmp_path: Path, shift: float) -> None:
    path, animal = corrected(record, tmp_path / "coco", rank=2, shift=shift)
    instances = record.dataset("instances", ROUND)
    assert instances is not None
    assert labelled_by_hand(instances).to_pylist() == []
    take_in(record.lake, path, tmp_path / "coco" / "data")
    assert labelled_by_hand(instances).to_pylist() == [animal["wildshape_id"]]


def test_it_takes_no_place_in_the_next_selection(record: RunRecord, tmp_path: Path) -> None:
    path, animal = corrected(record, tmp_path / "coco", rank=2)
    pseudo, instances = record.dataset("pseudo_labels", ROUND), record.dataset("instances", ROUND)
    assert pseudo is not None
    assert instances is not None

    def chosen() -> dict[str, tuple[bool, str]]:
        rows = select_round(record.lake, pseudo, instances, "cf_cm2", 3, ROUND).read()
        return {r["instance_id"]: (r["selected"], r["reason"]) for r in rows.to_pylist()}

    before = chosen()
    take_in(record.lake, path, tmp_path / "coco" / "data")
    after = chosen()
    assert after.keys() == before.keys()
    assert before[animal["wildshape_id"]][0]
    assert after[animal["wildshape_id"]] == (False, "a person labelled this animal: the label is trained on")
    assert sum(kept for kept, _ in after.values()) == sum(kept for kept, _ in before.values()) == 3


def test_another_animal_of_the_photo_keeps_its_pseudo_label(record: RunRecord, tmp_path: Path) -> None:
    path, _ = corrected(record, tmp_path / "coco", rank=2, shift=0.6)
    take_in(record.lake, path, tmp_path / "coco" / "data")
    instances = record.dataset("instances", ROUND)
    assert instances is not None
    assert labelled_by_hand(instances).to_pylist() == []


def test_a_photo_for_testing_trains_nothing(record: RunRecord, tmp_path: Path) -> None:
    before = set(training(record).ids)
    path, animal = corrected(record, tmp_path / "coco", rank=3)
    take_in(record.lake, path, tmp_path / "coco" / "data", "test")
    assert before - set(training(record).ids) == {animal["wildshape_id"]}
    assert set(training(record).ids) < before


def test_without_the_crawl_nothing_is_claimed(record: RunRecord, tmp_path: Path) -> None:
    path, _ = corrected(record, tmp_path / "coco", rank=1)
    take_in(record.lake, path, tmp_path / "coco" / "data")
    instances, photos = record.dataset("instances", ROUND), record.photos()
    assert instances is not None
    assert photos is not None
    shutil.rmtree(Path(record.lake.uri) / photos.path)
    assert labelled_by_hand(instances).to_pylist() == []


def test_overlap_is_that_of_areas() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 3, 3], [0, 0, 1, 1.0]])
    np.testing.assert_allclose(overlap(boxes[0], boxes), [1, 1 / 3, 0, 1 / 4])
    assert overlap(np.zeros(4), np.zeros((2, 4))).tolist() == [0, 0]  # a box of no area is nobody's
