"""Labelled images in, labels out: COCO keypoint JSON -> `photos`, `instances`, `labels`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from tables import QUADRUPED, Dataset, InputError, Lake, file_digest, fingerprint
from trainers.app import command

VERSION = 2
SPLITS = ("train", "val", "test")


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
    """Read a label file into the lake and return its `labels` dataset; nothing is done if it is there already.

    Raises:
        InputError: the file is missing or not COCO keypoint JSON, lacks a joint, or a photo is missing.
    """
    if split not in SPLITS:
        raise InputError("split", split, f"use one of {', '.join(SPLITS)}")
    if source["format"] != "coco":
        raise InputError("source.format", source["format"], "use coco")
    if not source["path"]:
        raise InputError("source.path", source["path"], "name the annotation file")
    path = os.path.abspath(source["path"])
    folder = os.path.abspath(source["images"] or os.path.dirname(path))
    photos = read_coco(path, folder)

    lake = Lake(lake_uri)
    identity = {"stage": "ingest", "version": VERSION, "file": file_digest(path), "split": split, "crop_px": crop_px}
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


def read_coco(path: str, folder: str) -> list[dict[str, Any]]:
    """Photos of a COCO keypoint file that have labelled animals, sorted by file name.

    Returns:
        plain JSON: `file`, and `animals` with `bbox`, `keypoints` (48 numbers in our joint order), `camera`,
        `segmentation`.

    Raises:
        InputError: the file or a photo is missing, the JSON is not COCO's, or the category lacks a joint.
    """
    try:
        with open(path, encoding="utf-8") as f:
            coco = json.load(f)
        images = {i["id"]: i for i in coco["images"]}
        orders = {c["id"]: _joint_order(path, c) for c in coco["categories"] if c.get("keypoints")}
        annotations = coco["annotations"]
    except FileNotFoundError:
        raise InputError("source.path", path, "no such file") from None
    except OSError as error:
        raise InputError("source.path", path, f"cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError("source.path", path, f"not COCO keypoint JSON ({type(error).__name__}: {error})") from error
    if not orders:
        raise InputError("source.path", path, "no category with a `keypoints` list of joint names")
    try:
        found = _animals_by_photo(path, images, orders, annotations)
    except (KeyError, TypeError) as error:
        raise InputError("source.path", path, f"not COCO keypoint JSON ({type(error).__name__}: {error})") from error
    missing = [n for n in found if not os.path.exists(os.path.join(folder, n))]
    if missing:
        raise InputError("source.images", folder, f"{len(missing)} photos are missing, the first is {missing[0]}")
    if not found:
        raise InputError("source.path", path, "no annotation has a labelled joint")
    return [found[n] for n in sorted(found)]


def _animals_by_photo(
    path: str, images: Mapping[Any, Any], orders: Mapping[Any, list[int]], annotations: list[Any]
) -> dict[str, dict[str, Any]]:
    """Photos with the animals that have a labelled joint, by file name; KeyError or TypeError for what is not COCO."""
    found: dict[str, dict[str, Any]] = {}
    for a in annotations:
        order = orders.get(a["category_id"])
        joints = a.get("keypoints") or []
        if order is None or a.get("iscrowd") or not any(joints[2::3]):
            continue
        if a["image_id"] not in images:
            raise InputError("source.path", path, f"annotation {a.get('id')} names image {a['image_id']}: not listed")
        if len(a["bbox"]) != 4 or min(a["bbox"][2:]) <= 0:
            raise InputError("source.path", path, f"annotation {a.get('id')} has an empty box {a['bbox']}")
        if len(joints) <= 3 * max(order) + 2:
            raise InputError("source.path", path, f"annotation {a.get('id')} has only {len(joints)} keypoint numbers")
        name = images[a["image_id"]]["file_name"]
        ours = [float(v) for j in order for v in joints[3 * j : 3 * j + 3]]
        animal = {"bbox": a["bbox"], "keypoints": ours, "camera": a.get("camera")}
        found.setdefault(name, {"file": name, "animals": []})["animals"].append(
            {**animal, "segmentation": a.get("segmentation")}
        )
    return found


def _joint_order(path: str, category: Mapping[str, Any]) -> list[int]:
    """Where each of our joints stands in the file's list."""
    theirs = [str(n).lower() for n in category["keypoints"]]
    missing = [n for n in QUADRUPED.names if n.lower() not in theirs]
    if missing:
        raise InputError("source.path", path, f"category {category.get('name')} lacks the joints {', '.join(missing)}")
    return [theirs.index(n.lower()) for n in QUADRUPED.names]


if __name__ == "__main__":
    main()
