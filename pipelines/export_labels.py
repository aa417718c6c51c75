"""The pseudo-labels that a round selected, with their photos, on the way to another tool."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.attribution import Attribution
from pipelines.export_photos import FACTS, Photo, as_photos, new_folder
from pipelines.run_record import RunRecord, rows_of
from tables import Dataset, InputError


@dataclass(frozen=True)
class Animal:
    """One selected instance.

    Attributes:
        photo_id: of its photo.
        bbox: x, y, w, h in photo pixels.
        keypoints: [K,3] x, y in photo pixels and v: 2, or 0 with x = y = 0 for a joint that is not labelled.
        scores: [K] the joints' confidences, also of those that are not labelled.
        score: the criterion's.
        rank: by the criterion, 1 is best.
    """

    instance_id: str
    photo_id: str
    bbox: list[float]
    keypoints: np.ndarray
    scores: list[float]
    score: float
    rank: int


class Selection(NamedTuple):
    """Animals by rank, what they are called, and where they come from, in words."""

    animals: list[Animal]
    category: str
    source: str


class Exported(NamedTuple):
    """What an export wrote."""

    animals: int
    photos: int


Form = Callable[[str, Selection, Iterator[Photo]], None]


def export_labels(record: RunRecord, number: int, write: Form, folder: str, min_confidence: float = 0.0) -> Exported:
    """Write a round's selection in a tool's form, with the photos and ATTRIBUTION.csv and .md, to a new folder.

    The folder appears when everything is in it. One part of the crawl is held in memory.

    Args:
        write: the form; it gets a folder to write to, the selection, and the photos one by one.
        min_confidence: joints below are not labelled (v = 0).

    Raises:
        InputError: the lake no longer has what the round was made from, or the folder cannot be made.
    """
    found = selected(record, number, min_confidence)
    photos = record.photos()
    if photos is None:
        raise InputError("run", record.name, f"its photos are no longer in lake {record.lake.uri}")
    written: set[str] = set()
    with new_folder(folder) as scratch, Attribution(scratch, f"Photos of {found.source}") as attribution:
        wanted = photos_of(photos, {a.photo_id for a in found.animals})
        write(scratch, found, _noted(wanted, attribution, written))
    return Exported(sum(a.photo_id in written for a in found.animals), len(written))


def selected(record: RunRecord, number: int, min_confidence: float = 0.0) -> Selection:
    """What a round selected, best first.

    Raises:
        InputError: the lake no longer has what the round was made from.
    """
    chosen, pseudo, instances = (held(record, t, number) for t in ("selections", "pseudo_labels", "instances"))
    picked = {r["instance_id"]: r for r in chosen.read().to_pylist() if r["selected"]}
    made, boxes = rows_of(pseudo, picked, ["keypoints"]), rows_of(instances, picked, ["photo_id", "bbox"])
    animals = []
    for name, row in sorted(picked.items(), key=lambda item: item[1]["rank"]):
        if name not in made or name not in boxes:
            continue
        joints = np.asarray(made[name]["keypoints"], np.float64).reshape(-1, 3)
        sure = joints[:, 2:] >= min_confidence
        keypoints = np.where(sure, np.c_[joints[:, :2].round(2), np.full(len(joints), 2)], 0)
        box = [round(float(v), 2) for v in boxes[name]["bbox"]]
        scores = joints[:, 2].round(4).tolist()
        animals.append(Animal(name, boxes[name]["photo_id"], box, keypoints, scores, row["score"], row["rank"]))
    return Selection(animals, record.category, f"the pseudo-labels of wildshape run {record.name}, round {number}")


def photos_of(photos: Dataset, ids: set[str]) -> Iterator[Photo]:
    """The named photos of a crawl. Reads the bytes of the parts that hold some of them alone."""
    wanted = set(ids)
    for part in photos.parts():
        there = photos.read(["photo_id"], [part])["photo_id"]
        if wanted.isdisjoint(there.to_pylist()):
            continue
        rows = photos.read([*FACTS, "bytes"], [part])
        for photo in as_photos(rows.filter(pc.is_in(rows["photo_id"], pa.array(sorted(wanted), pa.string())))):
            wanted.remove(photo.facts["photo_id"])
            yield photo


def save(folder: str, photo: Photo) -> str:
    """Write the photo's file, byte for byte as it came; return its name."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, photo.file), "wb") as file:
        file.write(photo.data)
    return photo.file


def inside(animal: Animal, facts: Mapping[str, Any]) -> Animal:
    """The animal with the joints that lie outside its photo moved to the edge."""
    keypoints = animal.keypoints.copy()
    keypoints[:, :2] = keypoints[:, :2].clip(0, [facts["width"], facts["height"]])
    return replace(animal, keypoints=keypoints)


def held(record: RunRecord, table: str, number: int) -> Dataset:
    """The dataset of a round.

    Raises:
        InputError: it is no longer in the lake.
    """
    found = record.dataset(table, number)
    if found is None:
        raise InputError("round", number, f"the `{table}` of run {record.name} is no longer in lake {record.lake.uri}")
    return found


def _noted(photos: Iterator[Photo], attribution: Attribution, written: set[str]) -> Iterator[Photo]:
    """The photos as they pass, each noted in the attribution files and among those `written`."""
    for photo in photos:
        attribution.add(photo.file, photo.key, photo.facts)
        written.add(photo.facts["photo_id"])
        yield photo
