"""The contact sheet of a crawl: a few of its photos, each with its author, its licence and a link to its page."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from html import escape
from itertools import groupby
from typing import Any

from pipelines import report_page as page
from pipelines.attribution import NO_AUTHOR, NO_LICENSE, licence_of, web_link
from pipelines.export_photos import only_ok, shard_of
from tables import Dataset

SHEET, THUMB = 24, 300  # photos shown, and the longer side of each, pixels

SHEET_STYLE = """
.sheet { display: grid; grid-template-columns: repeat(auto-fill,minmax(150px,1fr)); gap: 20px 14px; margin-top: 16px }
.sheet figure { margin: 0; min-width: 0 }
.sheet a { color: inherit; text-decoration-color: var(--line); text-underline-offset: 3px }
.sheet a:hover { text-decoration-color: currentColor }
.sheet .photo {
  display: flex; align-items: center; justify-content: center; aspect-ratio: 1; overflow: hidden;
  border-radius: 8px; background: var(--faint); color: var(--soft); font-size: 13px; text-align: center;
}
.sheet img { width: 100%; height: 100%; object-fit: contain; display: block }
.sheet figcaption { font-size: 13px; line-height: 1.4; margin-top: 6px; color: var(--soft); overflow-wrap: anywhere }
.sheet figcaption b { color: var(--ink); font-weight: 600; display: block }
@media(max-width:520px) { .sheet { grid-template-columns: 1fr 1fr } }
"""


def sheet_html(dataset: Dataset) -> str:
    """Up to SHEET ok photos that are no duplicates: those whose ids hash lowest, of the shards whose names do.

    The same crawl gives the same photos, and however large it is, no more than SHEET of its shards are read.
    """
    shards = {name: list(parts) for name, parts in groupby(dataset.parts(), key=shard_of)}
    columns = ["photo_id", "url", "status", "duplicate_of", "author", "license", "page_url"]
    rows = []
    for shard in sorted(shards, key=_draw)[:SHEET]:
        rows += [{**row, "shard": shard} for row in only_ok(dataset.read(columns, shards[shard])).to_pylist()]
    rows = sorted(rows, key=lambda row: _draw(row["photo_id"]))[:SHEET]
    pictures: dict[str, str] = {}
    for shard in {row["shard"] for row in rows}:
        pictures |= _pictures(dataset, shards[shard], {row["photo_id"] for row in rows})
    shown = "".join(_figure(row, pictures[row["photo_id"]]) for row in rows)
    return f'<div class="sheet">{shown}</div>' if shown else page.note("There is no photo to show.")


def _draw(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _pictures(dataset: Dataset, parts: list[str], ids: set[str]) -> dict[str, str]:
    """Small pictures of those of the photos that lie in these parts, by id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = dataset.read(["photo_id", "bytes"], parts)
    rows = rows.filter(pc.is_in(rows["photo_id"], pa.array(sorted(ids), pa.string())))
    return {row["photo_id"]: _thumbnail(row["bytes"]) for row in rows.to_pylist()}


def _thumbnail(data: bytes | None) -> str:
    """A small picture as a data URI; empty if the bytes cannot be decoded."""
    import cv2

    from models.photo import decode_photo
    from pipelines.report_crops import data_uri

    photo = decode_photo(data or b"")
    if photo is None:
        return ""
    scale = min(1.0, THUMB / max(photo.shape[:2]))
    size = [max(1, round(n * scale)) for n in photo.shape[1::-1]]
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)[:, :, ::-1]
    return data_uri(cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes(), "image/webp")


def _figure(row: Mapping[str, Any], picture: str) -> str:
    name, url = licence_of(row["license"])
    shown = f'<img src="{picture}" alt="{escape(row["photo_id"])}">' if picture else "cannot be decoded"
    shown = _link(f'<div class="photo">{shown}</div>', row["page_url"] or row["url"])
    licence, where = _link(escape(name or NO_LICENSE), url), _link("page", row["page_url"] or row["url"])
    author = escape(row["author"] or NO_AUTHOR)
    return f"<figure>{shown}<figcaption><b>{author}</b>{licence} &middot; {where}</figcaption></figure>"


def _link(html: str, url: str | None) -> str:
    return f'<a href="{escape(web_link(url))}" rel="noreferrer">{html}</a>' if web_link(url) else html
