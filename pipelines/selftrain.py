"""The outer loop: from a metadata dump to AUC per round, each round's model judging the next round's pseudo-labels."""

from __future__ import annotations

import re
from typing import Any

from tables import InputError, Lake
from trainers.app import command


@command("selftrain")
def main(cfg: Any) -> None:
    check(cfg)
    selftrain(cfg)


def check(cfg: Any) -> None:
    """Refuse bad input before Ray or the sandbox starts.

    Raises:
        InputError: naming the argument, its value and the fix.
    """
    from pipelines.detect import check_detector
    from pipelines.detectors import DETECTORS
    from pipelines.model_files import check_model
    from pipelines.round_rules import check_rules, sizes
    from selection import check as check_selection
    from selection import policy_of
    from trainers.cluster import check_batches
    from trainers.tracking import store_of

    check_rules(cfg)
    if not re.fullmatch(r"[\w-][\w.-]*", str(cfg.run or "")):
        raise InputError("run", cfg.run, "must be a name of letters, digits, '_', '-' and '.'")
    lake = Lake(cfg.lake)
    store_of(cfg.mlflow, lake)
    for top_n in sizes(cfg.top_n) if cfg.criterion != "none" else ():
        check_selection(cfg.criterion, top_n, **policy_of(cfg))
    if cfg.criterion == "oracle" and cfg.template is not None:
        raise InputError("criterion", cfg.criterion, "needs the truth, which only the sandbox (template=null) has")
    check_detector(cfg.detector, DETECTORS)
    if cfg.detector_model is not None and cfg.detector == "own":
        check_model(cfg.detector_model, "detector", "detector_model")
    elif cfg.detector != "own" and not cfg.detector_model:
        raise InputError("detector_model", "null", f"name the model that detector={cfg.detector} runs")
    elif cfg.detector != "own":
        check_foreign(cfg)
    from trainers.settings import check_settings

    for name in ("detector", "pose", "aux", "acsm"):
        check_settings(name, cfg.train[name])
    if cfg.pose_model is not None:
        check_pose(cfg.pose_model, cfg.train)
    trained = {"detector": cfg.detector_model is None, "pose": cfg.pose_model is None or cfg.retrain_pose}
    check_batches(cfg.resources, cfg.train, [n for n in ("detector", "pose", "aux", "acsm") if trained.get(n, True)])
    if cfg.template is None:
        if cfg.category != cfg.sandbox.category:
            fix = f"give {cfg.category}'s template file, or leave category={cfg.sandbox.category} for the sandbox"
            raise InputError("template", "null", fix)
        if cfg.source.path is not None:
            raise InputError("source.path", cfg.source.path, "goes with a template of your own: set template too")
        return
    check_template(cfg.template)
    lake.datasets("labels", cfg.category)
    if cfg.source.path is None:
        lake.latest("photos", cfg.category)
    else:
        from omegaconf import OmegaConf

        from pipelines.sources import check_source

        check_source(OmegaConf.to_container(cfg.source, resolve=True), cfg.category)


def check_foreign(cfg: Any) -> None:
    """Raise InputError unless a detector of others loads and knows the animal: the loop trains for hours before it."""
    from pipelines.detect import check_model

    try:
        check_model(cfg.category, str(cfg.detector_model), cfg.detect, cfg.detector)
    except InputError as error:
        name = "detector_model" if error.argument == "model" else error.argument
        raise InputError(name, error.value, error.fix) from None


def check_pose(path: str, train: Any) -> None:
    """Raise InputError unless a given 2D network can do all that one trained here does."""
    from pipelines.model_files import open_model
    from tables import QUADRUPED
    from trainers.start import check_trunk

    net = open_model(path, "pose", "pose_model")
    known = net.config["keypoints"]
    if known != len(QUADRUPED):
        raise InputError("pose_model", path, f"knows {known} joints, not {len(QUADRUPED)}")
    if "image_size" not in (getattr(net, "notes", None) or {}).get("job", {}).get("settings", {}):
        raise InputError("pose_model", path, "does not say its image size: give one that `wildshape pose` trained")
    check_trunk(net, train)


def check_template(path: str) -> None:
    """Raise InputError unless `path` is a readable template file."""
    from models.template import Template

    Template.load(path)


def selftrain(cfg: Any) -> list[dict[str, Any]]:
    """Run the loop (see `conf/selftrain.yaml`) and return the rows of `metrics.json`.

    Every stage is bound to a fingerprint of its settings and its input: what is done already is skipped, what is half
    done goes on, so the loop may be killed anywhere and called again.
    """
    from contextlib import ExitStack

    from omegaconf import OmegaConf

    from models.template import Template
    from pipelines.model_files import whole_path
    from pipelines.rounds import Loop
    from trainers.cluster import check_room, check_training, connect
    from trainers.group import TrainGroup

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    for name in ("detector_model", "pose_model"):
        if plain[name]:
            plain[name] = whole_path(plain[name])
    lake = Lake(cfg.lake)
    template = cfg.template
    with ExitStack() as stack:
        if template is None:
            from pipelines.embedded import open_sandbox

            world = stack.enter_context(open_sandbox(plain["sandbox"], lake))
            template = world.template
            plain["source"].update(world.source)
            plain["fetch"].update(world.fetch)
        template = Template.load(template).keep(lake.files)
        stack.enter_context(connect(cfg.resources))
        check_room(cfg.resources)
        check_training(cfg.resources, stages=True)
        group = stack.enter_context(TrainGroup(cfg.resources.train, lake))
        if cfg.template is None:
            world.ingest(cfg.lake, cfg.category, int(cfg.detect.crop_px), cfg.resources)
        loop = Loop(plain, cfg.resources, lake, template, group, world.truth if cfg.template is None else None)
        return loop.run()


if __name__ == "__main__":
    main()
