"""An origin of everything that goes wrong on the web: raw sockets on 127.0.0.1 - 127.0.0.4, one path per kind.

`KINDS` maps a kind to how it answers and to the status that a fetcher must give it. The path is `/<kind>/<anything>`;
one origin serves all of them on every host, records when it was asked and how many requests each host had at once.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import NamedTuple

import cv2
import numpy as np

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
ROBOTS = b"User-agent: *\nDisallow: /robots_all/\n\nUser-agent: wildshape\nDisallow: /robots_me/\n"
LONG = 3600


def _photo() -> bytes:
    rough = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", cv2.resize(rough, (320, 240)))[1].tobytes()


def _png(width: int, height: int) -> bytes:
    """A whole PNG of zeros: few bytes for any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(10**6, height * (width + 1))), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PHOTO = _photo()
PLACEHOLDER, PNG_BOMB = _png(7, 7), _png(60_000, 60_000)
GZIP, GZIP_BOMB = gzip.compress(PHOTO), gzip.compress(bytes(10**7))


@dataclass
class Call:
    """A request and the connection it came by."""

    origin: FaultOrigin
    host: str
    path: str
    times: int  # how often this path was asked for, this time included
    writer: asyncio.StreamWriter

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send(self, status: int = 200, body: bytes = b"", *headers: str, length: int | None = None) -> None:
        length = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {length}", "Content-Type: image/jpeg", *headers]
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def open_ended(self, body: bytes, *headers: str) -> None:
        """A body without a length, which ends with the connection."""
        await self.raw("\r\n".join(["HTTP/1.1 200 OK", "Connection: close", *headers]).encode() + b"\r\n\r\n" + body)
        self.writer.close()

    async def chunked(self, data: bytes) -> None:
        await self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data)

    async def silence(self) -> None:
        await asyncio.sleep(LONG)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def redirect(self, target: str | None, status: int = 302) -> None:
        await self.send(status, b"", *([f"Location: {target}"] if target else []))

    async def busy_once(self, status: int, wait: str | None) -> None:
        if self.times == 1:
            return await self.send(status, b"", *([f"Retry-After: {wait}"] if wait else []))
        return await self.send(200, PHOTO)


async def _drip(c: Call) -> None:
    await c.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PHOTO))
    for i in range(len(PHOTO)):
        await c.raw(PHOTO[i : i + 1])
        await asyncio.sleep(0.02)


async def _partial(c: Call, data: bytes, then: Callable[[], object]) -> None:
    await c.raw(data)
    found = then()
    if asyncio.iscoroutine(found):
        await found


async def _later(c: Call, first: bytes, second: bytes) -> None:
    await c.raw(first)
    await asyncio.sleep(0.1)
    await c.raw(second)


async def _endless(c: Call) -> None:
    await c.raw(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(256):
        await c.raw(bytes(1 << 20))


async def _early(c: Call) -> None:
    await c.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
    await c.send(200, PHOTO)


class Kind(NamedTuple):
    status: str
    answer: Callable[[Call], Awaitable[None]]
    attempts: int = 1


_CHUNK = b"%x\r\n" % len(PHOTO) + PHOTO + b"\r\n"
_HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PHOTO)

