"""Results for other tools: pseudo-labels with their photos, posed meshes as GLB, a crawl's photos with attribution."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tables import InputError, Lake
from trainers.app import command

if TYPE_CHECKING:
    from pipelines.run_record import RunRecord

LABELS = ("coco", "cvat", "label_studio")
WHAT = (*LABELS, "glb", "photos")
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
    from pipelines.export_coco import write_coco, write_cvat
    from pipelines.export_label_studio import write_label_studio
    from pipelines.export_labels import export_labels
    from pipelines.run_record import open_run

    record = open_run(Lake(cfg.lake), str(cfg.run), cfg.category)
    number = find_selection(record, cfg.round)
    if cfg.what in LABELS:
        form = {"coco": write_coco, "cvat": write_cvat, "label_studio": write_label_studio}[cfg.what]
        done = export_labels(record, number, form, cfg.out, float(cfg.min_confidence))
        said = f"{done.animals:,} animals in {done.photos:,} photos, with ATTRIBUTION.csv and ATTRIBUTION.md"
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
        raise InputError("out", "null" if cfg.out is None else cfg.out, "say where to write: name a local folder")
    if cfg.what != "glb" and os.path.isdir(cfg.out) and os.listdir(cfg.out):
        raise InputError("out", cfg.out, "there is something in this folder: name a new one")
    there = os.path.abspath(cfg.out)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK):
        raise InputError("out", cfg.out, f"{there} is no folder that can be written to")


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


def write_meshes(record: RunRecord, number: int, top: int, folder: str) -> list[str]:
    """Posed templates of a round's best-ranked instances by the run's best 3D net, one GLB each; return the paths.

    The meshes stand in the template's frame (Y up, nose towards +Z). File names begin with the rank.

    Raises:
        InputError: the best round's checkpoint or the round's data is no longer in the lake.
    """
    from models.checkpoint import load_checkpoint
    from models.crops import stored_pixels
    from models.predict import predict_acsm
    from pipelines.export_labels import held as _held
    from pipelines.posed_mesh import write_posed
    from pipelines.run_record import rows_of
    from trainers.data import decode_crops

    path = record.model_path(record.best)
    if path is None:
        raise InputError("run", record.name, f"the checkpoint of its best round {record.best} is no longer in the lake")
    net: Any = load_checkpoint(path)
    rows = _held(record, "selections", number).read().sort_by("rank").to_pylist()
    ranks = {r["instance_id"]: r["rank"] for r in rows if r["selected"]}
    names = list(ranks)[:top]
    held = rows_of(_held(record, "instances", number), names, ["crop"])
    names = [n for n in names if n in held]
    paths = []
    for name in names:
        image = decode_crops([held[name]["crop"]], stored_pixels(net.config["image_size"]))
        target = os.path.join(folder, f"{ranks[name]:05d}-{name}.glb")
        out = predict_acsm(net, image)
        write_posed(target, net, out.angles[0, 0], hypothesis=int(out.hypothesis[0]))
        paths.append(target)
    return paths


if __name__ == "__main__":
    main()
