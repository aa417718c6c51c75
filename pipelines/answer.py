"""What one attempt at a URL found, and what that says about the host."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit

import aiohttp

from pipelines.addresses import ForbiddenError


@dataclass(slots=True)
class Answer:
    """What one attempt found; filled as it goes, so that a timeout still says how far it came."""

    final_url: str
    status: str = ""
    error: str = ""
    http_status: int | None = None
    retry_after: float | None = None
    body: bytes | None = None
    ms: float = 0.0
    asked: bool = False  # a request was made, if only for robots.txt
    aside: bool = False  # not asked, because the host is asked nothing more in this run

    def end(self, status: str, error: str = "") -> None:
        self.status, self.error = status, error[:500]


def outcome(answer: Answer) -> str:
    """How an answer counts at its host: answered, failed, throttled."""
    status = answer.http_status or 200
    if status in (429, 503):
        return "throttled"
    return "failed" if status >= 500 else "answered"


def failure(error: Exception, answer: Answer) -> str:
    """How a request that raised counts at its host: one that sent a header is not down."""
    if answer.http_status == 200 or isinstance(error, aiohttp.ClientPayloadError):
        return "answered"
    connected = not isinstance(error, aiohttp.ConnectionTimeoutError)
    return "silent" if isinstance(error, TimeoutError) and connected else "failed"


def read_file(answer: Answer, folders: Sequence[str], max_bytes: int) -> None:
    """Read a `file://` URL, if it lies below one of the folders (real paths)."""
    parts = urlsplit(answer.final_url)
    path = os.path.realpath(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not any(os.path.commonpath([path, f]) == f for f in folders):
        raise ForbiddenError("the file is not below a folder of fetch.allow_files")
    if not os.path.isfile(path):
        return answer.end("gone", "no such file")
    try:
        with open(path, "rb") as f:
            body = f.read(max_bytes + 1)
    except PermissionError as error:
        return answer.end("forbidden", str(error))
    if len(body) > max_bytes:
        return answer.end("too_big", f"more than max_bytes={max_bytes}")
    answer.body = body
    return None


def parse_retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number of seconds (at most 1e9) or an HTTP date; None if absent or neither."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value.strip()):
        return min(float(value), 1e9)
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
