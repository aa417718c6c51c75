"""What a host asks of crawlers: robots.txt (RFC 9309) and the X-Robots-Tag header."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from protego import Protego
from yarl import URL

KEEP_S = 24 * 3600.0  # RFC 9309, 2.4
MAX_BYTES = 500 * 1024  # 2.5: what is longer is cut
MAX_ORIGINS = 10_000
# Directives of X-Robots-Tag that have a colon of their own; any other word before a colon names a crawler.
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


@dataclass
class RobotsText:
    """An answer to the request for a robots.txt."""

    status: int
    body: bytes = b""
    retry_after: float | None = None


class RobotsError(Exception):
    """robots.txt cannot be had: until it can, nothing may be asked (RFC 9309, 2.3.1.4)."""

    def __init__(self, answer: RobotsText) -> None:
        problem = "cannot be unpacked" if answer.status == 200 else f"HTTP {answer.status}"
        super().__init__(f"robots.txt: {problem}; nothing may be asked before it can be read")
        self.answer = answer


@dataclass(frozen=True)
class Rules:
    """`parsed` None allows everything. `delay`: Crawl-delay in seconds."""

    parsed: Protego | None
    delay: float
    until: float

    def allow(self, url: str, agent: str) -> bool:
        return self.parsed is None or self.parsed.can_fetch(url, agent)


@dataclass(eq=False)
class _Asking:
    """One origin whose rules somebody wants: who asks, and how the last one failed."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    failed: int = 0
    error: Exception | None = None
    shares: int = 0  # how many more of those who waited fail with it


class Robots:
    """Rules of many origins, each asked for once a day, by one request however many rows wait for it.

    Args:
        agent: the product token that rules may name.
        share: how many rows one failed request counts for, at most; the others go on waiting.
    """

    def __init__(self, agent: str, share: int) -> None:
        self.agent, self._share = agent, share
        self._known: dict[tuple[str, str], Rules] = {}
        self._asking: WeakValueDictionary[tuple[str, str], _Asking] = WeakValueDictionary()

    def rules(self, url: URL) -> Rules | None:
        """The rules of the URL's origin, or None where they must be learnt first."""
        found = self._known.get((url.scheme, url.raw_authority))
        return found if found and found.until > time.monotonic() else None

    async def learn(self, url: URL, get: Callable[[URL], Awaitable[RobotsText]]) -> None:
        """Have the robots.txt of the URL's origin asked for by one caller; the others wait, holding nothing.

        Who asks in vain raises, and so do a few of those who waited; the next one then asks.

        Args:
            get: asks for the robots.txt at a URL.

        Raises:
            Exception: what `get` raised.
        """
        key = (url.scheme, url.raw_authority)
        origin = self._asking.setdefault(key, _Asking())
        came = origin.failed
        async with origin.lock:
            if self.rules(url):
                return
            if origin.error and origin.shares > 0 and origin.failed > came:
                origin.shares -= 1
                raise origin.error
            try:
                await self._ask(url, get)
            except Exception as error:
                origin.failed, origin.error, origin.shares = origin.failed + 1, error, self._share - 1
                raise

    async def _ask(self, url: URL, get: Callable[[URL], Awaitable[RobotsText]]) -> None:
        answer = await get(URL.build(scheme=url.scheme, authority=url.authority, path="/robots.txt"))
        parsed = parse_robots(answer.body) if answer.status == 200 else None
        delay = (parsed.crawl_delay(self.agent) or 0.0) if parsed else 0.0
        while len(self._known) >= MAX_ORIGINS:
            self._known.pop(next(iter(self._known)))
        until = time.monotonic() + KEEP_S
        self._known[url.scheme, url.raw_authority] = Rules(parsed, delay if 0 <= delay < KEEP_S else 0.0, until)


def unpacked(body: bytes, encoding: str) -> bytes | None:
    """A body without its Content-Encoding, cut at `MAX_BYTES`; None if it cannot be unpacked."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    text = b""
    try:
        while body and len(text) < MAX_BYTES and encoding in ("gzip", "x-gzip", "deflate"):
            member = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as its first bytes say
            text += member.decompress(body, MAX_BYTES - len(text))
            body = member.unused_data
    except zlib.error:
        pass
    return text or None


def parse_robots(body: bytes) -> Protego | None:
    """Rules of a robots.txt; None where it has none."""
    text = body[:MAX_BYTES].decode("utf-8-sig", "replace")
    return Protego.parse(text) if "disallow" in text.lower() or "delay" in text.lower() else None


def agent_token(user_agent: str) -> str:
    """The product token of a User-Agent, the name that robots.txt knows a crawler by."""
    found = re.match(r"[A-Za-z_-]+", user_agent.strip())
    return found[0].lower() if found else "*"


def opted_out(headers: Iterable[str], directives: Collection[str], agent: str) -> str:
    """The directive by which X-Robots-Tag headers forbid this use, or "".

    Args:
        headers: values of all X-Robots-Tag headers: `noai, noindex`, or `somebot: noai` for that crawler only.
        directives: what counts, lower case.
        agent: our product token.
    """
    for header in headers:
        meant = True  # until a crawler is named, everybody is meant
        for item in header.lower().split(","):
            name, colon, value = item.partition(":")
            if colon and name.strip() not in _VALUED:
                meant, item = name.strip() in (agent, "*"), value
            if meant and item.strip() in directives:
                return item.strip()
    return ""
