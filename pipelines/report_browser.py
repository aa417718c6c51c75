"""The selection browser's data: of each round a bounded number of animals, with joints, scores and reasons."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import report_crops as crops
from pipelines.report_page import data, note
from pipelines.report_rounds import MEANS, UNITS
from pipelines.run_record import RunRecord, table_of
from selection import CRITERIA, HIGHER_IS_BETTER, score
from tables import QUADRUPED, Dataset, InputError, join_rows, to_numpy

EDGE = 12  # animals that are always there from each of: the best, the worst, and the two sides of the cut
PIXELS = 192  # most, of a crop's side
PREDICTED = ("keypoints", "keypoints_aux", "keypoints_mt", "keypoints_3d", "heatmap_3d")
DRAWN = ("keypoints", "keypoints_3d")
DETECTED = ("bbox", "window", "crop", "photo_id")
CREDIT = ("page_url", "author", "license")
# Judge no animal by itself: the controls, and those that need all of a round.
UNSCORED = {"random", "all", "oracle"} | {name for name, c in CRITERIA.items() if c.fuses}


def browser_html(record: RunRecord, most: int) -> str:
    """The browser of all rounds that selected pseudo-labels; a sentence if none did.

    Args:
        most: animals whose crops the page holds.
    """
    ranked: dict[int, pa.Table] = {}
    sources: dict[int, tuple[Dataset, Dataset]] = {}
    for number in record.numbers:
        chosen, pseudo, instances = (record.dataset(t, number) for t in ("selections", "pseudo_labels", "instances"))
        if chosen and pseudo and instances:
            ranked[number], sources[number] = chosen.read().sort_by("rank"), (pseudo, instances)
    ids = embedded([r["selected"] for r in ranked.values()], [r["instance_id"] for r in ranked.values()], most)
    rounds = {n: t for n, rows in ranked.items() if (t := _shown(rows, ids, *sources[n])) is not None}
    if not rounds:
        return note("No selection is in the lake with its crops.")
    animals = _animals(record, list(rounds.values()))
    place = {a["id"]: i for i, a in enumerate(animals)}
    plain = {
        "edges": QUADRUPED.edges, "view": crops.VIEW, "sure": crops.SURE, "animals": animals,
        "rounds": [_round(n, ranked[n], rows, place) for n, rows in rounds.items()],
    }  # fmt: skip
    every = len({i for rows in ranked.values() for i in rows["instance_id"].to_pylist()})
    return _held(len(animals), every, record) + _FORM + data("browser-data", plain)


def embedded(selected: Sequence[Any], ids: Sequence[Any], most: int) -> list[str]:
    """At most `most` ids out of the rounds' ranked columns; the rounds give theirs in turn, as `spread` orders them."""
    queues = [
        [names[p].as_py() for p in islice(spread(kept.to_numpy()), most)]
        for kept, names in zip(selected, ids, strict=True)
    ]
    found: dict[str, None] = {}
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(found) < most:
                found.setdefault(queue[turn])
    return list(found)


def spread(selected: np.ndarray) -> Iterator[int]:
    """Every place of a ranked selection [N] bool once: both ends and both sides of the cut, then evenly over all."""
    n = len(selected)
    cut = int(np.flatnonzero(selected).max(initial=-1)) + 1  # the first after the last that was kept
    first = [p for i in range(EDGE) for p in (i, cut - 1 - i, cut + i, n - 1 - i)]
    # The places by their bits read backwards: any beginning of this order lies evenly over all.
    bits = max(1, (n - 1).bit_length())
    even = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    seen: set[int] = set()
    for place in chain(first, even):
        if 0 <= place < n and place not in seen:
            seen.add(place)
            yield place


def reason_kind(reason: str) -> str:
    """A reason without what is the animal's own: its rank, and the photo it looks like."""
    text = re.sub(r"^rank \d+ of \d+(, \d+ by quota)?", "rank", reason)
    return re.sub(r"(evaluation photo) .*", r"\1", text).replace("<=", "\u2264")


def _shown(rows: pa.Table, ids: list[str], pseudo: Dataset, instances: Dataset) -> pa.Table | None:
    """Selections [N rows, best first] of the embedded animals, with what was predicted and detected."""
    found = table_of(instances, ids, list(DETECTED))
    try:
        said = table_of(pseudo, ids, list(PREDICTED))
    except InputError:  # an older lake lacks the youngest columns, and what is shown needs few of them
        said = table_of(pseudo, ids, list(DRAWN))
    if said is None or found is None:
        return None
    rows = join_rows(join_rows(rows, said, "instance_id"), found.filter(pc.is_valid(found["crop"])), "instance_id")
    return rows if len(rows) else None


def _animals(record: RunRecord, rounds: list[pa.Table]) -> list[dict[str, Any]]:
    """Each animal of the rounds once: its crop, and whose photo it is."""
    seen: dict[str, dict[str, Any]] = {}
    for rows in rounds:
        for row in rows.select(["instance_id", "photo_id", "crop"]).to_pylist():
            seen.setdefault(row["instance_id"], row)
    credit = _credits(record, {r["photo_id"] for r in seen.values()})
    return [
        {"id": i, "photo": r["photo_id"], "image": crops.crop_image(r["crop"], PIXELS), **credit.get(r["photo_id"], {})}
        for i, r in seen.items()
    ]


