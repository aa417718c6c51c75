"""Sweep the selection with Ray Tune: which criterion, and how many pseudo-labels, by AUC on validation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tables import InputError, Lake
from trainers.app import command


@command("tune")
def main(cfg: Any) -> None:
    from selection import check

    for key in ("criterion", "top_n"):
        if not isinstance(cfg[key], Sequence) or isinstance(cfg[key], str) or not cfg[key]:
            raise InputError(key, cfg[key], f"give a list, say '{key}=[...]'")
    if "oracle" in cfg.criterion:
        raise InputError("criterion", "oracle", "needs the truth, which training may not see: diagnostics only")
    for criterion in cfg.criterion:
        for top_n in cfg.top_n:
            check(criterion, top_n)
    lake = Lake(cfg.lake)
    run = lake.files.read_json(f"runs/{cfg.run}/run.json")
    if run is None:
        known = ", ".join(lake.files.names("runs")) or "none"
        raise InputError("run", cfg.run, f"no finished run of that name in {lake.uri} (there: {known})")
    if len(run["rounds"]) < 2:
        raise InputError("run", cfg.run, "has no round after round 0, so no pseudo-labels to select from")
    tune_selection(cfg, lake, run)


def tune_selection(cfg: Any, lake: Lake, run: Mapping[str, Any]) -> dict[str, Any]:
    """Train one 3D net per criterion and size on a run's first pseudo-labels; write the best as YAML.

    Trials share the pseudo-labels and begin from the same weights. A trial's model is named by what it is made from,
    so a sweep that was killed does only what is missing.

    Returns:
        the best setting: `criterion`, `top_n`, `val_auc_06_10`.
    """
    import yaml
    from omegaconf import OmegaConf
    from ray import tune
    from rich.console import Console
    from rich.table import Table

    from trainers.cluster import connect
    from trainers.tracking import open_tracker

    first = run["rounds"][1]
    names = {t: first[t].rsplit("/", 1)[1] for t in ("instances", "pseudo_labels")}
    job = dict(
        lake.files.read_json(first["model"].removeprefix(lake.uri + "/").rsplit("/", 1)[0] + "/model.json")["job"]
    )
    fixed = {"job": job, "names": names, "round": first["round"], "threads": int(cfg.resources.threads)}
    space = {"criterion": tune.grid_search(list(cfg.criterion)), "top_n": tune.grid_search(list(cfg.top_n))}
    with connect(cfg.resources):
        trial = tune.with_resources(
            tune.with_parameters(_trial, fixed=fixed), {"cpu": cfg.resources.cpus, "gpu": cfg.resources.gpus}
        )
        results = tune.Tuner(
            trial,
            param_space=space,
            tune_config=tune.TuneConfig(metric="val_auc_06_10", mode="max"),
            run_config=tune.RunConfig(name=f"tune-{cfg.run}", storage_path=f"{lake.uri}/ray_tune", verbose=0),
        ).fit()
    found: list[Any] = [results[i] for i in range(len(results))]
    rows = [{**r.config, **{k: r.metrics[k] for k in ("val_auc_06_10", "model")}} for r in found if not r.error]
    if len(rows) < len(found):
        raise RuntimeError(f"{len(found) - len(rows)} of {len(found)} trials failed: {results.errors[0]}")
    rows.sort(key=lambda r: -r["val_auc_06_10"])
    best = {k: rows[0][k] for k in ("criterion", "top_n")}
    lake.files.write(f"runs/{cfg.run}/tune.yaml", yaml.safe_dump(best).encode())
    lake.files.write_json(f"runs/{cfg.run}/tune.json", rows)
    mlflow: Any = OmegaConf.to_container(cfg.mlflow, resolve=True)
    tracker = open_tracker(mlflow, lake, cfg.run)
    table = Table(title="validation auc_06_10 by selection", title_justify="left")
    for name in ("criterion", "top_n", "val_auc_06_10"):
        table.add_column(name, justify="left" if name == "criterion" else "right")
    for r in rows:
        tracker.stage(None, f"tune {r['criterion']} {r['top_n']}", r, {"val_auc_06_10": r["val_auc_06_10"]})
        table.add_row(r["criterion"], str(r["top_n"]), f"{r['val_auc_06_10']:.2f}")
    Console().print(table)
    return rows[0]


def _trial(config: dict[str, Any], fixed: dict[str, Any]) -> None:
    from ray import tune

    from selection import CRITERIA, select_round
    from trainers.jobs import run_job, set_threads

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    set_threads(fixed["threads"])
    job = fixed["job"]
    lake = Lake(job["lake"])
    category = job["category"]
    made = {t: lake.find(t, category, name) for t, name in fixed["names"].items()}
    params = {"seed": job["seed"]} if "seed" in CRITERIA[config["criterion"]].params else {}
    made["selections"] = select_round(
        lake, made["pseudo_labels"], made["instances"], config["criterion"], config["top_n"], fixed["round"], **params
    )
    lineage = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in made.items()}
    done = run_job({**job, "pseudo": lineage})
    tune.report({"val_auc_06_10": done["metrics"]["val"]["auc_06_10"], "model": done["model"]})


if __name__ == "__main__":
    main()
