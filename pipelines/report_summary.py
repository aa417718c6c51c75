"""The report's first screen: what the run came to, in words, in numbers, in a table and in curves."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from pipelines import report_page as page
from pipelines.report_figures import COOL, SOFT, WARM, Curve, pck_chart, rounds_chart
from pipelines.run_record import RunRecord

SPLITS = ("val", "test")
NAMES = {"val": "validation", "test": "test"}


def compared(record: RunRecord) -> str | None:
    """The split that results are told on: test, else validation, else whatever there is."""
    there = {m["split"] for m in record.metrics}
    return next((s for s in ("test", "val") if s in there), min(there, default=None))


def headline(record: RunRecord, counts: dict[str, int], turning: str) -> str:
    """Title, summary in words, and the counts; `turning` is the animated template (HTML), or empty."""
    split, best = compared(record), record.best
    first, last = (record.metric(n, split) if split else None for n in (min(record.numbers, default=0), best))
    animal = escape(record.category.capitalize())
    title = f"{animal}: no round is finished yet"
    if first and last:
        arrow = "" if best == first["round"] else f"{first['auc_06_10']:.1f}&nbsp;&rarr;&nbsp;"
        title = f"{animal}: AUC&nbsp;{arrow}{last['auc_06_10']:.1f} on the {NAMES.get(str(split), split)} split"
    words = _words(record, counts, first, last, str(split))
    intro = f'<p class="kicker">wildshape run <b>{escape(record.name)}</b></p><h1>{title}</h1>'
    intro += f'<p class="summary">{words}</p>'
    strip = [(f"{counts[k]:,}", name) for k, name in _COUNTED.items() if counts.get(k) is not None]
    return f'<header class="top"><div>{intro}</div>{turning}</header>' + (page.numbers(strip) if strip else "")


_COUNTED = {
    "urls": "web addresses tried", "photos": "photos, without failures and duplicates",
    "animals": "animals found in them",
    "labels": "labelled animals trained on", "pseudo": "pseudo-labels added in the last round",
}  # fmt: skip


def _words(record: RunRecord, counts: dict[str, int], first: Any, last: Any, split: str) -> str:
    if not first or not last:
        return (
            "The run has a folder but no evaluated round. Run the same <code>wildshape selftrain</code> command again: "
            "it goes on where it was."
        )
    best, name = record.best, NAMES.get(split, split)
    hits = f"{_pck(last):.0f} of 100 visible joints of the {name} split lie within a tenth of the animal&rsquo;s box"
    labels = f"{counts['labels']:,} labelled animals" if counts.get("labels") else "labels"
    if last["round"] == first["round"]:
        if len(record.numbers) == 1:
            return f"A 3D model trained on {labels} alone: {hits}."
        return (
            f"No round with pseudo-labels did better on validation than round {first['round']}, "
            f"which trained on {labels} alone: "
            f"{hits}. {_gain(record, first, split)}"
        )
    gain = last["auc_06_10"] - first["auc_06_10"]
    verdict = f"{'a gain' if gain > 0 else 'a loss'} of {abs(gain):.1f} points over round {first['round']}, "
    verdict += f"which trained on {labels} alone"
    added = (record.round(best).get("items") or 0) - (counts.get("labels") or 0)
    used = f"with {added:,} pseudo-labels from the web" if added > 0 else "with pseudo-labels"
    told = f"Round {best}, {used}, is best on validation and gives {verdict}."
    return f"{told} {hits}; in round {first['round']} it was {_pck(first):.0f}."


def _gain(record: RunRecord, first: Any, split: str) -> str:
    others = [m for m in (record.metric(n, split) for n in record.numbers) if m and m["round"] != first["round"]]
    top = max(others, key=lambda m: m["auc_06_10"], default=None)
    if top is None:
        return ""
    return (
        f"The highest {NAMES.get(split, split)} AUC of a later round is {top['auc_06_10']:.1f} (round {top['round']})."
    )


def _pck(m: dict[str, Any]) -> float:
    return float(m["pck"].get("0.10", math.nan))


def results(record: RunRecord) -> str:
    """The closing table and the curves."""
    if not record.metrics:
        return page.note("Nothing was evaluated yet.")
    there = [s for s in SPLITS if any(m["split"] == s for m in record.metrics)] or [str(compared(record))]
    split = str(compared(record))
    short = {"val": "val", "test": "test"}.get(split, split)
    head = [
        "round",
        *(f"AUC {s}" for s in there),
        f"PCK@0.10<br>{short}",
        f"camera error<br>{short}",
        f"mIoU<br>{short}",
        "trained on",
    ]
    rows = []
    base = {s: (record.metric(min(record.numbers), s) or {}).get("auc_06_10") for s in there}
    for n in record.numbers:
        m = record.metric(n, split) or {}
        cells = [f"{n}{' <small>best on validation</small>' if n == record.best and len(record.numbers) > 1 else ''}"]
        cells += [
            _with_gain((record.metric(n, s) or {}).get("auc_06_10"), base[s], n != min(record.numbers)) for s in there
        ]
        cells += [_number(_pck(m) if m else None, "{:.1f} %"), _number(m.get("camera_error_deg"), "{:.1f}&deg;")]
        cells += [_number(m.get("miou"), "{:.3f}"), _items(record, n)]
        rows.append((cells, n == record.best))
    meaning = (
        "AUC is the mean percentage of visible joints whose reprojection lies within 0.06, 0.07, 0.08, 0.09 and 0.10 "
        "of the longer side of the animal&rsquo;s box (<code>auc_06_10</code>). The best round is chosen on validation "
        "alone; the test split is only read."
    )
    ended = record.summary.get("stopped")
    said = page.note(f"The loop ended early: {ended}.") if ended else ""
    return f'<p class="lead">{meaning}</p>{page.table(head, rows)}{said}{_charts(record, there, split)}'


def _items(record: RunRecord, number: int) -> str:
    items = record.round(number).get("items")
    return "&ndash;" if items is None else f"{items:,} animals"


def _number(value: float | None, form: str) -> str:
    return "&ndash;" if value is None or not math.isfinite(value) else form.format(value)


def _with_gain(value: float | None, base: float | None, later: bool) -> str:
    if value is None or not math.isfinite(value):
        return "&ndash;"
    if not later or base is None or not math.isfinite(base):
        return f"{value:.2f}"
    gain = value - base
    sign = "+" if gain > 0 else "&minus;"
    return f'<small class="{"up" if gain > 0 else "down"}">{sign}{abs(gain):.2f}</small> {value:.2f}'


def _charts(record: RunRecord, there: list[str], split: str) -> str:
    name = NAMES.get(split, split)
    lines = []
    for s, color in zip(there, (WARM, COOL) if len(there) > 1 else (COOL,), strict=False):
        found = [
            (n, m["auc_06_10"]) for n in record.numbers if (m := record.metric(n, s)) and math.isfinite(m["auc_06_10"])
        ]
        if found:
            lines.append(Curve(NAMES.get(s, s), [float(n) for n, _ in found], [v for _, v in found], color))
    parts = []
    if lines:
        parts.append(
            page.chart(
                "AUC by round", "points of 100", rounds_chart(lines, record.best if len(record.numbers) > 1 else None)
            )
        )
    curves = [_curve(record, n, m) for n in record.numbers if (m := record.metric(n, split))]
    if curves:
        parts.append(
            page.chart(
                "3D reprojection", f"joints within a distance, {name} split", pck_chart(curves, "PCK of the 3D nets")
            )
        )
    flat = record.summary.get("metrics_2d") or {}
    known = [(k, v[split]) for k, v in flat.items() if v and v.get(split)]
    if known:
        nets = {"pose": "pose net", "aux": "auxiliary net"}
        both = [
            Curve(
                f"{nets.get(k, k)}, AUC {m['auc_06_10']:.1f}",
                *_points(m),
                color=COOL if k == "pose" else SOFT,
                dashed=k != "pose",
                width=2.4,
            )
            for k, m in known
        ]
        parts.append(
            page.chart("2D nets", f"joints within a distance, {name} split", pck_chart(both, "PCK of the 2D nets"))
        )
    return f'<div class="charts">{"".join(parts)}</div>'


def _curve(record: RunRecord, number: int, m: dict[str, Any]) -> Curve:
    first = number == min(record.numbers)
    best = number == record.best
    opacity = 1.0 if first or best else 0.3 + 0.45 * number / max(record.numbers)
    color = COOL if best else SOFT if first else WARM
    return Curve(
        f"round {number}",
        *_points(m),
        color=color,
        width=3.0 if best else 2.0,
        dashed=first and not best,
        opacity=opacity,
    )


def _points(m: dict[str, Any]) -> tuple[list[float], list[float]]:
    pairs = sorted((float(t), float(v)) for t, v in m["pck"].items())
    return [0.0, *(t for t, _ in pairs)], [0.0, *(v for _, v in pairs)]
