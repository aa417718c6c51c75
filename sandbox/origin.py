"""An HTTP origin on 127.0.0.1 that behaves like the web: files, dead links, redirects, throttling, cut bodies.

`origin.json` in the served folder maps a URL path (with its query, if any) to a behaviour:

    {"/7205/1_ab.jpg": {"file": "photos/1.jpg"},
     "/7205/2_cd.jpg": {"redirect": "/images/photo_unavailable.png"},
     "/7205/3_ef.jpg": {"file": "photos/3.jpg", "status": 503, "fail_first": 1}}

| key | meaning |
|---|---|
| `file` | body, relative to the folder |
| `status` | answer without a body (404, 410, 403, 429, 500, ...) |
| `fail_first` | `status` for the first n requests of this path only, then the file |
| `retry_after` | value of Retry-After beside a failing `status`; 429 says "0" by itself |
| `redirect` | 302 to this path or URL |
| `delay_s` | wait before answering |
| `truncate` | declare the whole length, send this many bytes, close |
| `bytes_per_s` | drip the body at this speed |
| `content_type` | instead of the one guessed from the file name |
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web


class Origin:
    """Serves a folder in a thread with an event loop of its own; use it as a context manager.

    Attributes:
        url: `http://127.0.0.1:<port>`, known once started.
        requests: how often each path was asked for; `/robots.txt` only where `origin.json` has one.
        peak: the most requests that were ever in work at once.
    """

    def __init__(self, directory: str | Path, port: int = 0, max_connections: int = 256) -> None:
        """`port` 0 takes any free one; requests above `max_connections` at once wait for their turn.

        Raises:
            FileNotFoundError: the folder has no `origin.json`.
        """
        self.directory = Path(directory).resolve()
        self.behaviours: dict[str, dict[str, Any]] = json.loads((self.directory / "origin.json").read_text())
        self.requests: Counter[str] = Counter()
        self.peak = 0
        self.url = ""
        self._port, self._limit = port, max_connections
        self._active = 0
        self._ready = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> Origin:
        self._thread = threading.Thread(target=self._run, name="origin", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:  # the port is taken: the caller hears of it in __enter__
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._turns = asyncio.Semaphore(self._limit)
        app = web.Application()
        app.router.add_route("GET", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", self._port, backlog=self._limit)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path if request.raw_path in self.behaviours else request.path
        if path != "/robots.txt" or path in self.behaviours:
            self.requests[path] += 1
        async with self._turns:
            self._active += 1
            self.peak = max(self.peak, self._active)
            try:
                return await self._behave(request, path)
            finally:
                self._active -= 1

    async def _behave(self, request: web.Request, path: str) -> web.StreamResponse:
        how = self.behaviours.get(path)
        if how is None:
            return web.Response(status=404)
        if delay := how.get("delay_s"):
            await asyncio.sleep(delay)
        if "redirect" in how:
            return web.Response(status=302, headers={"Location": how["redirect"]})
        if "status" in how and self.requests[path] <= how.get("fail_first", float("inf")):
            wait = how.get("retry_after", "0" if how["status"] == 429 else None)
            return web.Response(status=how["status"], headers={"Retry-After": str(wait)} if wait is not None else {})
        name = (self.directory / how["file"]).resolve()
        if not name.is_relative_to(self.directory) or not name.is_file():
            return web.Response(status=404)
        kind = how.get("content_type") or mimetypes.guess_type(name.name)[0] or "application/octet-stream"
        body = await asyncio.to_thread(name.read_bytes)
        if "truncate" not in how and "bytes_per_s" not in how:
            return web.Response(body=body, headers={"Content-Type": kind})
        return await _send_badly(request, body, kind, how)


async def _send_badly(request: web.Request, body: bytes, kind: str, how: dict[str, Any]) -> web.StreamResponse:
    """Send the whole length's header, then the body cut or slowly."""
    response = web.StreamResponse(headers={"Content-Type": kind})
    response.content_length = len(body)
    await response.prepare(request)
    sent = body[: how.get("truncate", len(body))]
    speed = how.get("bytes_per_s")
    step = max(1, int(speed * 0.1)) if speed else max(1, len(sent))
    for start in range(0, len(sent), step):
        await response.write(sent[start : start + step])
        if speed:
            await asyncio.sleep(step / speed)
    if len(sent) < len(body) and request.transport is not None:
        request.transport.close()
    return response
