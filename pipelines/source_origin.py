"""Where a photo's bytes come from: the URL as the metadata says it, a Flickr size, the Commons bucket, or a mirror."""

from __future__ import annotations

import hashlib
import re

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.source_options import SourceOptions
from pipelines.source_rows import PhotoRow

COMMONS = "https://multimedia-commons.s3-us-west-2.amazonaws.com"
_FLICKR = re.compile(r"([a-z]+://[^/]+/[^/]+/\d+)_([0-9a-f]+)(?:_[a-z0-9]{1,2})?\.(\w+)(?:\?.*)?", re.IGNORECASE)


def fetch_url(row: PhotoRow, options: SourceOptions) -> str | None:
    """The URL to ask for, a mirror apart; None where the row's own cannot be turned into it."""
    if options.origin == "commons":
        return COMMONS + commons_key(row.url)
    if options.origin == "flickr":
        return flickr_url(row, options.size)
    return row.url


def flickr_url(row: PhotoRow, size: str | None) -> str | None:
    """`.../{server}/{id}_{secret}_{size}.jpg`; None is the 500 px of the dump, `o` the original (it has its own secret
    and extension). https://www.flickr.com/services/api/misc.urls.html
    """
    found = _FLICKR.fullmatch(row.url)
    if found is None:
        return None
    stem, secret, _ = found.groups()
    if size == "o":
        known = row.secret_original and row.extension
        return f"{stem}_{row.secret_original}_o.{row.extension}" if known else None
    return f"{stem}_{secret}{f'_{size}' if size else ''}.jpg"


def commons_key(url: str) -> str:
    """Path of a photo in the `multimedia-commons` bucket.

    Its hash is the md5 of the download URL with each byte printed without zero padding, so a plain hexdigest is wrong
    for most photos. It is column 2 of the v2 dump.
    """
    h = "".join(f"{b:x}" for b in hashlib.md5(url.encode(), usedforsecurity=False).digest())
    return f"/data/images/{h[:3]}/{h[3:6]}/{h}.jpg"


def mirrored(urls: pa.ChunkedArray, mirror: str | None) -> pa.ChunkedArray:
    """URLs with the mirror in place of scheme and host; path and query are kept."""
    if mirror is None:
        return urls
    prefix = mirror.replace("\\", "\\\\")
    return pc.replace_substring_regex(urls, pattern=r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]*", replacement=prefix)
