"""What is in a lake and what is left to do, from its manifests alone: needs no Ray and changes nothing."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.fs as pafs

from pipelines.run_record import RunRecord, open_run
from tables import TABLES, Dataset, Files, InputError, Lake
from trainers.app import Exit, command

# What else may lie at the top of a lake beside its tables.
BESIDE = (
    "logs", "mlartifacts", "mlflow.db", "models", "multirun", "ray_train", "ray_tune", "runs", "sandbox", "templates",
)  # fmt: skip
INPUT = {"instances": "photos", "pseudo_labels": "instances", "selections": "pseudo_labels"}  # what each is made from


@command("status")
def main(cfg: Any) -> None:
    if not isinstance(cfg.json, bool):
        raise InputError("json", cfg.json, "use true or false")
    found = survey(Lake(cfg.lake), cfg.category)
    if cfg.json:
        sys.stdout.write(json.dumps(found, indent=1, allow_nan=False) + "\n")
    else:
        show(found, cfg.category)
    if found["damaged"]:
        sys.exit(Exit.LOST)


def look(lake: Lake) -> list[str]:
    """Names at the top of the lake; none of an empty one.

    Raises:
        InputError: it is not there, cannot be read, or holds other things and nothing of ours.
    """
    try:
        if not lake.files.exists(""):
            raise InputError("lake", lake.uri, "is not there yet: any command that writes to it makes it")
        names = lake.files.names("")
    except OSError as error:
        raise InputError("lake", lake.uri, f"cannot be read ({str(error).splitlines()[0]})") from None
    names = [n for n in names if not n.startswith(".")]
    if names and not {*TABLES, *BESIDE} & set(names):
        raise InputError("lake", lake.uri, f"is no lake: it holds {', '.join(names[:3])}, and no table of ours")
    return names


def survey(lake: Lake, category: str | None = None) -> dict[str, Any]:
    """Everything that `status` says, as plain JSON.

    Args:
        category: None is all.

    Returns:
        `lake`; `datasets`: `table, category, dataset, slot, parts, rows, state` (finished; behind: finished for a
        former state of its input; open), `to_do` (what is left, in words, or null) and `finished_at`; `models`: kind ->
        `trained, half_trained`; `runs`: `run, category, ended, rounds_done, rounds_asked, best, stopped, auc` (split ->
        round -> auc_06_10); `damaged`: a line for each thing that cannot be read.

    Raises:
        InputError: as `look`.
    """
    names, damaged = look(lake), list[str]()
    datasets = [_dataset(lake, d, damaged) for table in TABLES if table in names for d in _all(lake, table, category)]
    runs = [_run(lake, name, damaged) for name in (lake.files.names("runs") if "runs" in names else ())]
    return {
        "lake": lake.uri, "datasets": [d for d in datasets if d], "models": _models(lake.files),
        "runs": [r for r in runs if r and category in (None, r["category"])], "damaged": damaged,
    }  # fmt: skip


def _all(lake: Lake, table: str, category: str | None) -> list[tuple[str, str, str]]:
    """Table, category and name of the datasets that have a folder."""
    found = []
    for folder in lake.files.names(table):
        at = folder.removeprefix("category=")
        if at != folder and category in (None, at):
            found += [(table, at, name) for name in lake.files.names(f"{table}/{folder}")]
    return found


def _dataset(lake: Lake, which: tuple[str, str, str], damaged: list[str]) -> dict[str, Any] | None:
    table, category, name = which
    path = f"{table}/category={category}/{name}"
    try:
        described = lake.files.read_json(f"{path}/_dataset.json") or {"identity": {}, "slot": ""}
        ds = Dataset(lake.files, table, category, described["identity"], described["slot"])
        vars(ds)["fingerprint"] = name  # that of the folder, also where nothing is described yet
        manifests, done = ds.manifests(), ds.finished()
        there = set(lake.files.names(path))
        gone = [m["file"] for m in manifests.values() if m["file"] not in there]
        damaged += [f"{path}/{file}: a manifest names it, and it is gone" for file in gone]
        state, to_do = _left(lake, ds, manifests, done)
        finished_at = done["finished_at"] if done else None
    except (ValueError, KeyError, TypeError, OSError) as error:
        damaged.append(f"{path}: {_said(error)}")
        return None
    return {
        "table": table, "category": category, "dataset": name, "slot": ds.slot, "parts": len(manifests),
        "rows": sum(m["rows"] for m in manifests.values()), "state": state, "to_do": to_do, "finished_at": finished_at,
    }  # fmt: skip


def _left(
    lake: Lake, ds: Dataset, manifests: Mapping[str, Any], done: Mapping[str, Any] | None
) -> tuple[str, str | None]:
    """State of a dataset, and what is left to do."""
    if ds.table == "photos" and (wanted := _wanted(ds)) is not None and not done:
        had = sum(m["rows"] for m in manifests.values() if not m.get("pass"))
        return "open", f"{max(wanted - had, 0)} of {wanted} URLs"
    source = ds.identity.get(INPUT.get(ds.table, ""))
    if ds.table == "selections" or not isinstance(source, str):
        return ("finished", None) if done else ("open", None)
    before = Dataset(lake.files, INPUT[ds.table], ds.category, {})
    vars(before)["fingerprint"] = source
    parts = set(before.parts())
    if not parts:  # its input is gone, or labels are
        return ("finished", None) if done else ("open", f"its {before.table} {source} are gone")
    missing = len(parts - manifests.keys())
    try:
        if done and done["input_state"] == before.state():
            return "finished", None
    except ValueError:  # told of that dataset
        return ("behind" if done else "open"), f"its {before.table} {source} are damaged"
    rest = f"{missing} of {len(parts)} parts" if missing else "its end alone"
    return ("behind" if done else "open"), rest


def _wanted(ds: Dataset) -> int | None:
    """URLs of the newest plan of a crawl; None: it has none."""
    plans = [f"{ds.path}/_plan/{name}/plan.json" for name in ds.files.names(f"{ds.path}/_plan")]
    infos = ds.files.fs.get_file_info([ds.files.full(p) for p in plans])
    known = [(i.mtime_ns or 0, p) for i, p in zip(infos, plans, strict=True) if i.type == pafs.FileType.File]
    return int(ds.files.read_json(max(known)[1])["counts"]["wanted"]) if known else None


def _models(files: Files) -> dict[str, dict[str, int]]:
    """Trained networks by kind, and those whose training broke off."""
    infos = files.fs.get_file_info(pafs.FileSelector(files.full("models"), allow_not_found=True, recursive=True))
    seen = Counter((i.path.split("/")[-3], i.base_name) for i in infos if i.type == pafs.FileType.File)
    kinds = sorted({kind for kind, name in seen if name in ("model.json", "checkpoint.pt")})
    return {k: {"trained": seen[k, "model.json"], "half_trained": seen[k, "checkpoint.pt"]} for k in kinds}


def _run(lake: Lake, name: str, damaged: list[str]) -> dict[str, Any] | None:
    """A run; None for a folder that is none."""
    folder = f"runs/{name}"
    there = set(lake.files.names(folder))
    if not there & {"config.yaml", "metrics.json", "rounds.json", "run.json"}:
        return None
    for file in sorted(there & {"metrics.json", "rounds.json", "run.json"}):
        try:
            lake.files.read_json(f"{folder}/{file}")
        except ValueError as error:
            damaged.append(f"{folder}/{file}: {_said(error)}")
            return None
    try:
        return _rounds(open_run(lake, name))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        damaged.append(f"{folder}: {_said(error)}")
        return None


def _rounds(run: RunRecord) -> dict[str, Any]:
    auc: dict[str, dict[str, float]] = {}
    for row in run.metrics:
        if math.isfinite(row["auc_06_10"]):
            auc.setdefault(row["split"], {})[str(row["round"])] = row["auc_06_10"]
    return {
        "run": run.name, "category": run.category, "ended": bool(run.summary), "rounds_done": len(run.numbers),
        "rounds_asked": int(run.config.get("rounds", 0)) + 1, "best": run.best,
        "stopped": run.summary.get("stopped"), "auc": auc,
    }  # fmt: skip


def _said(error: Exception) -> str:
    return f"cannot be read ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"


def show(found: Mapping[str, Any], category: str | None = None) -> None:
    """The survey, of one category or all, as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # a file has no edge to wrap at
    if not found["datasets"] and not found["runs"] and not found["damaged"]:
        said = "is empty" if category is None else f"holds nothing of category={category}"
        console.print(f"lake {found['lake']} {said}", soft_wrap=True, markup=False)
        return
    table = Table(title=f"datasets in {found['lake']}", title_justify="left")
    for name in ("table", "category", "dataset", "slot", "parts", "rows", "state", "left to do"):
        table.add_column(name, justify="right" if name in ("parts", "rows") else "left", no_wrap=True)
    for d in found["datasets"]:
        cells = (d["table"], d["category"], d["dataset"], d["slot"], d["parts"], d["rows"], d["state"], d["to_do"])
        table.add_row(*("" if c is None else str(c) for c in cells))
    console.print(table)
    for kind, n in found["models"].items():
        half = f", {n['half_trained']} half trained" if n["half_trained"] else ""
        console.print(f"{kind}: {n['trained']} trained{half}")
    runs = Table(title="runs: auc_06_10 by round (* best on validation)", title_justify="left")
    for name in ("run", "category", "rounds", "val", "test", "state"):
        runs.add_column(name)
    for r in found["runs"]:
        state = r["stopped"] or ("ended" if r["ended"] else "not ended: runs, or was killed")
        scores = [_scores(r["auc"].get(split, {}), r["best"]) for split in ("val", "test")]
        runs.add_row(r["run"], r["category"], f"{r['rounds_done']} of {r['rounds_asked']}", *scores, state)
    if found["runs"]:
        console.print(runs)
    for line in found["damaged"]:
        console.print(f"damaged: {line}", soft_wrap=True, markup=False)


def _scores(by_round: Mapping[str, float], best: int | None) -> str:
    return "  ".join(f"{v:.2f}{'*' if number == str(best) else ''}" for number, v in by_round.items()) or "-"


if __name__ == "__main__":
    main()
