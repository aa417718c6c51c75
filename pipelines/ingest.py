"""Labelled images in, labels out: annotation files -> `photos`, `instances`, `labels`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.annotation_animals3d import read_animals3d
from pipelines.annotation_coco import read_animal_pose, read_coco
from pipelines.annotation_label_studio import read_label_studio
from pipelines.annotation_pascal import read_pascal
from tables import Dataset, InputError, Lake, file_digest, fingerprint
from trainers.app import command

VERSION = 3
SPLITS = ("train", "val", "test")
READERS = {
    "coco": read_coco, "animal_pose": read_animal_pose, "animals3d": read_animals3d,
    "label_studio": read_label_studio, "pascal": read_pascal,
}  # fmt: skip


@command("ingest")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf

    source = OmegaConf.to_container(cfg.source, resolve=True)
    labels = ingest(cfg.lake, cfg.category, cfg.split, source, int(cfg.crop_px), cfg.resources)  # type: ignore[arg-type]
    from rich.console import Console

    done = labels.finished() or {}
    Console().print(f"{cfg.category} {cfg.split}: {done['summary']} in {labels.files.uri}/{labels.path}")


def ingest(
    lake_uri: str, category: str, split: str, source: Mapping[str, Any], crop_px: int, resources: Any
) -> Dataset:
    """Read annotations into the lake and return their `labels` dataset; nothing is done if it is there already.

    Raises:
        InputError: the file is missing or not of its format, lacks a joint, or a photo is missing.
    """
    if split not in SPLITS:
        raise InputError("split", split, f"use one of {', '.join(SPLITS)}")
    if source["format"] not in READERS:
        raise InputError("source.format", source["format"], f"use one of {', '.join(READERS)}")
    if not source["path"]:
        raise InputError("source.path", source["path"], "name the annotation file")
    path = os.path.abspath(source["path"])
    folder = os.path.abspath(source["images"] or os.path.dirname(path))
    ids = _ids(source.get("ids"))
    photos = READERS[source["format"]](path, folder, category, ids)

    lake = Lake(lake_uri)
    identity = {"stage": "ingest", "version": VERSION, "file": _digest(path), "split": split, "crop_px": crop_px}
    identity |= {"format": source["format"], "ids": sorted(ids or ())}
    slot = f"{split}:{fingerprint({'path': path})}"
    labels, instances, pictures = (lake.dataset(t, category, identity, slot) for t in ("labels", "instances", "photos"))
    state = fingerprint(identity)
    if labels.is_finished(state):
        return labels
    from pipelines.label_worker import LabelWorker
    from pipelines.stage import run_stage

    units = {}
    for start in range(0, len(photos), 64):
        block = photos[start : start + 64]
        units[fingerprint({"names": [p["file"] for p in block]})] = block
    args = {"folder": folder, "labels": labels, "instances": instances, "photos": pictures, "split": split}
    totals = run_stage(
        labels, units, LabelWorker, {**args, "category": category, "crop_px": crop_px}, resources, state, finish=False
    )
    kept = len(labels.read(["instance_id"]))
    for ds in (pictures, instances, labels):
        ds.finish(state, {"photos": len(photos), "instances": kept, "lost": totals["units_lost"]})
    return labels


def _digest(path: str) -> str:
    """Of a file's content, or of all the XML files in a folder."""
    if not os.path.isdir(path):
        return file_digest(path)
    return fingerprint({str(p.relative_to(path)): file_digest(p) for p in sorted(Path(path).rglob("*.xml"))})


def _ids(path: str | None) -> frozenset[str] | None:
    """The ids in a file, one a line."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as f:
            return frozenset(line.strip() for line in f if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("source.ids", path, f"cannot be read ({error})") from error


if __name__ == "__main__":
    main()
