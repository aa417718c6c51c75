"""The bar of a running stream: how fast each stage is and what waits between them; kept as JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.stage import progress_bar, watched
from tables import Dataset
from trainers import meters

SAMPLES = 512  # moments of a run that are kept
_RECENT = 10  # looks that the speed shown is taken over


def show(rows: Iterator[dict[str, Any]], tables: Sequence[Dataset], wanted: int) -> Iterator[dict[str, Any]]:
    """Pass on what the last actors return, while a thread counts what all of them commit.

    At the end the run is written to `_stream.json` beside the last table's parts: `tables`, `moments` (seconds since
    the start, then rows through each stage), `rows_per_s` of each stage and `most_waiting` before each but the first.

    Args:
        tables: one for each stage, in order; a part has one name in all of them.
        wanted: rows that the last stage is to have seen.
    """
    size: dict[str, int] = {}  # rows of the first table's parts
    crawled = Counter[str]()
    moments: list[list[float]] = []
    waiting = [0] * (len(tables) - 1)
    began, every, looks = time.monotonic(), 1, 0
    recent: list[list[float]] = []

    def look() -> None:
        nonlocal moments, every, looks
        parts = [t.parts() for t in tables[::-1]][::-1]  # last first: a part on its way is not seen as one too many
        fresh = [p for p in parts[0] if p not in size]
        for part, manifest in tables[0].manifests(fresh).items():
            size[part] = manifest["rows"]
            crawled.update(manifest.get("status", {}), bytes=manifest.get("body_bytes", 0))
        meters.photos(crawled)
        done = [sum(size.get(p, 0) for p in names) for names in parts]
        waiting[:] = [max(old, a - b) for old, a, b in zip(waiting, done, done[1:], strict=False)]
        for i, table in enumerate(tables):
            meters.put("wildshape_stream_rows", done[i], stage=table.table)
            if i:
                meters.put("wildshape_stream_waiting", done[i - 1] - done[i], stage=table.table)
        now = [round(time.monotonic() - began, 1), *done]
        recent[:] = [*recent[-_RECENT:], now]
        if looks % every == 0:
            moments.append(now)
        looks += 1
        if len(moments) > SAMPLES:
            moments, every = moments[::2], 2 * every
        bar.update(task, completed=done[-1], note=_note([t.table for t in tables], done, speeds(recent)))

    with progress_bar("{task.fields[note]}") as bar:
        task = bar.add_task("stream", total=wanted, note="")
        look()
        try:
            yield from watched(rows, look)
        finally:
            found = {"tables": [t.table for t in tables], "rows_per_s": speeds(moments), "most_waiting": waiting}
            tables[-1].files.write_json(f"{tables[-1].path}/_stream.json", {**found, "moments": moments})


def speeds(moments: Sequence[Sequence[float]]) -> list[float]:
    """Rows a second through each stage over these moments, from its first to its last one among them."""
    times, *counts = zip(*moments, strict=True)
    found = []
    for count in counts:
        begun = max(t for t, n in zip(times, count, strict=True) if n == count[0])
        ended = min(t for t, n in zip(times, count, strict=True) if n == count[-1])
        found.append(round((count[-1] - count[0]) / max(ended - begun, 0.1), 1))
    return found


def _note(names: Sequence[str], done: Sequence[int], speed: Sequence[float]) -> str:
    """Each stage with its rows a second, and between two of them how many rows wait."""
    text = f"{names[0]} {speed[0]:.0f}/s"
    for i, name in enumerate(names[1:], 1):
        text += f", {done[i - 1] - done[i]} wait, {name} {speed[i]:.0f}/s"
    return text