# `attempts` of kinds that heal or are tried again are those of a fetcher with attempts=2.
KINDS: dict[str, Kind] = {
    "fine": Kind("ok", lambda c: c.send(200, PHOTO)),
    "no_length": Kind("ok", lambda c: c.open_ended(PHOTO)),
    "chunked": Kind("ok", lambda c: c.chunked(_CHUNK + b"0\r\n\r\n")),
    "wrong_type": Kind("ok", lambda c: c.open_ended(PHOTO, "Content-Type: text/html")),
    "early_hints": Kind("ok", _early),
    "status_400": Kind("bad_url", lambda c: c.send(400)),
    "status_401": Kind("forbidden", lambda c: c.send(401)),
    "status_403": Kind("forbidden", lambda c: c.send(403, b"<html>")),
    "status_404": Kind("gone", lambda c: c.send(404, b"<html>not here</html>")),
    "status_410": Kind("gone", lambda c: c.send(410)),
    "status_414": Kind("bad_url", lambda c: c.send(414)),
    "status_418": Kind("forbidden", lambda c: c.send(418)),
    "status_451": Kind("forbidden", lambda c: c.send(451)),
    "status_408": Kind("timeout", lambda c: c.send(408), 2),
    "status_429": Kind("throttled", lambda c: c.send(429), 2),
    "status_500": Kind("server_error", lambda c: c.send(500), 2),
    "status_502": Kind("server_error", lambda c: c.send(502), 2),
    "status_503": Kind("server_error", lambda c: c.send(503), 2),
    "status_204": Kind("server_error", lambda c: c.raw(b"HTTP/1.1 204 No Content\r\n\r\n"), 2),
    "error_page_hangs": Kind("gone", lambda c: c.send(404, b"<html>", length=100)),
    "wait_seconds": Kind("ok", lambda c: c.busy_once(429, "1"), 2),
    "wait_date": Kind("ok", lambda c: c.busy_once(503, formatdate(time.time() + 2, usegmt=True)), 2),
    "wait_nothing": Kind("ok", lambda c: c.busy_once(429, "0"), 2),
    "wait_past": Kind("ok", lambda c: c.busy_once(503, "Thu, 01 Jan 1970 00:00:00 GMT"), 2),
    "wait_nonsense": Kind("ok", lambda c: c.busy_once(429, "soon"), 2),
    "heals": Kind("ok", lambda c: c.busy_once(500, None), 2),
    "hang": Kind("timeout", lambda c: c.silence(), 2),
    "hang_header": Kind("timeout", lambda c: _partial(c, b"HTTP/1.1 200 OK\r\nContent-", c.silence), 2),
    "hang_body": Kind("timeout", lambda c: _partial(c, _HEADER + PHOTO[:900], c.silence), 2),
    "drip": Kind("timeout", _drip, 2),
    "cut": Kind("truncated", lambda c: _partial(c, _HEADER + PHOTO[:900], c.writer.close), 2),
    "cut_no_length": Kind("truncated", lambda c: c.open_ended(PHOTO[:-300]), 2),
    "cut_chunk": Kind("truncated", lambda c: _partial(c, _CHUNK_HEAD + _CHUNK[:900], c.writer.close), 2),
    "reset": Kind("server_error", lambda c: _partial(c, b"", c.reset), 2),
    "reset_body": Kind("truncated", lambda c: _partial(c, _HEADER + PHOTO[:900], c.reset), 2),
    "hang_up": Kind("server_error", lambda c: _partial(c, b"", c.writer.close), 2),
    "html": Kind("not_image", lambda c: c.send(200, b"<html>sign in to see this photo</html>")),
    "empty": Kind("not_image", lambda c: c.send(200, b"")),
    "gzip": Kind("not_image", lambda c: c.send(200, GZIP, "Content-Encoding: gzip")),
    "gzip_bomb": Kind("not_image", lambda c: c.send(200, GZIP_BOMB, "Content-Encoding: gzip")),
    "png_bomb": Kind("bomb", lambda c: c.send(200, PNG_BOMB)),
    "ratio_bomb": Kind("bomb", lambda c: c.send(200, _png(2000, 1))),
    "too_big": Kind("too_big", lambda c: c.send(200, b"\xff\xd8\xff", length=256 << 20)),
    "endless": Kind("too_big", _endless),
    "placeholder": Kind("placeholder", lambda c: c.redirect("/images/photo_unavailable.png")),
    "placeholder_bytes": Kind("placeholder", lambda c: c.send(200, PLACEHOLDER)),
    "redirect": Kind("ok", lambda c: c.redirect("/fine/there", 301)),
    "redirect_host": Kind("ok", lambda c: c.redirect(c.origin.url("fine", HOSTS[1], "there.jpg"), 307)),
    "redirect_loop": Kind("bad_url", lambda c: c.redirect(c.path)),
    "redirect_nowhere": Kind("server_error", lambda c: c.redirect(None), 2),
    "redirect_metadata": Kind("forbidden", lambda c: c.redirect("http://169.254.169.254/latest/meta-data/")),
    "redirect_file": Kind("forbidden", lambda c: c.redirect("file:///etc/passwd")),
    "redirect_nonsense": Kind("bad_url", lambda c: c.redirect("http://[::bad/")),
    "garbage": Kind("server_error", lambda c: _partial(c, b"\x00\xffnot http at all\r\n\r\n", c.writer.close), 2),
    "bad_header": Kind("server_error", lambda c: c.raw(b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n"), 2),
    "bad_length": Kind("server_error", lambda c: c.raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"), 2),
    "long_header": Kind("server_error", lambda c: c.send(200, PHOTO, "X-Long: " + "a" * 100_000), 2),
    "bad_chunk": Kind("truncated", lambda c: _later(c, _CHUNK_HEAD, b"zz\r\n" + PHOTO), 2),
    "bad_chunk_at_once": Kind("truncated", lambda c: c.raw(_CHUNK_HEAD + b"zz\r\n" + PHOTO), 2),
    "robots_all": Kind("ok", lambda c: c.send(200, PHOTO)),  # meant for those whom no rule names
    "robots_me": Kind("robots", lambda c: c.send(200, PHOTO), 0),
    "opt_out": Kind("opt_out", lambda c: c.send(200, PHOTO, "X-Robots-Tag: noai, noimageai")),
    "opt_out_me": Kind("opt_out", lambda c: c.send(200, PHOTO, "X-Robots-Tag: other: all, wildshape: NoIndex")),
    "opt_out_other": Kind("ok", lambda c: c.send(200, PHOTO, "X-Robots-Tag: otherbot: noai, noindex")),
}  # fmt: skip
_CHUNK_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class _Reader(asyncio.StreamReader):
    """Says when the client hung up, also while nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: BaseException) -> None:
        super().set_exception(exc)
        self.gone.set()


class FaultOrigin:
    """Serves every kind on every host, in a thread; use it as a context manager.

    Attributes:
        asked: (seconds of the monotonic clock, host, path) of every request, in order.
        peak: the most requests that each host ever had in work at once.
        robots: what a host answers for /robots.txt instead of `ROBOTS`: a status, a text, or in a way of its own.
        down: how many requests more are answered with 502, whatever they ask for.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[float, str, str]] = []
        self.peak: Counter[str] = Counter()
        self.robots: dict[str, int | bytes | Callable[[Call], Awaitable[None]]] = {}
        self.down = 0
        self._times: Counter[str] = Counter()
        self._busy: defaultdict[str, int] = defaultdict(int)
        self._ready = threading.Event()

    def url(self, kind: str, host: str = HOSTS[0], name: str = "1.jpg") -> str:
        return f"http://{host}:{self.port}/{kind}/{name}"

    def requests(self, path: str) -> list[float]:
        """When a path was asked for."""
        return [at for at, _, p in self.asked if p == path]

    def __enter__(self) -> FaultOrigin:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        servers = [await self._loop.create_server(self._protocol, HOSTS[0], 0)]
        self.port = servers[0].sockets[0].getsockname()[1]
        servers += [await self._loop.create_server(self._protocol, h, self.port) for h in HOSTS[1:]]
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        rest = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(_Reader(), self._connected)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, _Reader)
        host = writer.get_extra_info("sockname")[0]
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                self.asked.append((time.monotonic(), host, path))
                await asyncio.sleep(0.005)  # who hung up before this request is seen to be gone before it is counted
                self._times[path] += 1
                self._busy[host] += 1
                self.peak[host] = max(self.peak[host], self._busy[host])
                answer = asyncio.ensure_future(self._answer(Call(self, host, path, self._times[path], writer)))
                gone = asyncio.ensure_future(reader.gone.wait())
                try:
                    await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not answer.done():
                        return
                    answer.result()
                finally:
                    self._busy[host] -= 1
                    answer.cancel()
                    gone.cancel()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, call: Call) -> None:
        if call.path == "/robots.txt":
            said = self.robots.get(call.host, ROBOTS)
            if callable(said):
                return await said(call)
            return await (call.send(said) if isinstance(said, int) else call.send(200, said))
        if self.down:
            self.down -= 1
            return await call.send(502)
        kind = KINDS.get(call.path.split("/")[1])
        return await (kind.answer(call) if kind else call.send(404))


def row(url: str) -> dict[str, str]:
    """What the fetcher is given of a photo that only its URL is known of."""
    return {"photo_id": url, "url": url, "fetch_url": url, "license": "", "author": "", "page_url": ""}
