"""What each round kept and rejected: the rounds side by side, and each with its scores and what they are worth."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report_diagnostics import COMPARED, compared_cells, diagnostics_html
from pipelines.report_figures import histogram
from pipelines.report_page import note, table
from pipelines.run_record import RunRecord
from selection import jaccard

OPEN = 3  # rounds that are unfolded, the last ones
UNITS = {"cf_mt": " px", "cf_cm": " px", "cf_cm2": " px"}
_SHARE = "as a share of the box&rsquo;s longer side; lower is better"
MEANS = {
    "kp_conf": "sum of the 16 joints&rsquo; confidences in the 2D net; higher is better",
    "cf_mt": "how far the 2D joints move under zoom and rotation, mean pixels on a 256-pixel crop; lower is better",
    "cf_cm": "distance between the joints of the two 2D nets, mean pixels on a 256-pixel crop; lower is better",
    "cf_cm2": "distance between the 2D joints and the 3D net&rsquo;s reprojected ones, mean pixels on a 256-pixel "
    "crop; lower is better",
    "pck_mt": f"how far the 2D joints move under zoom and rotation, {_SHARE}",
    "pck_cm": f"distance between the joints of the two 2D nets, {_SHARE}",
    "pck_cm2": f"distance between the 2D joints and the 3D net&rsquo;s reprojected ones, {_SHARE}",
    "visible_cm2": "distance to the 3D net&rsquo;s reprojected joints, weighted by confidence, with a fixed doubt for "
    f"what is not seen, {_SHARE}",
    "small_loss": f"distance to the 3D net&rsquo;s reprojected joints over the three quarters that fit best, {_SHARE}",
    "agreement": "the larger of two distances of each joint, to the 3D net&rsquo;s reprojection and under zoom and "
    f"rotation, {_SHARE}",
    "heatmap_cm2": "mean height of the 2D heatmaps at the 3D net&rsquo;s reprojected joints; higher is better",
    "calibrated_conf": "share of the joints that is expected to be right; higher is better",
    "rank_fusion": "mean rank by kp_conf, cf_mt and cf_cm2, from 0 to 1; lower is better",
    "random": "a control: random numbers; higher is better",
    "all": "a control: every animal is kept",
    "oracle": f"a control: distance of the 2D joints to the truth, {_SHARE}",
}


def rounds_html(record: RunRecord) -> str:
    """All rounds that selected pseudo-labels; a sentence if none did."""
    numbers = [n for n in record.numbers if record.round(n).get("selections")]
    if not numbers:
        return note("No round has selected pseudo-labels yet: round 0 trains on labels alone.")
    parts, lines = [], []
    before: set[str] | None = None
    for number in numbers:
        chosen = record.dataset("selections", number)
        if chosen is None:
            parts.append(f"<h3>Round {number}</h3>" + note("Its selection is no longer in the lake."))
            continue
        rows = chosen.read().sort_by("rank")
        ids = rows.filter(rows["selected"])["instance_id"].to_pylist()
        found = record.lake.files.read_json(f"runs/{record.name}/round-{number}/diagnostics.json")
        newest = number == numbers[-1]
        shown = "open" if number in numbers[-OPEN:] else ""
        title = (
            f"Round {number} <small>{len(ids):,} of {len(rows):,} animals kept by {escape(_criterion(rows))}</small>"
        )
        inside = _top(rows, ids, before, number) + diagnostics_html(found, opened=newest)
        parts.append(f'<details class="round" {shown}><summary>{title}</summary>{inside}</details>')
        if found:
            lines.append((compared_cells(number, found), number == record.best))
        before = set(ids)
    return (table(COMPARED, lines) if len(lines) > 1 else "") + "".join(parts)


def _criterion(rows: pa.Table) -> str:
    return str(rows["criterion"][0].as_py()) if len(rows) else "nothing"


def _top(rows: pa.Table, ids: list[str], before: set[str] | None, number: int) -> str:
    if not len(rows):
        return note("The crawl gave no animals.")
    name = _criterion(rows)
    unit = UNITS.get(name, "")
    scores, selected = rows["score"].to_numpy(), rows["selected"].to_numpy()
    if not np.isfinite(scores).any():
        return note("No animal could be scored.")
    median = {
        s: np.median(scores[m & np.isfinite(scores)]) if (m & np.isfinite(scores)).any() else None
        for s, m in (("kept", selected), ("rejected", ~selected))
    }
    facts = [f"<b>{name}</b>: {MEANS.get(name, '')}".rstrip(": ") + "."]
    facts.append("Median score " + ", ".join(f"{v:.3g}{unit} {s}" for s, v in median.items() if v is not None) + ".")
    if before is not None:
        facts.append(
            f"{100 * len(before & set(ids)) / max(len(ids), 1):.0f} % of the kept were kept by the round before "
            f"as well (Jaccard {jaccard(ids, before):.2f})."
        )
    text = "".join(f"<p>{f}</p>" for f in facts)
    # The control `all` gives every animal the same score.
    drawn = histogram(scores, selected, unit) if np.ptp(scores[np.isfinite(scores)]) > 0 else ""
    return f'<div class="roundtop"><div>{text}</div><div>{drawn}</div></div>'


def groups(rows: pa.Table, each: int) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Title, class and rows (best first) of the four groups of a ranked selection; no row stands in two."""
    kept, lost = (rows.filter(m).to_pylist() for m in (rows["selected"], pc.invert(rows["selected"])))
    best, worst = kept[:each], lost[-each:] if len(lost) > each else []
    near_kept, near_lost = kept[each:][-each:], lost[: len(lost) - len(worst)][:each]
    named = (
        ("Best <small>kept</small>", "kept", best),
        ("Just above the cut <small>kept</small>", "kept", near_kept),
        ("Just below the cut <small>rejected</small>", "lost", near_lost),
        ("Worst <small>rejected</small>", "lost", worst),
    )
    return [g for g in named if g[2]]
