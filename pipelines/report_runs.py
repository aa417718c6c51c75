"""The runs of a lake side by side: runs of one recipe that differ in their seed are one line with its spread."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from pipelines import report_page as page
from pipelines.report_figures import COOL, INK, SOFT, WARM, as_svg, blank
from pipelines.run_record import RunRecord, open_run
from tables import Lake

# Sections and keys that say where a run was made and how fast, and nothing about what it is.
ELSEWHERE = {"run", "seed", "lake", "resources", "mlflow", "log", "fetch", "source.mirror"}
DRAWN = 5  # recipes in the chart beside this run's, the best on validation first
NAMED = 3  # settings by which a recipe is told, of those it differs in, and runs in the chart
STYLES = ((WARM, "-"), (SOFT, "-"), (WARM, (0, (4, 2))), (SOFT, (0, (4, 2))), (INK, (0, (1.5, 1.5))))


@dataclass(frozen=True)
class Recipe:
    """Runs that differ in their seed alone, one for each seed.

    Attributes:
        label: how its configuration differs from this run's, as settings; empty for this run's own.
    """

    label: str
    runs: tuple[RunRecord, ...]

    def aucs(self, split: str) -> dict[int, np.ndarray]:
        """Round -> `auc_06_10` [runs that have it]."""
        numbers = sorted({n for r in self.runs for n in r.numbers})
        rows = {n: [m["auc_06_10"] for r in self.runs if (m := r.metric(n, split))] for n in numbers}
        return {n: np.array(v, np.float64) for n, v in rows.items() if v and np.isfinite(v).all()}

    def chosen(self, split: str) -> np.ndarray:
        """`auc_06_10` of each run's best round on validation [runs that have it]."""
        return np.array([m["auc_06_10"] for r in self.runs if (m := r.metric(r.best, split))], np.float64)


def recipes(record: RunRecord) -> list[Recipe]:
    """This run's recipe, then the others of its category in its lake, best on validation first."""
    lake: Lake = record.lake
    names = [n for n in lake.files.names("runs") if n != record.name and lake.files.names(f"runs/{n}")]
    others = [r for r in (open_run(lake, n, record.category) for n in names) if r.metrics and _readable(r)]
    found: list[list[RunRecord]] = []
    for run in (record, *(r for r in others if r.category == record.category)):
        same = next((runs for runs in found if not differences(runs[0], run)), None)
        if same is None:
            found.append([run])
        elif all(run.config.get("seed") != r.config.get("seed") for r in same):
            same.append(run)
    own, *rest = (Recipe(_told(differences(record, runs[0])), tuple(runs)) for runs in found)
    return [own, *sorted(rest, key=_on_validation, reverse=True)]


def _readable(run: RunRecord) -> bool:
    """Whether another run's metrics are what we write: one that is damaged or of another version is left out."""
    return all({"round", "split"} <= m.keys() and m.get("auc_06_10") is not None for m in run.metrics)


def _on_validation(recipe: Recipe) -> float:
    aucs = recipe.chosen("val")
    aucs = aucs[np.isfinite(aucs)]
    return float(aucs.mean()) if len(aucs) else 0.0


def runs_html(record: RunRecord, split: str | None) -> str:
    """The chart and the table on a split, or a sentence where there is nothing to compare with."""
    if split is None:
        return page.note("Nothing was evaluated yet.")
    found = [r for r in recipes(record) if r.aucs(split)]
    if sum(len(r.runs) for r in found) < 2:
        return (
            f'<p class="note">The lake holds no other run of {escape(record.category)}. Another seed or another recipe '
            "will stand here beside this one: <code>wildshape selftrain run=second seed=1</code>, then "
            f"<code>wildshape report run={escape(record.name)}</code> again.</p>"
        )
    return _chart(found, split) + _table(found, split)


def differences(run: RunRecord, other: RunRecord) -> dict[str, Any]:
    """The settings of `other` that are not `run`'s; a key that one of them did not know yet is no difference."""
    mine, theirs = (_flat({k: v for k, v in r.config.items() if k not in ELSEWHERE}) for r in (run, other))
    return {k: v for k, v in theirs.items() if k in mine and mine[k] != v and k not in ELSEWHERE}


def _flat(section: dict[str, Any], before: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in section.items():
        out |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return out


def _told(settings: dict[str, Any]) -> str:
    """Settings as on a command line, those of the loop before those of its sections."""
    keys = sorted(settings, key=lambda k: (k.count("."), k))
    named = [f"{k}={v if isinstance(v := settings[k], str) else json.dumps(v, default=str)}" for k in keys[:NAMED]]
    return " ".join(named) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")


def _chart(found: list[Recipe], split: str) -> str:
    """AUC by round: a line through the means of each recipe, and where there are seeds the band they lie in."""
    figure, axes = blank(420, 300)
    own, *others = found
    for recipe, (color, dashes) in [*zip(others[:DRAWN], STYLES, strict=False), (own, (COOL, "-"))]:
        aucs = recipe.aucs(split)
        x, mine = list(aucs), recipe is own
        if any(len(v) > 1 for v in aucs.values()):
            low, high = ([f(v) for v in aucs.values()] for f in (np.min, np.max))
            axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(
            x, [v.mean() for v in aucs.values()], color=color, linestyle=dashes, linewidth=2.8 if mine else 1.6,
            marker="o", markersize=5 if mine else 3.5, label=_label(recipe),
        )  # fmt: skip
    axes.set_xticks(sorted({n for r in found for n in r.aucs(split)}))
    axes.margins(y=0.12)
    axes.set_xlabel("round")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside upper left", ncols=2, frameon=False, fontsize=11, labelcolor=INK
    )
    return f'<div class="wide">{page.chart("AUC by round", _about(split), as_svg(figure, "AUC of the runs"))}</div>'


def _about(split: str) -> str:
    return f"{'validation' if split == 'val' else split} split; a band spans the seeds of a recipe"


def _label(recipe: Recipe) -> str:
    names = [r.name for r in recipe.runs[:NAMED]]
    return ", ".join(names) + (f" and {n} more" if (n := len(recipe.runs) - NAMED) > 0 else "")


def _table(found: list[Recipe], split: str) -> str:
    numbers = sorted({n for r in found for n in r.aucs(split)})
    shown = numbers if len(numbers) <= 4 else [*numbers[:2], *numbers[-2:]]
    short = "val" if split == "val" else split
    head = ["recipe", "runs (seed)", *(f"AUC {short}<br>round {n}" for n in shown), f"AUC {short}<br>chosen round"]
    rows = []
    for recipe in found:
        aucs = recipe.aucs(split)
        runs = ", ".join(f"{escape(r.name)}&nbsp;({escape(str(r.config.get('seed', '?')))})" for r in recipe.runs)
        cells = [f"<code>{escape(recipe.label)}</code>" if recipe.label else "this recipe", runs]
        cells += [_mean(aucs[n]) if n in aucs else "&ndash;" for n in shown]
        rows.append(([*cells, _mean(recipe.chosen(split))], not recipe.label))
    return page.table(head, rows, left=(0, 1))


def _mean(values: np.ndarray) -> str:
    if not len(values) or not math.isfinite(values.mean()):
        return "&ndash;"
    spread = f" <small>&plusmn; {values.std(ddof=1):.2f}</small>" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"
