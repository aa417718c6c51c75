"""Results for other tools: pseudo-labels as COCO keypoints, posed meshes as GLB, a crawl's photos with attribution."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tables import QUADRUPED, InputError, Lake
from trainers.app import command

if TYPE_CHECKING:
    from pipelines.run_record import RunRecord

WHAT = ("coco", "glb", "photos")
FORMATS = ("parquet", "webdataset")
MOST_MB = 4096  # a shard of photos is held in memory


@command("export")
def main(cfg: Any) -> None:
    from rich.console import Console

    check(cfg)
    said = _photos_out(cfg) if cfg.what == "photos" else _run_out(cfg)
    Console().print(f"{said}: {cfg.out}", soft_wrap=True, highlight=False)


def _photos_out(cfg: Any) -> str:
    from pipelines.export_photos import export_photos

    dataset = Lake(cfg.lake).latest("photos", str(cfg.category), cfg.photos and str(cfg.photos))
    done = export_photos(dataset, cfg.format, cfg.out, cfg.shard_mb)
    open_ones = f" ({done.unlicensed:,} of them state no licence)" if done.unlicensed else ""
    shards = f"{done.shards:,} shard{'s' * (done.shards != 1)}"
    return f"{done.photos:,} photos{open_ones} in {shards}, with ATTRIBUTION.csv and ATTRIBUTION.md"


def _run_out(cfg: Any) -> str:
    from pipelines.run_record import open_run
    from tables import write_atomically

    record = open_run(Lake(cfg.lake), str(cfg.run), cfg.category)
    number = find_selection(record, cfg.round)
    if cfg.what == "coco":
        coco = to_coco(record, number, float(cfg.min_confidence), cfg.images)
        write_atomically(cfg.out, json.dumps(coco).encode())
        said = f"{len(coco['annotations'])} animals in {len(coco['images'])} photos"
    else:
        said = f"{len(write_meshes(record, number, cfg.top, cfg.out))} meshes"
    return f"run {record.name}, round {number}: {said}"


def check(cfg: Any) -> None:
    """Raise InputError for a setting that makes no sense, before anything is read."""
    if cfg.what not in WHAT:
        raise InputError("what", cfg.what, f"use one of {', '.join(WHAT)}")
    _check_out(cfg)
    if cfg.round is not None and not _whole(cfg.round):
        raise InputError("round", cfg.round, "must be a whole number, 1 or more, or null for the newest")
    if not _whole(cfg.top):
        raise InputError("top", cfg.top, "must be a whole number of meshes, 1 or more")
    sure = cfg.min_confidence
    if isinstance(sure, bool) or not isinstance(sure, int | float) or not 0 <= sure <= 1:
        raise InputError("min_confidence", sure, "must be a number between 0 and 1")
    if cfg.format not in FORMATS:
        raise InputError("format", cfg.format, f"use one of {', '.join(FORMATS)}")
    if not _whole(cfg.shard_mb) or cfg.shard_mb > MOST_MB:
        raise InputError("shard_mb", cfg.shard_mb, f"must be a whole number of MiB between 1 and {MOST_MB}")


def _check_out(cfg: Any) -> None:
    """Refuse places that cannot be written to as `what` asks, while nothing has been made yet."""
    if not isinstance(cfg.out, str) or not cfg.out or "://" in cfg.out:
        places = "a local JSON file for coco, a local folder for glb and photos"
        raise InputError("out", "null" if cfg.out is None else cfg.out, f"say where to write: {places}")
    if cfg.what == "coco" and os.path.isdir(cfg.out):
        raise InputError("out", cfg.out, "is a folder: name the JSON file to write")
    if cfg.what == "photos" and os.path.isdir(cfg.out) and os.listdir(cfg.out):
        raise InputError("out", cfg.out, "there is something in this folder: name a new one")
    folders = {"out": os.path.dirname(os.path.abspath(cfg.out)) if cfg.what == "coco" else cfg.out}
    if cfg.what == "coco" and cfg.images is not None:
        folders["images"] = cfg.images
    for key, folder in folders.items():
        if not isinstance(folder, str) or not folder:
            raise InputError(key, folder, "name a folder")
        there = os.path.abspath(folder)
        while not os.path.lexists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there) or not os.access(there, os.W_OK):
            raise InputError(key, folder, f"{there} is no folder that can be written to")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def find_selection(record: RunRecord, number: int | None) -> int:
    """The round asked for if it selected pseudo-labels; None: the best round if it did, else the newest that did.

    Raises:
        InputError: there is none.
    """
    there = [n for n in record.numbers if record.dataset("selections", n) is not None]
    if number is None and there:
        return record.best if record.best in there else there[-1]
    if number not in there:
        had = f"its rounds {there} did" if there else "no round of it did"
        raise InputError(
            "round", number, f"run {record.name} selected no pseudo-labels there that the lake still has; {had}"
        )
    return number


def to_coco(record: RunRecord, number: int, min_confidence: float = 0.0, images: str | None = None) -> dict[str, Any]:
    """The pseudo-labels a round selected, as a COCO keypoint document that `ingest` reads.

    `keypoints` hold v in {0, 2} only: 2 where the confidence reaches `min_confidence`, else 0 with x = y = 0, as COCO
    asks. Every joint's confidence is in `keypoint_scores`, the criterion's score in `selection_score`.

    Args:
        images: folder to write the photos to, under the names the document gives; None writes none.

    Raises:
        InputError: the lake no longer has what the round was made from.
    """
    import numpy as np

    from pipelines.run_record import rows_of
    from tables import write_atomically

    chosen, pseudo, instances = (_held(record, t, number) for t in ("selections", "pseudo_labels", "instances"))
    picked = {r["instance_id"]: r for r in chosen.read().to_pylist() if r["selected"]}
    made, boxes = rows_of(pseudo, picked, ["keypoints"]), rows_of(instances, picked, ["photo_id", "bbox"])
    photos = _photos(record, {b["photo_id"] for b in boxes.values()}, with_bytes=images is not None)
    numbers = {p: i + 1 for i, p in enumerate(sorted(photos))}
    licences = sorted({str(p["license"]) for p in photos.values() if p["license"]})
    annotations: list[dict[str, Any]] = []
    for name, row in sorted(picked.items(), key=lambda item: item[1]["rank"]):
        if name not in made or name not in boxes or boxes[name]["photo_id"] not in numbers:
            continue
        joints = np.asarray(made[name]["keypoints"], np.float64).reshape(-1, 3)
        seen = joints[:, 2] >= min_confidence
        flat = np.where(seen[:, None], np.c_[joints[:, :2], np.full(len(joints), 2)], 0).round(2)
        box = [round(float(v), 2) for v in boxes[name]["bbox"]]
        annotations.append({
            "id": len(annotations) + 1, "image_id": numbers[boxes[name]["photo_id"]], "category_id": 1, "iscrowd": 0,
            "bbox": box, "area": round(box[2] * box[3], 2), "num_keypoints": int(seen.sum()),
            "keypoints": [int(v) if i % 3 == 2 else float(v) for i, v in enumerate(flat.ravel())],
            "keypoint_scores": [round(float(c), 4) for c in joints[:, 2]],
            "instance_id": name, "selection_score": row["score"], "rank": row["rank"],
        })  # fmt: skip
    listed = []
    for pid, index in numbers.items():
        p = photos[pid]
        listed.append({
            "id": index, "file_name": _file_name(pid, p), "width": p["width"], "height": p["height"],
            "coco_url": p["url"], "license": licences.index(str(p["license"])) + 1 if p["license"] else 0,
            "author": p["author"], "page_url": p["page_url"], "photo_id": pid,
        })  # fmt: skip
        if images is not None and p["bytes"]:
            write_atomically(os.path.join(images, listed[-1]["file_name"]), p["bytes"])
    category = {
        "id": 1, "name": record.category, "supercategory": "animal", "keypoints": list(QUADRUPED.names),
        "skeleton": [[a + 1, b + 1] for a, b in QUADRUPED.edges],
    }  # fmt: skip
    about = {"description": f"pseudo-labels of wildshape run {record.name}, round {number}", "version": "1"}
    return {
        "info": about, "licenses": [{"id": i + 1, "name": n} for i, n in enumerate(licences)], "images": listed,
        "annotations": annotations, "categories": [category],
    }  # fmt: skip


def write_meshes(record: RunRecord, number: int, top: int, folder: str) -> list[str]:
    """Posed templates of a round's best-ranked instances by the run's best 3D net, one GLB each; return the paths.

    The file's bind pose is the predicted pose in the template's frame (Y up, nose towards +Z), its joints are the parts
    at their posed pivots, so that it can be posed further. File names begin with the rank.

    Raises:
        InputError: the best round's checkpoint or the round's data is no longer in the lake.
    """
    import numpy as np
    import torch

    from models.articulation import skin
    from models.checkpoint import load_checkpoint
    from models.crops import stored_pixels
    from models.gltf import write_glb
    from models.predict import predict_acsm
    from pipelines.run_record import rows_of
    from trainers.data import decode_crops

    path = record.model_path(record.best)
    if path is None:
        raise InputError("run", record.name, f"the checkpoint of its best round {record.best} is no longer in the lake")
    net: Any = load_checkpoint(path)
    t = net.template
    rows = _held(record, "selections", number).read().sort_by("rank").to_pylist()
    ranks = {r["instance_id"]: r["rank"] for r in rows if r["selected"]}
    names = list(ranks)[:top]
    held = rows_of(_held(record, "instances", number), names, ["crop"])
    names = [n for n in names if n in held]
    paths = []
    for name in names:
        image = decode_crops([held[name]["crop"]], stored_pixels(net.config["image_size"]))
        with torch.inference_mode():
            moves = net.pose(predict_acsm(net, image).angles[0, 0])
            posed = skin(net.vertices, net.weights, moves).numpy()
            pivots = (moves[:, :, :3] @ net.pivots[..., None])[..., 0] + moves[:, :, 3]
        target = os.path.join(folder, f"{ranks[name]:05d}-{name}.glb")
        write_glb(target, posed, t.faces, np.asarray(t.weights), t.parts, t.parents, pivots.numpy())
        paths.append(target)
    return paths


def _held(record: RunRecord, table: str, number: int) -> Any:
    found = record.dataset(table, number)
    if found is None:
        raise InputError("round", number, f"the `{table}` of run {record.name} is no longer in lake {record.lake.uri}")
    return found


def _photos(record: RunRecord, ids: set[str], with_bytes: bool) -> dict[str, Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    photos = record.photos()
    if photos is None:
        raise InputError("run", record.name, f"its photos are no longer in lake {record.lake.uri}")
    columns = [
        "photo_id",
        "url",
        "width",
        "height",
        "license",
        "author",
        "page_url",
        *(["bytes"] if with_bytes else []),
    ]
    found: dict[str, Mapping[str, Any]] = {}
    for part in photos.manifests():
        rows = photos.read(columns, [part])
        rows = rows.filter(pc.is_in(rows["photo_id"], pa.array(sorted(ids), pa.string())))
        found |= {r["photo_id"]: r for r in rows.to_pylist()}
    return found


def _file_name(photo_id: str, photo: Mapping[str, Any]) -> str:
    safe = "".join(c if c.isalnum() else "_" for c in photo_id)
    end = os.path.splitext(str(photo["url"]).partition("?")[0])[1].lower()
    return safe + (end if end in (".jpg", ".jpeg", ".png", ".webp", ".gif") else ".jpg")


if __name__ == "__main__":
    main()
