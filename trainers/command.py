"""What the commands `pose`, `acsm` and `detector` share: one job on a worker group of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def train_command(cfg: Any, name: str, **extra: Any) -> dict[str, Any]:
    """Train one network with Ray Train and print what it is worth.

    Args:
        name: section of `cfg.train`.
        extra: more keys of the job (see `trainers.jobs.run_job`).
    """
    from omegaconf import OmegaConf
    from rich.console import Console

    from tables import Lake
    from trainers import meters
    from trainers.cluster import check_batches, check_training, connect
    from trainers.group import TrainGroup, training_bar
    from trainers.settings import check_settings
    from trainers.start import start_keys
    from trainers.tracking import open_tracker, scalars

    lake = Lake(cfg.lake)
    lake.datasets("labels", cfg.category)
    settings: Any = OmegaConf.to_container(cfg.train[name], resolve=True)
    check_settings(name, settings)
    starts = start_keys(cfg.train, name)
    settings.pop("start")
    check_batches(cfg.resources, cfg.train, [name])
    kind = "pose" if name == "aux" else name
    job: dict[str, Any] = {"kind": kind, "name": name, "lake": lake.uri, "category": cfg.category, "settings": settings}
    job |= {"seed": int(cfg.seed), **starts, **extra}
    mlflow: Any = OmegaConf.to_container(cfg.mlflow, resolve=True)
    tracker = open_tracker(mlflow, lake, cfg.category, goes_on=False)
    title = f"train {name}"
    with tracker:
        with connect(cfg.resources):
            check_training(cfg.resources, stages=False)
            with (
                TrainGroup(cfg.resources.train, lake) as group,
                training_bar(title, int(settings["plan"]["steps"])) as show,
            ):
                done = group.run(job, show, tracker.watch(None, title), meters.training(name))
        Console().print(summary(done), soft_wrap=True)
        params = {"model": done["model"], "model_id": done["model_id"], "items": done["items"]}
        tracker.stage(None, title, params, scalars(done["metrics"]))
        tracker.close({})
    return done


def summary(done: Mapping[str, Any]) -> str:
    """A finished job in a few lines."""
    lines = [done["model"]]
    for split, m in done["metrics"].items():
        values = (f"{k} {v:.2f}" for k, v in m.items() if isinstance(v, float))
        lines.append(f"{split} ({m['instances']} instances): {', '.join(values)}")
    return "\n".join(lines)
