"""One attempt at one URL: redirects followed by hand, every outcome a status, nothing read beyond its limits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import aiohttp
from yarl import URL

from pipelines.addresses import BadUrlError, ForbiddenError, PublicResolver, check_url
from pipelines.answer import Answer, failure, outcome, parse_retry_after, read_file
from pipelines.fetch_options import FetchOptions
from pipelines.host_turns import AsideError, Desk, HostTurns
from pipelines.robots import MAX_BYTES, Robots, RobotsError, RobotsText, agent_token, opted_out, unpacked
from pipelines.strangers import Strangers

T = TypeVar("T")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What Flickr sends people to when a photo is gone: photo_unavailable.gif, .png, _l.png, ...
_PLACEHOLDER = re.compile(r"photo_unavailable[^/]*\.(?:png|gif|jpe?g)$", re.IGNORECASE)
_HTTP_STATUS = {401: "forbidden", 403: "forbidden", 404: "gone", 408: "timeout", 410: "gone", 429: "throttled",
                451: "forbidden", 400: "bad_url", 414: "bad_url"}  # fmt: skip
_SMALL = 1 << 14  # an error page up to this size is read, so that its connection can be used again
_BUFFER = 1 << 19


class Requester:
    """The HTTP session of a fetcher. Lives on one event loop, shares its window and the turns at hosts."""

    def __init__(self, options: FetchOptions, turns: HostTurns) -> None:
        self.options, self._turns = options, turns
        self._agent = agent_token(options.agent)
        self._robots = Robots(self._agent, options.per_host)
        self._window = asyncio.Semaphore(options.window)
        self._strangers = Strangers(max(1, options.window // 4))
        self._folders = [os.path.realpath(f) for f in options.allow_files]
        connector = aiohttp.TCPConnector(limit=0, resolver=PublicResolver(options.allow_hosts), ttl_dns_cache=300)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,  # a photo is never sent compressed; a bomb might be
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=options.connect_s, sock_read=options.read_s),
            headers={"User-Agent": options.agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            read_bufsize=_BUFFER,
        )

    async def close(self) -> None:
        await self._session.close()

    async def attempt(self, answer: Answer, room: asyncio.Event) -> None:
        """Ask for `answer.final_url`; leaves a body, or a status.

        Args:
            room: no request begins while this is not set.
        """
        try:
            await self._follow(answer, room)
        except AsideError as error:
            answer.aside = True
            answer.end(error.status, str(error))
        except RobotsError as error:
            answer.http_status, answer.retry_after = error.answer.status, error.answer.retry_after
            answer.end("throttled" if error.answer.status == 429 else "server_error", str(error))
        except BadUrlError as error:
            answer.end("bad_url", str(error))
        except ForbiddenError as error:
            answer.end("forbidden", str(error))
        except TimeoutError as error:
            answer.end("timeout", str(error) or f"longer than total_s={self.options.total_s:g}")
        except aiohttp.ClientPayloadError as error:
            answer.end("truncated", str(error))
        except aiohttp.InvalidURL as error:
            answer.end("bad_url", f"invalid URL: {error}")
        except aiohttp.ClientResponseError as error:
            # A header that cannot be read, or a chunk that came right behind a good one.
            status = "truncated" if "chunk" in error.message else "server_error"
            answer.end(status, f"{type(error).__name__}: {error.message}")
        except (aiohttp.ClientError, OSError) as error:
            answer.end("server_error", f"{type(error).__name__}: {error}")
        except ValueError as error:  # yarl and the IDNA codec on strange hosts
            answer.end("bad_url", f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - one strange answer must not take the others along
            answer.end("server_error", f"unexpected {type(error).__name__}: {error}")

    async def _follow(self, answer: Answer, room: asyncio.Event) -> None:
        o = self.options
        if self._folders and answer.final_url.startswith("file:"):
            async with self._slot(room):
                answer.asked = True
                return await asyncio.to_thread(read_file, answer, self._folders, o.max_bytes)
        for hop in range(o.max_redirects + 1):
            url, host = check_url(answer.final_url, o.allow_hosts, redirected=hop > 0)
            if _PLACEHOLDER.search(url.path):
                return answer.end("placeholder", "the host says that the photo is unavailable")
            if o.robots:
                while (rules := self._robots.rules(url)) is None:
                    try:
                        await self._robots.learn(url, lambda at: self._robots_text(at, answer))
                    except Exception as error:
                        answer.asked = hop > 0 or not isinstance(error, AsideError)
                        raise
                    answer.asked = hop > 0  # the photo was not asked for yet
                self._turns.set_delay(host, rules.delay)
                if not rules.allow(answer.final_url, self._agent):
                    return answer.end("robots", f"robots.txt of {host} forbids it to {self._agent}")
            target = await self._in_turn(host, answer, room, lambda url=url: self._ask(url, answer))  # type: ignore[misc]
            if target is None:
                return None
            answer.final_url = target
        return answer.end("bad_url", f"more than {o.max_redirects} redirects")

    async def _in_turn(
        self, host: str, answer: Answer, room: asyncio.Event | None, work: Callable[[], Awaitable[T]]
    ) -> T:
        """Do the work in a turn at the host and within the window, and tell the host's desk how it went.

        The host comes first, so that a slow host does not hold the window of others. Hosts that have answered no
        photo yet, or did not the last time, hold a part of the window together: many silent ones leave the rest.

        Args:
            room: None for a robots.txt: it takes no room, and says little of how the host sends photos.
        """
        desk = await self._turns.take(host)
        seen, took, wait = "", 0.0, None
        try:
            async with self._slot(room, desk):
                begun, answer.asked = time.monotonic(), True
                try:
                    async with asyncio.timeout(self.options.total_s - answer.ms / 1000):
                        done = await work()
                    seen, wait = outcome(answer), answer.retry_after
                    return done
                except RobotsError as error:
                    seen = "throttled" if error.answer.status in (429, 503) else "failed"
                    wait = error.answer.retry_after
                    raise
                except (TimeoutError, aiohttp.ClientError, OSError) as error:
                    seen = failure(error, answer)
                    raise
                finally:
                    took = 1000 * (time.monotonic() - begun)
                    answer.ms += took
        finally:
            if seen in ("failed", "silent") or (seen == "answered" and room):
                desk.well = seen == "answered"
                if desk.well:
                    self._strangers.welcome(desk)
            self._turns.give(desk, seen, took, wait)

    @asynccontextmanager
    async def _slot(self, room: asyncio.Event | None, desk: Desk | None = None) -> AsyncIterator[None]:
        """A place in the window, while there is room for what comes of it."""
        while True:
            if room:
                await room.wait()
            part = self._strangers.place(desk) if desk and not desk.well else contextlib.nullcontext()
            async with part, self._window:
                if not room or room.is_set():
                    yield
                    return

    async def _ask(self, url: URL, answer: Answer) -> str | None:
        """One request. Returns the URL it redirects to, else None with the answer's body or status set."""
        response = await self._session.get(url, allow_redirects=False)
        try:
            answer.http_status = status = response.status
            headers = response.headers
            if status == 200:
                if self.options.opt_out and "X-Robots-Tag" in headers:
                    named = opted_out(headers.getall("X-Robots-Tag"), self.options.opt_out, self._agent)
                    if named:
                        answer.end("opt_out", f"X-Robots-Tag: {named}")
                        return None
                await self._read_body(response, answer)
                return None
            await _skip_body(response)
            if status in _REDIRECTS and (location := headers.get("Location")):
                return str(url.join(URL(location)))
            answer.retry_after = parse_retry_after(headers.get("Retry-After"))
            fallback = "server_error" if status >= 500 or status < 400 else "forbidden"
            answer.end(_HTTP_STATUS.get(status, fallback), f"HTTP {status}")
            return None
        finally:
            _let_go(response)

    async def _read_body(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        o = self.options
        length = response.content_length
        if length is not None and length > o.max_bytes:
            return answer.end("too_big", f"{length} bytes are more than max_bytes={o.max_bytes}")
        if response.headers.get("Transfer-Encoding"):
            _end_with_connection(response)
        content, chunks, size, begun = response.content, [], 0, time.monotonic()
        while chunk := await content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > o.max_bytes:
                return answer.end("too_big", f"more than max_bytes={o.max_bytes}")
            took = time.monotonic() - begun
            if took > o.grace_s and size < o.min_bytes_per_s * took:
                return answer.end("timeout", f"{size / took:.0f} bytes/s, min_bytes_per_s={o.min_bytes_per_s:g}")
        answer.body = b"".join(chunks)
        return None

    async def _robots_text(self, url: URL, answer: Answer) -> RobotsText:
        """The robots.txt at the URL, each redirect in a turn of its own. One that leads where we may not go is none.

        Raises:
            RobotsError: a host answered 429 or 5xx, or what cannot be unpacked.
        """
        location = str(url)
        for hop in range(6):  # RFC 9309, 2.3.1.2: at least five redirects
            try:
                url, host = check_url(str(url.join(URL(location))), self.options.allow_hosts, redirected=hop > 0)
                found = await self._in_turn(host, answer, None, lambda url=url: self._ask_robots(url))  # type: ignore[misc]
            except (ForbiddenError, BadUrlError, ValueError):  # the last: yarl and the IDNA codec
                if hop == 0:
                    raise
                break
            if isinstance(found, RobotsText):
                return found
            location = found
        return RobotsText(404)

    async def _ask_robots(self, url: URL) -> RobotsText | str:
        """One request: a text, or the Location it redirects to."""
        response = await self._session.get(url, allow_redirects=False)
        try:
            status, headers = response.status, response.headers
            if status in _REDIRECTS and (location := headers.get("Location")):
                return location
            body = b""
            while status == 200 and len(body) < MAX_BYTES and (more := await response.content.readany()):
                body += more
            text = unpacked(body, headers.get("Content-Encoding", "")) if body else b""
            found = RobotsText(status, text or b"", parse_retry_after(headers.get("Retry-After")))
            if status == 429 or status >= 500 or text is None:
                raise RobotsError(found)
            return found
        finally:
            _let_go(response)


def _let_go(response: aiohttp.ClientResponse) -> None:
    """Keep the connection if its answer was read to the end; else close it rather than drain it."""
    if response.content.at_eof():
        response.release()
    else:
        response.close()


def _end_with_connection(response: aiohttp.ClientResponse) -> None:
    """aiohttp closes the connection at a broken chunk, but does not tell who waits for the next one."""
    content, connection = response.content, response.connection
    protocol = connection.protocol if connection is not None else None
    closed = protocol.closed if protocol is not None else None

    def tell(_: object) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("broken chunk"))

    if closed is not None:
        closed.add_done_callback(tell)


async def _skip_body(response: aiohttp.ClientResponse) -> None:
    """Read a small error page, so that its connection can be used again; not worth waiting for."""
    if (response.content_length or 0) <= _SMALL and not response.content.at_eof():
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(1):
                await response.content.read(_SMALL)
