"""A sweep: trials in Ray Tune actors, each a 3D training on its own selection of one run's pseudo-labels.

A network is named by what it is made from, so a trial that was done before a kill is found, not trained, and one that
was cut off goes on from its checkpoint: the same sweep again is how a sweep is resumed.
"""

from __future__ import annotations

import logging
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from ray import tune
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tables import InputError, Lake, fingerprint
from trainers.cluster import check_room, connect
from trainers.sweep_picture import parallel
from trainers.tracking import Tracker, open_tracker
from trainers.tune import FIXED, SPACE

METRIC = "val_auc_06_10"
RUNGS = (9, 3, 1)  # asha: a ninth of the steps, a third, all


def sweep(cfg: Any, lake: Lake, run: Mapping[str, Any], points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Try the points of `conf/tune.yaml`; write `trials.json`, `parallel.png` and `best.yaml` and track the trials.

    Args:
        run: `run.json` of the run whose first pseudo-labels are selected from.
        points: every combination of `trainers.tune.SPACE`.

    Returns:
        a row for each trial of this and of former sweeps of the run, best first: the point, `steps`, `val_auc_06_10`,
        `model`, `model_id`, and `of`, which stands for the training that all of them repeat.

    Raises:
        RuntimeError: a trial failed; the others are done.
    """
    from omegaconf import OmegaConf

    first = next(r for r in run["rounds"] if "selections" in r)
    model = first["model"].rsplit("/", 2)[-2]
    job = moved(lake.files.read_json(f"models/acsm/{model}/model.json")["job"], lake)
    fixed = {
        "job": job, "round": first["round"], "threads": int(cfg.resources.threads), "gpu": bool(cfg.resources.gpus),
        "names": {t: first[t].rsplit("/", 1)[1] for t in ("instances", "pseudo_labels")},
        "rules": {k: cfg[k] for k in FIXED},
        "rungs": RUNGS if cfg.search == "asha" else (1,),
    }  # fmt: skip
    some = np.random.default_rng(cfg.seed).permutation(len(points))[: cfg.trials].tolist()
    tried = list(points) if cfg.search == "grid" else [points[i] for i in some]
    mlflow: Any = OmegaConf.to_container(cfg.mlflow, resolve=True)
    tracker = open_tracker(mlflow, lake, cfg.run)
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    total = cfg.trials if cfg.search == "optuna" else len(tried)
    with connect(cfg.resources), Watcher(tracker, total) as watcher:
        check_room(cfg.resources)
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        trial = tune.with_parameters(_trial, fixed=fixed)
        results = tune.Tuner(
            tune.with_resources(trial, {"cpu": cfg.resources.cpus, "gpu": cfg.resources.gpus}),
            param_space=None if cfg.search == "optuna" else {"point": tune.grid_search(tried)},
            tune_config=tune.TuneConfig(
                **_search(cfg, points, int(job["settings"]["plan"]["steps"])),
                max_concurrent_trials=int(cfg.resources.actors),
            ),
            run_config=tune.RunConfig(
                name=f"tune-{uuid.uuid4().hex[:8]}",
                storage_path=lake.files.full("ray_tune"),
                storage_filesystem=lake.files.fs,
                verbose=0,
                callbacks=[watcher],
            ),
        ).fit()
        failed = [str(e) for e in results.errors]
        if failed:
            raise RuntimeError(f"{len(failed)} of {total} trials failed; first: {failed[0]}")
        trained = {k: job[k] for k in ("settings", "seed")}
        of = fingerprint({"job": trained, "from": fixed["names"], "rules": fixed["rules"]})
        rows = [{**row_of(results[i].metrics or {}), "of": of} for i in range(len(results))]
        rows = among(rows, lake.files.read_json(f"runs/{cfg.run}/tuned/trials.json") or [])
        _write(lake, cfg, rows, tracker)
    return rows


def moved(job: Mapping[str, Any], lake: Lake) -> dict[str, Any]:
    """A job of this lake as if the lake had always been where it is now.

    Raises:
        InputError: its template lay elsewhere, and is gone.
    """
    before, now = f"{job['lake']}/", {**job, "lake": lake.uri}
    for key in ("template", "start_from"):
        if (now.get(key) or "").startswith(before):
            now[key] = f"{lake.uri}/{now[key].removeprefix(before)}"
    if "://" not in now["template"] and not os.path.exists(now["template"]):
        raise InputError("template", now["template"], "the run was made with it, and it is gone: bring it back")
    return now


def among(rows: Sequence[dict[str, Any]], former: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows and those of former sweeps of the same training, best first; of one point, that with the most steps."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in [r for r in former if r.get("of") == rows[0]["of"]] + list(rows):
        point = tuple(row[key] for key in SPACE)
        if point not in kept or row["steps"] >= kept[point]["steps"]:
            kept[point] = row
    # What was stopped early comes behind what was not.
    return sorted(kept.values(), key=lambda r: (-r["steps"], -r[METRIC]))


def row_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a trial's last report."""
    return {**metrics["point"], **{k: metrics[k] for k in ("steps", METRIC, "model", "model_id")}}


def _search(cfg: Any, points: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """Arguments of `TuneConfig` by the kind of search."""
    goal: dict[str, Any] = {"metric": METRIC, "mode": "max"}
    if cfg.search == "asha":
        from ray.tune.schedulers import ASHAScheduler

        least = rung(steps, RUNGS[0])
        return {**goal, "scheduler": ASHAScheduler(time_attr="steps", max_t=steps, grace_period=least)}
    if cfg.search == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        space = {k: optuna.distributions.CategoricalDistribution(list(cfg[k])) for k in points[0]}
        return {**goal, "search_alg": OptunaSearch(space, seed=int(cfg.seed), **goal), "num_samples": int(cfg.trials)}
    return goal


def rung(steps: int, part: int) -> int:
    """Steps of a rung, a `part`-th of all."""
    return math.ceil(steps / part)


def _trial(config: dict[str, Any], fixed: dict[str, Any]) -> None:
    """What an actor does: select, train, report; of asha once for each rung."""
    from selection import policy_of, select_round
    from trainers.jobs import run_job, set_threads

    set_threads(fixed["threads"])
    job, point = fixed["job"], config.get("point", config)
    lake = Lake(job["lake"])
    made = {t: lake.find(t, job["category"], name) for t, name in fixed["names"].items()}
    made["selections"] = select_round(
        lake, made["pseudo_labels"], made["instances"], point["criterion"], point["top_n"], fixed["round"],
        **policy_of({**fixed["rules"], **point}),
    )  # fmt: skip
    lineage = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in made.items()}
    for part in fixed["rungs"]:
        settings = {**job["settings"], "label_share": point["label_share"]}
        settings["plan"] = {**settings["plan"], "steps": rung(settings["plan"]["steps"], part)}
        device = "cuda" if fixed["gpu"] else "cpu"
        done = run_job({**job, "settings": settings, "pseudo": lineage}, device=device)
        tune.report({
            METRIC: done["metrics"]["val"]["auc_06_10"], "steps": settings["plan"]["steps"], "point": dict(point),
            "model": done["model"], "model_id": done["model_id"], "selection": made["selections"].path,
        })  # fmt: skip


class Watcher(tune.Callback):
    """Makes each trial, when it ends, a run in MLflow below `tune`, and moves a bar; a context manager.

    Args:
        total: trials there will be.
    """

    def __init__(self, tracker: Tracker, total: int) -> None:
        columns = (
            TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("best {task.fields[best]:.2f}"),
        )  # fmt: skip
        self.tracker, self.parent = tracker, tracker.open("tune", "tune", tracker.root)
        self.bar, self.best = Progress(*columns, console=Console(stderr=True)), 0.0
        self.task = self.bar.add_task("trials", total=total, best=0.0)
        tracker.client.update_run(self.parent, status="RUNNING")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks down, to go on from; we go on from the lake

    def __enter__(self) -> Watcher:
        self.bar.start()
        return self

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        track(self.tracker, self.parent, trial.last_result)
        self.best = max(self.best, trial.last_result[METRIC])
        self.bar.update(self.task, advance=1, best=self.best)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        point = trial.config.get("point", trial.config)
        name, client = _name(point), self.tracker.client
        tags = {"mlflow.parentRunId": self.parent, "error": str(trial.get_error())[-500:]}
        run = client.create_run(self.tracker.experiment, run_name=name, tags=tags).info.run_id
        for key in SPACE:
            client.log_param(run, key, point[key])
        client.set_terminated(run, status="FAILED")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.bar.stop()
        self.tracker.client.set_terminated(self.parent, status="FAILED" if error else "FINISHED")


def _name(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={point[key]}" for key in SPACE)


def track(tracker: Tracker, parent: str, metrics: Mapping[str, Any]) -> None:
    """Write a trial below `parent`; once only."""
    row = row_of(metrics)
    name = _name(metrics["point"])
    # Two points may select the same joints, and then share a network; a point may come with more steps later.
    run, client = tracker.open(f"tune/{row['model_id']} {name}", name, parent), tracker.client
    if client.get_run(run).info.status == "FINISHED":
        return
    for key, value in {**metrics["point"], "steps": row["steps"]}.items():
        client.log_param(run, key, value)
    for key in ("model", "model_id", "selection"):
        client.set_tag(run, key, metrics[key])
    client.log_metric(run, METRIC, row[METRIC])
    client.set_terminated(run)


def _write(lake: Lake, cfg: Any, rows: list[dict[str, Any]], tracker: Tracker) -> None:
    best, folder = rows[0], f"runs/{cfg.run}/tuned"
    chosen = {k: best[k] for k in SPACE if k != "label_share"} | {"per_user": cfg.per_user}
    chosen |= {"train": {"acsm": {"label_share": best["label_share"]}}}
    head = f"# @package _global_\n# The best of {len(rows)} trials of run {cfg.run}: {METRIC} {best[METRIC]:.2f}.\n"
    command = f"python -m pipelines.selftrain --config-dir {lake.uri}/runs/{cfg.run} +tuned=best"
    text = f"{head}# {command}\n{yaml.safe_dump(chosen, sort_keys=False)}"
    lake.files.write(f"{folder}/best.yaml", text.encode())
    lake.files.write_json(f"{folder}/trials.json", rows)
    picture = parallel(rows, METRIC)
    lake.files.write(f"{folder}/parallel.png", picture)
    parent = tracker.ids["tune"]
    tracker.client.log_text(parent, text, "best.yaml")
    if lake.files.is_local:
        tracker.client.log_artifact(parent, f"{lake.uri}/{folder}/parallel.png")
    table = Table(title="validation auc_06_10 by selection", title_justify="left")
    for name in (*SPACE, "steps", METRIC):
        table.add_column(name, justify="left" if name == "criterion" else "right")
    for r in rows:
        values = ("-" if r[k] is None else str(r[k]) for k in (*SPACE, "steps"))
        table.add_row(*values, f"{r[METRIC]:.2f}")
    Console().print(table)
    Console().print(f"the best: {command}", soft_wrap=True)
