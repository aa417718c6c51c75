"""A finished `photos` dataset without a crawl: rows and notes as the crawl's worker commits them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pipelines.crawl_worker import summarise
from tables import Dataset, Lake, schema

BY = "Attribution License http://creativecommons.org/licenses/by/2.0/"
NC = "Attribution-NonCommercial License http://creativecommons.org/licenses/by-nc/2.0/"
FAILED = ("gone", "gone", "timeout", "robots")
SUMMARY: dict[str, Any] = {
    "lines": 1000, "rejected": 2, "dropped": {"words": 900, "video": 70}, "wanted": 28, "fetched": 28,
    "status": {"gone": 2, "ok": 24, "robots": 1, "timeout": 1}, "duplicates": 2, "photos": 22,
}  # fmt: skip


def noise(seed: int, side: int = 64, ending: str = ".jpg") -> bytes:
    """An image that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + seed % 3 * 16, 3), np.uint8)
    return cv2.imencode(ending, pixels)[1].tobytes()


def row(number: int, status: str = "ok", data: bytes | None = None, **more: Any) -> dict[str, Any]:
    """A row of `photos`, as the fetcher makes it."""
    name = str(7_000_000 + number)
    known = dict.fromkeys(schema("photos").names) | {
        "photo_id": f"yfcc:{name}", "url": f"http://farm{number % 3}.example.org/{name}.jpg", "status": status,
        "attempts": 1, "ms": 20.0, "license": NC if number % 4 else BY, "author": f"Ana {number}",
        "page_url": f"http://www.example.org/photos/{name}/",
    }  # fmt: skip
    if data:
        known |= {"bytes": data, "sha256": hashlib.sha256(data).hexdigest(), "width": 64, "height": 64}
    return known | more


def crawled(folder: Path, side: int = 64, **first: Any) -> Dataset:
    """28 addresses in three shards, fetched in two runs an hour apart: 24 ok, two of them duplicates.

    Args:
        side: pixels of the photos' shorter side.
        first: columns of the first photo's row.
    """
    rows = [row(i, data=noise(i, side)) for i in range(24)]
    rows += [row(24 + i, status, error="no photo") for i, status in enumerate(FAILED)]
    rows[0] |= first
    dataset = Lake(str(folder)).dataset("photos", "horse", {"stage": "crawl"})
    for i, name in enumerate(("s0000-aa", "s0001-bb", "s0001-r001-cc", "s0002-dd")):
        part = rows[i * 7 : i * 7 + 7]
        began = 1_700_000_000.0 + 4 * i + 3600 * (i > 1)
        table = pa.Table.from_pylist(part, schema("photos"))
        dataset.write(
            name,
            table,
            schema("photos"),
            began=began,
            ended=began + 8,
            **summarise(part, [len(r["bytes"] or b"") for r in part]),
        )
    copies = [rows[22]["photo_id"], rows[23]["photo_id"]]
    dataset.overlay(pa.table({"photo_id": copies, "duplicate_of": [rows[1]["photo_id"]] * 2}))
    dataset.finish("state", SUMMARY)
    return dataset
