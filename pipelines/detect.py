"""Photos in, animals out: boxes and crops, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tables import Dataset, InputError, Lake, fingerprint
from trainers.app import command

VERSION = 1
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

    Args:
        model: path of a detector checkpoint.
        rules: the `detect` section of the config.
    """
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
        run_stage(instances, parts_as_units(photos), DetectWorker, args, resources, state)
    return instances


if __name__ == "__main__":
    main()
