"""Web photos that look like evaluation photos: named, and never trained on, through a real small lake."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tiny import CATEGORY, shared_lake

from models.photo import decode_photo
from pipelines.photo_resize import dhash
from selection import select_round
from selection.leaks import RADIUS, evaluation_photos, leaks
from tables import Dataset, Lake, schema
from trainers.data import load_pseudo_labelled


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    copied = tmp_path_factory.mktemp("leaks") / "lake"
    shutil.copytree(shared_lake().uri, copied)
    return Lake(str(copied))


def photo_of(lake: Lake, split: str) -> tuple[str, bytes]:
    """A labelled photo of a split: its id and file."""
    (labels,) = [d for d in lake.datasets("labels", CATEGORY) if d.slot.startswith(split)]
    rows = lake.dataset("photos", CATEGORY, labels.identity, labels.slot).read(["photo_id", "bytes"])
    return rows["photo_id"][1].as_py(), rows["bytes"][1].as_py()


def seen_again(data: bytes) -> int:
    """The hash of a photo as another site shows it: smaller, and compressed once more."""
    photo = decode_photo(data)
    small = cv2.resize(photo, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    again = decode_photo(cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes())
    return int(dhash(cv2.cvtColor(again, cv2.COLOR_RGB2GRAY)))


def web(lake: Lake) -> tuple[Dataset, Dataset, dict[str, str]]:
    """The web's instances with the hashes of their photos, three of which show labelled photos; who they show."""
    made = lake.files.read_json("runs/default/rounds.json")[1]
    instances, pseudo = (lake.find(t, CATEGORY, made[t].rsplit("/", 1)[1]) for t in ("instances", "pseudo_labels"))
    rows = instances.read()
    crawled = next(d for d in lake.datasets("photos", CATEGORY) if not d.slot).read(["photo_id", "bytes"])
    files = dict(zip(crawled["photo_id"].to_pylist(), crawled["bytes"].to_pylist(), strict=True))
    bits = [seen_again(files[p]) for p in rows["photo_id"].to_pylist()]
    order = np.argsort(rows["instance_id"].to_pylist())
    shows = {}
    for i, split in zip(order[:3].tolist(), ("val", "test", "train"), strict=True):
        name, data = photo_of(lake, split)
        bits[i] = seen_again(data)
        if split != "train":
            shows[rows["instance_id"][i].as_py()] = name
    at = rows.column_names.index("dhash")
    hashed = lake.dataset("instances", CATEGORY, {"stage": "detect", "hashed": True})
    hashed.write("all", rows.set_column(at, "dhash", pa.array(bits, pa.uint64())), schema("instances"))
    hashed.finish("x")
    return hashed, pseudo, shows


def test_what_looks_like_an_evaluation_photo_is_named_and_never_trains(lake: Lake) -> None:
    instances, pseudo, shows = web(lake)
    everything = len(pseudo.read(["instance_id"]))
    chosen = select_round(lake, pseudo, instances, "cf_cm2", everything, 1)
    rows = {r["instance_id"]: r for r in chosen.read().to_pylist()}
    named = {i: r["reason"] for i, r in rows.items() if not r["selected"]}
    assert named == {i: f"leak: looks like the evaluation photo {photo}" for i, photo in shows.items()}
    assert (chosen.finished() or {})["summary"]["leaks"] == 2
    data = load_pseudo_labelled(instances, pseudo, chosen, 64)
    assert set(data.ids) == rows.keys() - shows.keys()
    # The places go to others: as many are kept as are asked for.
    few = select_round(lake, pseudo, instances, "cf_cm2", everything - 2, 1).read()
    assert pc.sum(few["selected"]).as_py() == everything - 2


def test_a_label_that_comes_later_makes_another_selection(lake: Lake) -> None:
    instances, pseudo, _ = web(lake)
    before = select_round(lake, pseudo, instances, "cf_cm2", 3, 1)
    labels = next(d for d in lake.datasets("labels", CATEGORY) if d.slot.startswith("test"))
    (Path(lake.uri) / labels.path / "_finished.json").rename(Path(lake.uri) / labels.path / "_hidden.json")
    fewer = select_round(lake, pseudo, instances, "cf_cm2", 3, 1)
    (Path(lake.uri) / labels.path / "_hidden.json").rename(Path(lake.uri) / labels.path / "_finished.json")
    assert fewer.fingerprint != before.fingerprint
    assert select_round(lake, pseudo, instances, "cf_cm2", 3, 1).fingerprint == before.fingerprint


def test_leaks_are_told_by_id_and_by_hash() -> None:
    held = pa.table({"photo_id": ["a", "b", "c"], "dhash": pa.array([0b1111 << 20, 1 << 60, None], pa.uint64())})
    near = [0b1111 << 20, 0b11111111 << 20, 0b111111111 << 20, (1 << 60) + 1, 0, 5 << 8, None]
    web = pa.table({"photo_id": ["t", "u", "v", "w", "x", "c", "y"], "dhash": pa.array(near, pa.uint64())})
    assert RADIUS == 4
    assert leaks(web, held).to_pylist() == ["a", "a", None, "b", None, "c", None]
    assert leaks(web, held.slice(0, 0)).to_pylist() == [None] * 7


def test_without_labels_nothing_can_leak(tmp_path: Path) -> None:
    assert len(evaluation_photos(Lake(str(tmp_path)), "deer")) == 0
