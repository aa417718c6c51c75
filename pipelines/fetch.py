"""The fetcher: many URLs at once on one event loop, each ending as exactly one row of `photos`.

Statuses: `ok, gone, forbidden, throttled, server_error, timeout, truncated, not_image, placeholder, too_big, bomb,
bad_url`. Only what can heal is asked for again: `HEALABLE`.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from yarl import URL

from pipelines.addresses import BadUrlError, ForbiddenError, PublicResolver, check_url
from pipelines.fetch_options import FetchOptions
from pipelines.photo_checks import Verdict, check_photo

HEALABLE = frozenset({"throttled", "server_error", "timeout", "truncated"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What Flickr sends people to when a photo is gone: photo_unavailable.gif, .png, _l.png, ...
_PLACEHOLDER = re.compile(r"photo_unavailable[^/]*\.(?:png|gif|jpe?g)$", re.IGNORECASE)
_HTTP_STATUS = {401: "forbidden", 403: "forbidden", 404: "gone", 408: "timeout", 410: "gone", 429: "throttled",
                451: "forbidden", 400: "bad_url", 414: "bad_url"}  # fmt: skip


@dataclass
class Answer:
    """What one attempt found; filled as it goes, so that a timeout still says how far it came."""

    final_url: str
    status: str = ""
    error: str = ""
    http_status: int | None = None
    retry_after: float | None = None
    body: bytes | None = None
    verdict: Verdict | None = None
    ms: float = 0.0

    def end(self, status: str, error: str = "") -> None:
        self.status, self.error = status, error[:500]


class _Host:
    """Turns at one host: so many at once, and none before `not_before` (monotonic seconds)."""

    def __init__(self, limit: int) -> None:
        self.turns, self.not_before = asyncio.Semaphore(limit), 0.0


class Fetcher:
    """One event loop in a thread and one HTTP session on it, for as long as this object lives.

    All calls, from whatever thread, share one window of requests and the limits per host. Close it, or use it as a
    context manager; at exit of the interpreter it closes itself.
    """

    def __init__(self, options: FetchOptions, mirror: str | None = None) -> None:
        """`mirror` (`http://host:port`) replaces scheme and host of every URL."""
        self.options, self.mirror = options, mirror
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetcher", daemon=True)
        self._thread.start()
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._hosts: dict[str, _Host] = {}
        self._closed = False
        self._run(self._open())
        atexit.register(self.close)

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self, rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        """One `photos` row per row given, in the same order.

        Args:
            rows: `photo_id, url, license, author, page_url` each.
        """
        return self._run(self._fetch_all(rows))

    def close(self) -> None:
        """End the session and the loop; harmless when done before."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._run(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._decoder.shutdown()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        o = self.options
        self._window = asyncio.Semaphore(o.window)
        connector = aiohttp.TCPConnector(limit=0, resolver=PublicResolver(o.allow_hosts), ttl_dns_cache=300)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,  # a photo is never sent compressed; a bomb might be
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=o.connect_s, sock_read=o.read_s),
            headers={"User-Agent": o.agent, "Accept": "image/*", "Accept-Encoding": "identity"},
        )

    async def _shut(self) -> None:
        await self._session.close()
        await self._loop.shutdown_default_executor()

    async def _fetch_all(self, rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(self._photo(row) for row in rows)))

    async def _photo(self, row: Mapping[str, str]) -> dict[str, Any]:
        url = mirrored(row["url"], self.mirror)
        spent, attempt = 0.0, 0
        while True:
            attempt += 1
            answer = Answer(final_url=url)
            await self._attempt(answer)
            spent += answer.ms
            wait = backoff(self.options.backoff_s, attempt, row["photo_id"])
            if answer.status not in HEALABLE or attempt >= self.options.attempts:
                break
            if answer.retry_after is not None:
                if answer.retry_after > self.options.retry_after_max_s:
                    answer.error += "; it asks for a longer wait than fetch.retry_after_max_s"
                    break
                wait = max(wait if answer.retry_after else 0.0, answer.retry_after)
            await asyncio.sleep(wait)
        return as_row(row, answer, attempt, spent)

    async def _attempt(self, answer: Answer) -> None:
        """Ask once, following redirects by hand; every outcome is a status."""
        try:
            await self._follow(answer)
            if answer.body is not None:  # decoded after the host's turn is over
                check = self._loop.run_in_executor(self._decoder, check_photo, answer.body, self.options.max_pixels)
                answer.verdict = await check
                answer.end(answer.verdict.status, answer.verdict.error)
        except BadUrlError as error:
            answer.end("bad_url", str(error))
        except ForbiddenError as error:
            answer.end("forbidden", str(error))
        except TimeoutError as error:
            answer.end("timeout", str(error) or f"longer than total_s={self.options.total_s}")
        except aiohttp.ClientPayloadError as error:
            answer.end("truncated", str(error))
        except aiohttp.InvalidURL as error:
            answer.end("bad_url", f"invalid URL: {error}")
        except (aiohttp.ClientError, OSError) as error:
            answer.end("server_error", f"{type(error).__name__}: {error}")
        except ValueError as error:  # yarl and the IDNA codec on strange hosts
            answer.end("bad_url", f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - one strange answer must not take its whole block along
            answer.end("server_error", f"unexpected {type(error).__name__}: {error}")

    async def _follow(self, answer: Answer) -> None:
        left = self.options.total_s
        for hop in range(self.options.max_redirects + 1):
            host = check_url(answer.final_url, self.options.allow_hosts, redirected=hop > 0)
            if _PLACEHOLDER.search(URL(answer.final_url).path):
                return answer.end("placeholder", "the host says that the photo is unavailable")
            async with self._turn(host) as turns:
                begun = time.monotonic()
                try:
                    async with asyncio.timeout(left):
                        target = await self._ask(answer)
                finally:
                    took = time.monotonic() - begun
                    answer.ms += 1000 * took
                    left -= took
                if answer.retry_after and answer.retry_after <= self.options.retry_after_max_s:
                    turns.not_before = max(turns.not_before, time.monotonic() + answer.retry_after)
            if target is None:
                return None
            answer.final_url = target
        return answer.end("bad_url", f"more than {self.options.max_redirects} redirects")

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[_Host]:
        """Wait for the host before the window, so that a slow host does not hold the window of others."""
        host = self._hosts.setdefault(name, _Host(self.options.per_host))
        async with host.turns:
            while (wait := host.not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            async with self._window:
                yield host

    async def _ask(self, answer: Answer) -> str | None:
        """One request. Returns the URL it redirects to, else None with the answer's status set."""
        async with self._session.get(URL(answer.final_url), allow_redirects=False) as response:
            answer.http_status = response.status
            location = response.headers.get("Location")
            if response.status in _REDIRECTS and location:
                return str(response.url.join(URL(location)))
            if response.status != 200:
                answer.retry_after = parse_retry_after(response.headers.get("Retry-After"))
                fallback = "server_error" if response.status >= 500 or response.status < 400 else "forbidden"
                answer.end(_HTTP_STATUS.get(response.status, fallback), f"HTTP {response.status}")
                return None
            await self._read_body(response, answer)
            return None

    async def _read_body(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        o = self.options
        if (response.content_length or 0) > o.max_bytes:
            response.close()  # not to be drained
            return answer.end("too_big", f"{response.content_length} bytes are more than max_bytes={o.max_bytes}")
        body, begun = bytearray(), time.monotonic()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > o.max_bytes:
                response.close()
                return answer.end("too_big", f"more than max_bytes={o.max_bytes}")
            took = time.monotonic() - begun
            if took > o.grace_s and len(body) < o.min_bytes_per_s * took:
                response.close()
                return answer.end("timeout", f"{len(body) / took:.0f} bytes/s, min_bytes_per_s={o.min_bytes_per_s}")
        answer.body = bytes(body)
        return None


def mirrored(url: str, mirror: str | None) -> str:
    """The URL with the mirror's scheme and host, its path and query kept; a URL that does not parse stays as it is."""
    if mirror is None:
        return url
    try:
        return urlunsplit((*urlsplit(mirror)[:2], *urlsplit(url)[2:]))
    except ValueError:
        return url


def backoff(base_s: float, attempt: int, photo_id: str) -> float:
    """Seconds before attempt + 1: exponential, times 0.5-1.5 from the photo's id, so that a rerun waits the same."""
    jitter = int.from_bytes(hashlib.sha256(f"{photo_id}|{attempt}".encode()).digest()[:4], "big") / 2**32
    return min(base_s * 2 ** (attempt - 1), 30.0) * (0.5 + jitter)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number of seconds or an HTTP date; None if absent or neither."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time())


def as_row(row: Mapping[str, str], answer: Answer, attempts: int, ms: float) -> dict[str, Any]:
    """The `photos` row of a fetched URL. Bytes, their hashes and the upright size only when ok."""
    ok, verdict = answer.status == "ok", answer.verdict
    body = answer.body if ok else None
    return {
        "photo_id": row["photo_id"], "url": row["url"], "status": answer.status, "error": answer.error or None,
        "http_status": answer.http_status, "final_url": answer.final_url, "attempts": attempts, "ms": ms,
        "bytes": body, "sha256": hashlib.sha256(body).hexdigest() if body else None,
        "dhash": None, "duplicate_of": None,
        "width": verdict.width if verdict and ok else None, "height": verdict.height if verdict and ok else None,
        "license": row["license"], "author": row["author"], "page_url": row["page_url"],
    }  # fmt: skip


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
