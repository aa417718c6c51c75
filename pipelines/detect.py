"""Photos in, animals out: boxes and crops, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tables import Dataset, InputError, Lake, fingerprint
from trainers.app import command

VERSION = 2


@command("detect")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf
    from rich.console import Console

    from pipelines.detectors import DETECTORS
    from pipelines.model_files import pick_model

    check_detector(cfg.detector, DETECTORS)
    lake = Lake(cfg.lake)
    photos = lake.latest("photos", cfg.category, cfg.photos)
    model = cfg.model
    if cfg.detector == "own":
        model = pick_model(lake, "detector", cfg.category, model, "model")
    elif not model:
        raise InputError("model", "null", f"name the model that detector={cfg.detector} runs")
    rules: Any = OmegaConf.to_container(cfg.detect, resolve=True)
    made = detect(lake, cfg.category, photos, model, rules, cfg.resources, cfg.detector)
    Console().print(f"{cfg.category}: {(made.finished() or {})['summary']} in {lake.uri}/{made.path}")


def check_detector(name: str, known: Sequence[str] = ("own",)) -> None:
    """Raise InputError for a detector that is not among `known`: the loop trains its own."""
    if name not in known:
        raise InputError("detector", name, f"use one of {', '.join(known)}")


def detect(
    lake: Lake,
    category: str,
    photos: Dataset,
    model: str,
    rules: Mapping[str, Any],
    resources: Any,
    detector: str = "own",
) -> Dataset:
    """Detect in every photo that is not a failure or a duplicate; return the finished `instances` dataset.

    Photos that look alike are told apart here, where they are decoded anyway: the instances of a near duplicate name
    the photo that stays in `duplicate_of`, and later stages leave them out.

    Args:
        model: path or name of the detector's model.
        rules: the `detect` section of the config.
        detector: which detector, of `pipelines.detectors`.

    Raises:
        InputError: a rule is out of range, the detector does not know the animal, or it cannot be loaded.
    """
    from pipelines.detect_rules import Rules, in_force, wanted_classes
    from pipelines.detectors import identity, open_detector

    checked = Rules.read(rules)
    answers = fingerprint({**identity(detector, model), "rules": in_force(rules), "version": VERSION})
    instances = lake.dataset(
        "instances", category, {"stage": "detect", "detector": answers, "photos": photos.fingerprint}
    )
    state = photos.state()
    if not instances.is_finished(state):
        from pipelines.detect_worker import DetectWorker
        from pipelines.stage import parts_as_units, run_stage

        # Once here: what cannot be loaded or does not know the animal is said in one line, before any actor starts.
        wanted_classes(open_detector(detector, model, checked, "cpu").names, checked.classes, category)
        args = {"photos": photos, "instances": instances, "model": model, "detector": answers}
        args |= {"category": category, "rules": dict(rules), "kind": detector}
        totals = run_stage(instances, parts_as_units(photos), DetectWorker, args, resources, state, finish=False)
        totals["near_duplicates"] = mark_near_duplicates(instances, checked.radius)
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
