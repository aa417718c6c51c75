"""One raw row of any format -> one PhotoRow: the definition of what a metadata row means."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import unquote_plus

from pipelines.source_files import MAX_LINE
from tables import photo_id

# The SQLite dump and v1 have these columns; v2 has a line number before and the photo's hash after the id.
YFCC_V1 = (
    "photoid", "uid", "unickname", "datetaken", "dateuploaded", "capturedevice", "title", "description", "usertags",
    "machinetags", "longitude", "latitude", "accuracy", "pageurl", "downloadurl", "licensename", "licenseurl",
    "serverid", "farmid", "secret", "secretoriginal", "ext", "marker",
)  # fmt: skip

# Usual names of what a list of photos may tell, the better ones first; they are compared in lower case.
NAMES = {
    "url": ("item_download_url", "download_url", "downloadurl", "image_url", "img_url", "photo_url", "url"),
    "title": ("title", "photo_title", "caption", "text"),
    "description": ("description", "photo_description"),
    "tags": ("tags", "user_tags", "usertags", "keywords"),
    "license": ("license", "licence", "license_name", "licensename"),
    "license_url": ("license_url", "licenseurl"),
    "author": ("author", "user_nickname", "unickname", "nickname", "owner_name", "artist"),
    "user": ("user", "user_id", "uid", "user_nsid", "owner"),
    "page_url": ("page_url", "pageurl", "photo_page_url", "item_url", "foreign_landing_url"),
    "extension": ("extension", "ext"),
    "taken": ("taken", "date_taken", "datetaken"),
    "longitude": ("longitude", "lon", "lng"),
    "latitude": ("latitude", "lat"),
}

_PHOTO_KEY = re.compile(r"[0-9A-Za-z_.-]{1,64}")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S")


class RowError(ValueError):
    """A row that is none of its format."""


@dataclass(frozen=True)
class PhotoRow:
    """One photo that the metadata knows of. Text is decoded; what the source does not tell is empty."""

    photo_id: str
    url: str
    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    license: str = ""
    license_url: str = ""
    author: str = ""
    user: str = ""
    page_url: str = ""
    extension: str = ""
    taken: str = ""
    longitude: str = ""
    latitude: str = ""
    secret_original: str = ""
    video: bool = False


def yfcc_line(line: bytes, columns: int) -> PhotoRow:
    """A line of the dump: tab separated, no quoting; 23 columns (v1) or 25 (v2).

    Raises:
        RowError: it is none.
    """
    f = text_of(line).split("\t")  # never strip() the line: empty fields at its edge would vanish
    if len(f) != columns:
        raise RowError(f"{len(f)} columns, not {columns}")
    return yfcc_row(f if columns == 23 else [f[1], *f[3:]])


def yfcc_row(f: Sequence[str]) -> PhotoRow:
    """The 23 columns of v1; text is URL-encoded with + for space.

    Raises:
        RowError: photo id, download URL or marker cannot be.
    """
    if not _PHOTO_KEY.fullmatch(f[0]):
        raise RowError(f"photo id {f[0][:40]!r}")
    if "://" not in f[14]:
        raise RowError(f"download URL {f[14][:80]!r}")
    if f[22] not in ("0", "1"):
        raise RowError(f"marker {f[22][:20]!r} is neither 0 (photo) nor 1 (video)")
    return PhotoRow(
        photo_id=photo_id(f[14], "yfcc", f[0]),
        url=f[14],
        title=unquote_plus(f[6]),
        description=unquote_plus(f[7]),
        tags=tuple(unquote_plus(t) for t in f[8].split(",") if t),
        license=unquote_plus(f[15]),
        license_url=f[16],
        author=unquote_plus(f[2]) or f[1],
        user=f[1],
        page_url=f[13],
        extension=f[21].lower(),
        taken=f[3],
        longitude=f[10],
        latitude=f[11],
        secret_original=f[20],
        video=f[22] == "1",
    )


def url_line(line: bytes) -> PhotoRow:
    """A line that is a URL.

    Raises:
        RowError: it is none.
    """
    return table_row({"url": text_of(line).strip()}, "url")


def json_line(line: bytes, url_column: str | None) -> PhotoRow:
    """A JSON object with a URL; the export of the YFCC100M search page calls it `item_download_url`.

    Raises:
        RowError: no JSON object, or one without a URL.
    """
    try:
        found = json.loads(text_of(line))
    except (ValueError, RecursionError) as error:
        raise RowError(f"no JSON: {error}") from error
    if not isinstance(found, Mapping):
        raise RowError("no JSON object")
    column = url_column or url_column_of(found)
    if column is None:
        raise RowError("no key that is known to hold a URL; name it in source.url_column")
    return table_row(found, column)


def table_row(row: Mapping[str, Any], url_column: str) -> PhotoRow:
    """A row of named values, of which those with a usual name (NAMES) are kept.

    Raises:
        RowError: there is no URL in its column.
    """
    url = _plain(row.get(url_column))
    if not _URL.match(url):
        raise RowError(f"no URL in {url_column}: {url[:80]!r}")
    lower = {str(name).lower(): value for name, value in row.items() if name != url_column}
    told = {key: next((lower[n] for n in names if n in lower), None) for key, names in NAMES.items() if key != "url"}
    tags = told.pop("tags")
    texts: dict[str, Any] = {key: _plain(value) for key, value in told.items()}
    if "://" in texts["license"] and not texts["license_url"]:
        texts["license"], texts["license_url"] = "", texts["license"]
    texts["extension"] = texts["extension"].lower().lstrip(".")
    many = tags if isinstance(tags, list | tuple) else [tags]
    return PhotoRow(photo_id=photo_id(url), url=url, tags=tuple(t for t in map(_plain, many) if t), **texts)


def url_column_of(columns: Iterable[str]) -> str | None:
    """The column that by its name holds the URL."""
    by_name = {str(c).strip().lower(): c for c in columns}
    return next((by_name[n] for n in NAMES["url"] if n in by_name), None)


def text_of(line: bytes) -> str:
    """A line as text.

    Raises:
        RowError: it is longer than any row, so it may have been cut.
    """
    if len(line) > MAX_LINE:
        raise RowError(f"a line of more than {MAX_LINE} bytes")
    return line.decode("utf-8", "replace").removeprefix("\ufeff").removesuffix("\r")


def _plain(value: Any) -> str:
    """Text of one value that any encoder takes; what is no text, number or date is empty."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # JSON may hold half of a surrogate pair
    if isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value) if isinstance(value, int | float | date) else ""
