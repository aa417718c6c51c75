"""Crops in, pseudo-labels out: what the 2D and 3D networks say of every animal."""

from __future__ import annotations

from typing import Any

from tables import Dataset, InputError, Lake
from trainers.app import command

VERSION = 2  # 2: with `heatmap_3d`


@command("keypoints")
def main(cfg: Any) -> None:
    from rich.console import Console

    from pipelines.model_files import pick_model

    if type(cfg.round) is not int or cfg.round < 0:
        raise InputError("round", cfg.round, "must be a whole number, 0 or more")
    lake = Lake(cfg.lake)
    instances = lake.latest("instances", cfg.category, cfg.instances)
    pose = pick_model(lake, "pose", cfg.category, cfg.pose, "pose")
    models: dict[str, str | None] = {
        "pose": pose,
        "aux": pick_model(lake, "pose", cfg.category, cfg.aux, "aux", skip=pose),
        "acsm": pick_model(lake, "acsm", cfg.category, cfg.acsm, "acsm"),
    }
    made = infer(lake, cfg.category, instances, models, int(cfg.round), cfg.resources)
    Console().print(f"{cfg.category}: {(made.finished() or {})['summary']} in {lake.uri}/{made.path}")


def infer(
    lake: Lake,
    category: str,
    instances: Dataset,
    models: dict[str, str | None],
    round: int,
    resources: Any,
    before: Dataset | None = None,
) -> Dataset:
    """Pseudo-labels of every instance that is no near duplicate, for a round; return the finished dataset.

    Args:
        models: paths of the `pose`, `aux` and `acsm` checkpoints.
        before: the former round's dataset; what it has of networks that are the same is taken over.
    """
    from models.checkpoint import load_checkpoint, weights_digest
    from pipelines.keypoint_worker import KeypointWorker
    from pipelines.stage import parts_as_units, run_stage

    ids = {n: (weights_digest(p) if p else None) for n, p in models.items()}
    notes: Any = load_checkpoint(str(models["pose"])).notes
    image_size = int(notes["job"]["settings"]["image_size"])
    identity = {
        "stage": "keypoints", "version": VERSION, "round": round, "models": ids, "instances": instances.fingerprint,
    }  # fmt: skip
    pseudo = lake.dataset("pseudo_labels", category, identity, slot=f"round={round}")
    state = instances.state()
    if pseudo.is_finished(state):
        return pseudo
    if before and (before.identity["instances"] != instances.fingerprint or not before.is_finished(state)):
        before = None
    _forget_outdated(pseudo, instances)
    args = {"instances": instances, "pseudo": pseudo, "models": models, "ids": ids, "round": round}
    args |= {"image_size": image_size, "before": before}
    run_stage(pseudo, parts_as_units(instances), KeypointWorker, args, resources, state)
    return pseudo


def _forget_outdated(pseudo: Dataset, instances: Dataset) -> None:
    """Take back parts whose instances are others now: a photo that came later may be the one that stays."""
    import pyarrow.compute as pc

    for part in pseudo.manifests():
        rows = instances.read(["instance_id", "duplicate_of"], [part])
        stay = rows["instance_id"].filter(pc.is_null(rows["duplicate_of"]))
        if not pseudo.read(["instance_id"], [part])["instance_id"].equals(stay):
            pseudo.forget(part)


if __name__ == "__main__":
    main()
