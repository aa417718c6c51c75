"""Photos in, animals out: boxes and crops, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tables import Dataset, InputError, Lake, fingerprint
from trainers.app import command

VERSION = 2


@command("detect")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf
    from rich.console import Console

    lake = Lake(cfg.lake)
    model = pick_detector(lake, cfg)
    photos = lake.latest("photos", cfg.category, cfg.photos)
    rules: Any = OmegaConf.to_container(cfg.detect, resolve=True)
    made = detect(lake, cfg.category, photos, model, rules, cfg.resources, cfg.detector)
    Console().print(f"{cfg.category}: {(made.finished() or {})['summary']} in {lake.uri}/{made.path}")


def pick_detector(lake: Lake, cfg: Any) -> str:
    """The model that `cfg.detector` runs: the one given, or the newest of our own kind.

    Raises:
        InputError: no such detector, or no model for it.
    """
    from pipelines.detectors import DETECTORS
    from pipelines.model_files import pick_model

    check_detector(cfg.detector, DETECTORS)
    if cfg.detector == "own":
        return pick_model(lake, "detector", cfg.category, cfg.model, "model")
    if not cfg.model:
        raise InputError("model", "null", f"name the model that detector={cfg.detector} runs")
    return str(cfg.model)


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
    instances, args = plan_detect(lake, category, photos, model, rules, detector)
    state = photos.state()
    if not instances.is_finished(state):
        from pipelines.detect_worker import DetectWorker
        from pipelines.stage import parts_as_units, parts_at_once, run_stage

        check_model(category, model, rules, detector)
        instances.unfinish()
        forget_outdated(instances, photos)
        units, at_once = parts_as_units(photos), parts_at_once(resources)
        totals = run_stage(instances, units, DetectWorker, args, resources, state, finish=False, at_once=at_once)
        close(instances, photos, rules, totals)
    return instances


def plan_detect(
    lake: Lake, category: str, photos: Dataset, model: str, rules: Mapping[str, Any], detector: str = "own"
) -> tuple[Dataset, dict[str, Any]]:
    """The `instances` dataset and what its worker is made of; `photos` need not be there yet."""
    from pipelines.detect_rules import Rules, in_force
    from pipelines.detectors import identity
    from pipelines.model_files import whole_path

    Rules.read(rules)
    answers = fingerprint({**identity(detector, model), "rules": in_force(rules), "version": VERSION})
    instances = lake.dataset(
        "instances", category, {"stage": "detect", "detector": answers, "photos": photos.fingerprint}
    )
    args = {"photos": photos, "instances": instances, "model": whole_path(model), "detector": answers}
    return instances, args | {"category": category, "rules": dict(rules), "kind": detector}


def check_model(category: str, model: str, rules: Mapping[str, Any], detector: str = "own") -> None:
    """Load the detector once, so that what is wrong with it is said in one line before any actor starts.

    Raises:
        InputError: it cannot be loaded, or does not know the animal.
    """
    from pipelines.detect_rules import Rules, wanted_classes
    from pipelines.detectors import open_detector

    checked = Rules.read(rules)
    wanted_classes(open_detector(detector, model, checked, "cpu").names, checked.classes, category)


def forget_outdated(instances: Dataset, photos: Dataset) -> None:
    """Take back parts whose photos are others now: a crawl that was killed asks again what no host was reached for."""
    now = {part: manifest["digest"] for part, manifest in photos.manifests().items()}
    for part, manifest in instances.manifests().items():
        if manifest.get("photos", now.get(part)) != now.get(part):
            instances.forget(part)


def close(instances: Dataset, photos: Dataset, rules: Mapping[str, Any], totals: Counter[str]) -> None:
    """Leave out photos that turned out to be duplicates, and finish the dataset; all its parts are committed."""
    totals["copies"] = drop_copies(instances, photos)
    totals["near_duplicates"] = mark_near_duplicates(instances, int(rules["radius"]))
    instances.finish(photos.state(), totals)


def drop_copies(instances: Dataset, photos: Dataset) -> int:
    """Remove instances of photos whose bytes another photo has; return how many.

    Which of equal photos stays is known when all are fetched, and some may have been looked at before.
    """
    import pyarrow.compute as pc

    known = photos.read(["photo_id", "duplicate_of"])
    copies = known["photo_id"].filter(pc.is_valid(known["duplicate_of"]))
    dropped = 0
    for part in instances.parts() if len(copies) else ():
        rows = instances.read(["instance_id", "photo_id"], [part])
        stay = rows["instance_id"].filter(pc.invert(pc.is_in(rows["photo_id"], copies)))
        dropped += instances.keep(part, stay)
    return dropped


def mark_near_duplicates(instances: Dataset, radius: int) -> int:
    """Write `duplicate_of` over the committed instances; return how many photos are near duplicates."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipelines.duplicates import find_near

    if not instances.parts():
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
