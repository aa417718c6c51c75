"""Crops in, pseudo-labels out: what the 2D and 3D networks say of every animal."""

from __future__ import annotations

from typing import Any

from tables import Dataset, InputError, Lake
from trainers.app import command

VERSION = 2  # 2: with `heatmap_3d`


@command("keypoints")
def main(cfg: Any) -> None:
    from rich.console import Console

    lake = Lake(cfg.lake)
    check_round(cfg.round)
    instances = lake.latest("instances", cfg.category, cfg.instances)
    made = infer(lake, cfg.category, instances, pick_models(lake, cfg), cfg.round, cfg.resources)
    Console().print(f"{cfg.category}: {(made.finished() or {})['summary']} in {lake.uri}/{made.path}")


def check_round(number: Any) -> None:
    """Raise InputError for what is no round."""
    if type(number) is not int or number < 0:
        raise InputError("round", number, "must be a whole number, 0 or more")


def pick_models(lake: Lake, cfg: Any) -> dict[str, str | None]:
    """Paths of the `pose`, `aux` and `acsm` checkpoints: those given, or the newest in the lake.

    Raises:
        InputError: there is none of a kind.
    """
    from pipelines.model_files import pick_model

    pose = pick_model(lake, "pose", cfg.category, cfg.pose, "pose")
    return {
        "pose": pose,
        "aux": pick_model(lake, "pose", cfg.category, cfg.aux, "aux", skip=pose),
        "acsm": pick_model(lake, "acsm", cfg.category, cfg.acsm, "acsm"),
    }


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
    from pipelines.keypoint_worker import KeypointWorker
    from pipelines.stage import parts_as_units, parts_at_once, run_stage

    pseudo, args = plan_infer(lake, category, instances, models, round)
    state = instances.state()
    if pseudo.is_finished(state):
        return pseudo
    if before and (before.identity["instances"] != instances.fingerprint or not before.is_finished(state)):
        before = None
    pseudo.unfinish()
    forget_outdated(pseudo, instances)
    units, args["before"], at_once = parts_as_units(instances), before, parts_at_once(resources)
    run_stage(pseudo, units, KeypointWorker, args, resources, state, at_once=at_once)
    return pseudo


def plan_infer(
    lake: Lake, category: str, instances: Dataset, models: dict[str, str | None], round: int
) -> tuple[Dataset, dict[str, Any]]:
    """The `pseudo_labels` dataset and what its worker is made of; `instances` need not be there yet."""
    from models.checkpoint import image_size_of, load_checkpoint, weights_digest

    ids = {n: (weights_digest(p) if p else None) for n, p in models.items()}
    sizes = {n: image_size_of(load_checkpoint(str(models[n]))) for n in ("pose", "aux") if models[n]}
    aux_size = sizes.get("aux", sizes["pose"])
    identity: dict[str, Any] = {
        "stage": "keypoints", "version": VERSION, "round": round, "models": ids, "instances": instances.fingerprint,
    }  # fmt: skip
    if aux_size != sizes["pose"]:
        identity["aux_size"] = aux_size
    pseudo = lake.dataset("pseudo_labels", category, identity, slot=f"round={round}")
    args = {"instances": instances, "pseudo": pseudo, "models": models, "ids": ids, "round": round}
    return pseudo, args | {"image_size": sizes["pose"], "aux_size": aux_size}


def forget_outdated(pseudo: Dataset, instances: Dataset) -> None:
    """Make the parts fit the instances that stay now: a photo that came later may be the one that stays.

    Rows of instances that left are removed; a part that lacks an instance is taken back and made again, unless its
    manifest says that nothing can be made of it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    there = instances.manifests()
    for part, manifest in pseudo.manifests().items():
        if part not in there:
            pseudo.forget(part)
            continue
        rows = instances.read(["instance_id", "duplicate_of"], [part])
        stay = rows["instance_id"].filter(pc.is_null(rows["duplicate_of"]))
        made = pseudo.read(["instance_id"], [part])["instance_id"]
        known = pa.chunked_array([*made.chunks, pa.array(list(manifest.get("lost", {})), pa.string())])
        if not pc.all(pc.is_in(stay, known), min_count=0).as_py():
            pseudo.forget(part)
        elif not pc.all(pc.is_in(made, stay), min_count=0).as_py():
            pseudo.keep(part, stay)


if __name__ == "__main__":
    main()
