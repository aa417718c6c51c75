"""Photos in, animals out: boxes and crops, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tables import Dataset, InputError, Lake, fingerprint
from trainers.app import command

VERSION = 2
DETECTORS = ("own",)


@command("detect")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf
    from rich.console import Console

    from pipelines.model_files import pick_model

    check_detector(cfg.detector)
    lake = Lake(cfg.lake)
    photos = lake.latest("photos", cfg.category, cfg.photos)
    model = pick_model(lake, "detector", cfg.category, cfg.model, "model")
    rules: Any = OmegaConf.to_container(cfg.detect, resolve=True)
    made = detect(lake, cfg.category, photos, model, rules, cfg.resources)
    Console().print(f"{cfg.category}: {(made.finished() or {})['summary']} in {lake.uri}/{made.path}")


def check_detector(name: str) -> None:
    """Raise InputError for a detector we do not have."""
    if name not in DETECTORS:
        raise InputError("detector", name, f"use one of {', '.join(DETECTORS)}")


def detect(lake: Lake, category: str, photos: Dataset, model: str, rules: Mapping[str, Any], resources: Any) -> Dataset:
    """Detect in every photo that is not a failure or a duplicate; return the finished `instances` dataset.

    Photos that look alike are told apart here, where they are decoded anyway: the instances of a near duplicate name
    the photo that stays in `duplicate_of`, and later stages leave them out.

    Args:
        model: path of a detector checkpoint.
        rules: the `detect` section of the config.

    Raises:
        InputError: `detect.radius` is not a number of bits.
    """
    radius = rules["radius"]
    if type(radius) is not int or not 0 <= radius <= 63:
        raise InputError("detect.radius", radius, "a whole number of bits between 0 and 63")
    from models.checkpoint import weights_digest
    from pipelines.detect_worker import DetectWorker
    from pipelines.stage import parts_as_units, run_stage

    weights = fingerprint({"weights": weights_digest(model), "rules": dict(rules), "version": VERSION})
    identity = {"stage": "detect", "detector": weights, "photos": photos.fingerprint}
    instances = lake.dataset("instances", category, identity)
    state = photos.state()
    if not instances.is_finished(state):
        args = {"photos": photos, "instances": instances, "model": model, "detector": weights}
        args |= {"category": category, "rules": dict(rules)}
        totals = run_stage(instances, parts_as_units(photos), DetectWorker, args, resources, state, finish=False)
        totals["near_duplicates"] = mark_near_duplicates(instances, radius)
        instances.finish(state, totals)
    return instances


def mark_near_duplicates(instances: Dataset, radius: int) -> int:
    """Write `duplicate_of` over the committed instances; return how many photos are near duplicates."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipelines.duplicates import find_near

    if not instances.manifests():
        return 0
    rows = instances.read(["instance_id", "photo_id", "dhash"])
    photos = rows.group_by("photo_id").aggregate([("dhash", "min")])
    keeper_of = find_near(photos["photo_id"], photos["dhash_min"], radius)
    removed, keepers = (pa.array(list(names), pa.string()) for names in (keeper_of, keeper_of.values()))
    where = pc.index_in(rows["photo_id"], removed)
    found = pa.table({"instance_id": rows["instance_id"], "duplicate_of": keepers.take(where.combine_chunks())})
    instances.overlay(found.filter(pc.is_valid(where)))
    return len(keeper_of)


if __name__ == "__main__":
    main()