def _credits(record: RunRecord, ids: set[str]) -> dict[str, dict[str, str]]:
    photos = record.photos()
    if photos is None:
        return {}
    rows = photos.read(["photo_id", *CREDIT])
    rows = rows.filter(pc.is_in(rows["photo_id"], pa.array(sorted(ids), pa.string()))).select(["photo_id", *CREDIT])
    return {r.pop("photo_id"): {k: v for k, v in r.items() if v} for r in rows.to_pylist()}


def _round(number: int, ranked: pa.Table, rows: pa.Table, place: dict[str, int]) -> dict[str, Any]:
    """What the page knows of a round; `place` is where an animal stands in the page's list.

    Joints are in tenths of a percent of the stored crop, confidences in percent; scores have five digits.
    """
    own = str(rows["criterion"][0].as_py())
    scores = {own: rows["score"].to_numpy()}
    known = (c for c in CRITERIA if c not in {own} | UNSCORED and set(CRITERIA[c].columns) <= set(rows.column_names))
    scores |= {c: score(c, rows) for c in known}
    scores = {c: v for c, v in scores.items() if np.isfinite(v).any()} or {own: scores[own]}
    kinds = [reason_kind(r or "") for r in rows["reason"].to_pylist()]
    names = list(dict.fromkeys(kinds))
    windows = to_numpy(rows["window"], 3)
    two, three = (_in_crop(rows, name, width, windows) for name, width in (("keypoints", 3), ("keypoints_3d", 2)))
    return {
        "round": number, "of": len(ranked), "kept": int(pc.sum(ranked["selected"]).as_py() or 0), "own": own,
        "criteria": [
            {"name": c, "unit": UNITS.get(c, "").strip(), "high": HIGHER_IS_BETTER[c], "means": MEANS.get(c, "")}
            for c in scores
        ],
        "reasons": names,
        "rows": [
            {
                "animal": place[r["instance_id"]], "rank": r["rank"], "kept": r["selected"],
                "reason": r["reason"] or "", "kind": names.index(kind),
                "scores": [_digits(v[i]) for v in scores.values()],
                "two": two[i], "three": three[i],
            }
            for i, (r, kind) in enumerate(
                zip(rows.select(["instance_id", "rank", "selected", "reason"]).to_pylist(), kinds, strict=True)
            )
        ],
    }  # fmt: skip


def _in_crop(rows: pa.Table, name: str, width: int, windows: np.ndarray) -> list[list[int | None] | None]:
    """Flat joints of each row as whole numbers, None where there is nothing."""
    out: list[list[int | None] | None] = []
    for flat, window in zip(rows[name].to_pylist(), windows, strict=True):
        if flat is None:
            out.append(None)
            continue
        joints = np.array(flat, np.float64).reshape(-1, width)
        joints[:, :2] = np.clip(crops.in_crop(joints[:, :2], window), -50, 150) * 10
        joints[:, 2:] *= 100
        out.append([round(v) if np.isfinite(v) else None for v in joints.ravel().tolist()])
    return out


def _digits(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _held(shown: int, every: int, record: RunRecord) -> str:
    """What of the lake's animals is in the page."""
    where = f"<code>{escape(record.lake.uri)}/selections</code>"
    if shown == every:
        return f'<p class="note">All {every:,} animals are in this page.</p>'
    return (
        f'<p class="note">{shown:,} of {every:,} animals are in this page: of each round those at both ends and on '
        f"both sides of the cut, and others evenly over the ranks. All are in {where}; "
        f"<code>wildshape report run={escape(record.name)} crops={every}</code> puts all in.</p>"
    )


_FORM = """<form id="browser" onsubmit="return false">
<div class="filters">
<label>round <select id="round"></select></label>
<label>score by <select id="criterion"></select></label>
<label>from <input type="number" id="low" step="any"></label>
<label>to <input type="number" id="high" step="any"></label>
<label>kept or not <select id="kept"><option value="">all</option><option value="1">kept</option>
<option value="0">rejected</option></select></label>
<label>reason <select id="reason"></select></label>
<label>order <select id="order"><option value="best">best first</option><option value="worst">worst first</option>
<option value="cut">nearest to the cut</option></select></label>
<button type="reset">Reset</button>
</div>
<p class="note" id="means"></p>
<div class="tools"><label><input type="checkbox" id="two" checked><i></i>2D pseudo-label</label>
<label><input type="checkbox" id="three" checked><i class="o"></i>3D reprojection</label>
<output id="found" aria-live="polite"></output>
<span class="pager"><button type="button" id="before">Previous</button>
<button type="button" id="after">Next</button></span>
</div>
</form>
<div class="crops" id="crops"></div>
<dialog id="closer" aria-label="An animal of the selection"><div id="large"></div><div><table id="details"></table>
<p class="note" id="credit"></p><p><button type="button" id="former">Previous</button>
<button type="button" id="next">Next</button>
<button type="button" id="close" autofocus>Close</button></p></div></dialog>
<noscript><p class="note">The selection browser needs JavaScript.</p></noscript>
"""
