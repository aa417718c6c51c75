"""The bar of a running crawl: rows committed of those wanted, the share that is ok, and megabytes a second."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipelines.stage import progress_bar, watched
from tables import Dataset
from trainers import meters


def show(rows: Iterator[dict[str, Any]], dataset: Dataset, wanted: int) -> Iterator[dict[str, Any]]:
    """Pass on what the actors return, shard by shard, while a thread reads the manifests they commit meanwhile."""
    with progress_bar("{task.fields[note]}") as bar:
        task = bar.add_task("photos", total=wanted, note="")
        count, seen, before = Counter[str](), set[str](), 0
        began = time.monotonic()

        def look() -> None:
            nonlocal before
            for part, manifest in dataset.manifests([p for p in dataset.parts() if p not in seen]).items():
                seen.add(part)
                count.update(manifest["status"])
                count["bytes"] += manifest["body_bytes"]
            done = count.total() - count["bytes"]
            meters.photos(count)
            before = before or count["bytes"]  # committed by an earlier run: no part of this one's speed
            speed = (count["bytes"] - before) / 2**20 / max(time.monotonic() - began, 0.1)
            ok = f"{100 * count['ok'] / done:.0f} % ok, " if done else ""
            bar.update(task, completed=min(done, wanted), note=f"{ok}{speed:.1f} MB/s")

        yield from watched(rows, look)
