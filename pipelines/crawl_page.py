"""The crawl's page: what came of every address, how fast, from which hosts, and what the photos look like."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from pipelines import report_page as page
from pipelines.crawl_figures import Pace, duration, pace, pace_chart
from pipelines.crawl_sheet import SHEET, SHEET_STYLE, sheet_html
from pipelines.report_figures import COOL, WARM
from tables import Dataset

RETRY = "retry=failed"
HOSTS = 20  # shown

# What a status means, and the colour of its part of the bar.
_STATUS = {
    "ok": ("a photo", "#2f7fbf"),
    "gone": ("the photo is no longer there (404, 410)", "#d98c3f"),
    "placeholder": ("a picture that stands in for a photo that was taken down", "#c9a24b"),
    "forbidden": ("the host does not give it to us (401, 403)", "#b86b52"),
    "throttled": ("the host asked us to slow down until our tries were used up (429)", "#8f6f86"),
    "server_error": ("the host failed or could not be reached", "#6f7f8f"),
    "timeout": ("the host took too long", "#8a93a0"),
    "truncated": ("the bytes end before the photo does", "#a3a9b0"),
    "not_image": ("something else than a picture came", "#7d8b6a"),
    "too_big": ("more bytes than fetch.max_bytes", "#947a5c"),
    "bomb": ("more pixels than fetch.max_pixels, or far too long and thin", "#7a5c5c"),
    "opt_out": ("the host asks that its pictures not be used for this (X-Robots-Tag)", "#5f8f8a"),
    "robots": ("the host's robots.txt asks us not to fetch it", "#4f7f6a"),
    "bad_url": ("no address that may be fetched", "#777777"),
}
_DROPPED = {
    "words": "none of the words in title, description or tags", "license": "another licence",
    "extension": "another kind of file", "video": "a video", "taken": "taken at another time, or nobody says when",
    "box": "taken somewhere else, or nobody says where", "repeated": "listed before",
    "quota": "more from one user than the quota", "origin": "the row does not say what its address is made of",
    "rejected": "could not be read: not a row of this format", "blank": "an empty line", "header": "the header",
    "quoted": "a further line of a row that spans several",
}  # fmt: skip
_STYLE = """
td i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 9px; vertical-align: -1px }
.charts + .note { margin-top: 14px }
td span { display: inline-block; min-width: 120px }
ol { padding-left: 22px; max-width: 74ch }
ol li { margin-bottom: 12px }
ol pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 6px 0 0 }
@media(max-width:520px) {
  td.wrap { min-width: 130px; font-size: 15px }
  td small { margin-left: 21px }
  th,td { padding: 7px 5px }
}
"""


def write_page(dataset: Dataset, summary: Mapping[str, Any]) -> str:
    """Write `<dataset>/summary.html`, self-contained, whole or not at all; return where it is.

    Args:
        dataset: a `photos` dataset; what the notes of its parts lack is left out.
        summary: what `crawl` returns: `lines, rejected, dropped, wanted, status, duplicates, photos`, and `suspects`
            (sha256 of bytes that many photos have, with their number) if it knows any.
    """
    manifests = list(dataset.manifests().values())
    found, kept = pace(manifests), sum(m.get("body_bytes", 0) for m in manifests)
    parts = (
        _headline(dataset, summary, found, kept),
        page.section("Throughput", _throughput(found), lead="How fast photos came in while the crawl was at work."),
        page.section(
            "What came of every address", _statuses(summary["status"]),
            lead="Each address ends as one row with one status; a failure is kept as it is.",
        ),
        page.section("Hosts", _hosts(manifests), lead="Who was asked most. A redirect counts where it ended."),
        page.section("Left out before asking", _dropped(summary), lead="Rows of the metadata that were not wanted."),
        page.section(
            "Contact sheet", sheet_html(dataset),
            lead=f"Up to {SHEET} photos, drawn by their ids and not by eye. Each leads to its page.",
        ),
        page.section("What to do next", _next(dataset, summary)),
    )  # fmt: skip
    path = f"{dataset.path}/summary.html"
    html = page.page(f"{dataset.category}: wildshape crawl", "\n".join(parts), _STYLE + SHEET_STYLE)
    dataset.files.write(path, html.encode())
    return f"{dataset.files.uri}/{path}"


def _headline(dataset: Dataset, summary: Mapping[str, Any], found: Pace | None, kept: int) -> str:
    status = Counter(summary["status"])
    asked, copies = sum(status.values()), summary["duplicates"]
    text = (
        f"{_count(summary['lines'], 'row')} of metadata, {summary['wanted']:,} of them wanted. "
        f"{_count(asked, 'address')} asked so far: {status['ok']:,} gave a photo, {copies:,} of them a copy of another."
    )
    numbers = [
        (f"{summary['photos']:,}", "photos, each once"),
        (_percent(status["ok"], asked), "of addresses gave one"),
        (f"{copies:,}", "copies of another, left out"),
    ]
    if kept:
        numbers.append((_size(kept), "of photos received"))
    if found is not None:
        rate = float(found.photos.mean())
        numbers += [(duration(found.seconds), "at work"), (_rate(rate), "photos a second")]
    title = f"{_count(summary['photos'], 'photo')} for {escape(dataset.category)}"
    return f'<p class="kicker">wildshape crawl</p><h1>{title}</h1><p class="summary">{text}</p>{page.numbers(numbers)}'


def _throughput(found: Pace | None) -> str:
    if found is None:
        return page.note("The parts of this crawl carry no times.")
    charts = "".join(
        page.chart(title, f"{_rate(values.mean())} on average (dashed)", pace_chart(found, values, color, title))
        for title, values, color in (
            ("Photos a second", found.photos, COOL),
            ("Megabytes a second", found.megabytes, WARM),
        )
    )
    n = len(found.pauses)
    rest = page.note(f"The crawl rested {_times(n)} for more than a minute: a dotted line for each rest.") if n else ""
    return f'<div class="charts">{charts}</div>{rest}'


def _statuses(status: Mapping[str, int]) -> str:
    from pipelines.fetch import HEALABLE

    total = sum(status.values())
    if not total:
        return page.note("No address has been asked.")
    order = sorted(status, key=lambda s: (s != "ok", -status[s], s))
    known = {s: _STATUS.get(s, (s.replace("_", " "), "#999999")) for s in order}
    bar = "".join(f'<i style="flex:{status[s]};background:{known[s][1]}" title="{escape(s)}"></i>' for s in order)
    rows = []
    for s in order:
        meaning = escape(known[s][0]) + ("; may heal" if s in HEALABLE else "")
        name = f'<i style="background:{known[s][1]}"></i><span>{escape(s)}</span><small>{meaning}</small>'
        rows.append(([name, f"{status[s]:,}", _percent(status[s], total)], False))
    shown = f'<div class="bar" role="img" aria-label="addresses by status">{bar}</div>'
    return shown + page.table(("status", "addresses", "share"), rows, left=(0,))


def _hosts(manifests: Iterable[Mapping[str, Any]]) -> str:
    status: dict[str, Counter[str]] = {}
    size, ms = Counter[str](), Counter[str]()
    for manifest in manifests:
        for name, host in manifest.get("hosts", {}).items():
            status.setdefault(name, Counter()).update(host["status"])
            size[name] += host["bytes"]
            ms[name] += host["ms"]
    if not status:
        return page.note("The parts of this crawl do not say which hosts answered.")
    order = sorted(status, key=lambda h: (-status[h].total(), h))
    rows = []
    for name in order[:HOSTS]:
        n = status[name].total()
        cells = [escape(name).replace(".", ".<wbr>") or "no host", f"{n:,}", _percent(status[name]["ok"], n)]
        rows.append(([*cells, f"{size[name] / 1e6:,.1f}", f"{ms[name] / n:,.0f}"], False))
    rest = order[HOSTS:]
    others = _count(sum(status[h].total() for h in rest), "address")
    more = f"{_count(len(rest), 'more host')} answered for {others}." if rest else ""
    head = ("host", "asked", "gave one", "MB", "ms each")
    return page.table(head, rows, left=(0,)) + (page.note(more) if more else "")


def _dropped(summary: Mapping[str, Any]) -> str:
    counts = Counter(summary["dropped"]) + Counter(rejected=summary["rejected"])
    if not counts:
        return page.note("Every row of the metadata was wanted.")
    rows = [
        ([escape(_DROPPED.get(reason, reason.replace("_", " "))), f"{n:,}", _percent(n, summary["lines"])], False)
        for reason, n in counts.most_common()
    ]
    return page.table(("why", "rows", "share"), rows, left=(0,))


def _next(dataset: Dataset, summary: Mapping[str, Any]) -> str:
    from pipelines.fetch import HEALABLE

    status = Counter(summary["status"])
    at = f"category={shlex.quote(dataset.category)} lake={shlex.quote(dataset.files.uri)}"
    steps = []
    if (waiting := summary["wanted"] - status.total()) > 0:
        steps.append(f"Not asked yet: {_count(waiting, 'address')}. Run the same crawl again, and it goes on.")
    if heal := sum(status[s] for s in HEALABLE):
        steps.append(
            f"{_count(heal, 'failure')} may have healed by now. Run the same crawl again with <code>{RETRY}</code>: "
            "nothing else is asked again."
        )
    if 20 * status["throttled"] > status.total():
        steps.append("Many answers were 429: set <code>fetch.per_host</code> lower and give the hosts more time.")
    if summary["rejected"]:
        steps.append(
            f"{_count(summary['rejected'], 'row')} could not be read: <code>rejects.parquet</code> below "
            f"<code>{escape(dataset.files.uri)}/{escape(dataset.path)}/_plan</code> has the lines and the reasons."
        )
    if suspects := summary.get("suspects"):
        listed = "\n".join(f"{n:,} times {escape(sha256)}" for sha256, n in suspects.items())
        steps.append(
            "The same bytes came from many addresses: perhaps a picture that stands in for photos that were taken "
            f"down. Look at one of them; <code>fetch.placeholders</code> takes these hashes:<pre>{listed}</pre>"
        )
    if summary["photos"]:
        out = shlex.quote(f"{dataset.category}_photos")
        steps.append(f"Find the animals in the photos:<pre>wildshape detect {escape(at)}</pre>")
        steps.append(
            "Take the photos elsewhere, with a list of their authors and licences:"
            f"<pre>wildshape export what=photos format=webdataset out={escape(out)} {escape(at)}</pre>"
        )
    else:
        steps.append("No photo came. The tables above say where the addresses were lost.")
    return "<ol>" + "".join(f"<li>{s}</li>" for s in steps) + "</ol>"


def _percent(n: float, total: float) -> str:
    if not total:
        return "&ndash;"
    return "&lt; 0.1 %" if 0 < n < 0.0005 * total else f"{100 * n / total:.1f} %"


def _size(n: float) -> str:
    """Bytes as people say it: `0.4 MB`, `12.1 GB`."""
    return f"{n / 1e6:,.1f} MB" if n < 1e9 else f"{n / 1e9:,.1f} GB" if n < 1e12 else f"{n / 1e12:,.2f} TB"


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "es" if noun.endswith("s") else "s")


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")
