"""The fetcher: many URLs at once on one event loop, each ending as exactly one row of `photos`.

Statuses: `ok, gone, forbidden, throttled, server_error, timeout, truncated, not_image, placeholder, too_big, bomb,
opt_out, robots, bad_url`. Only what can heal is asked for again: `HEALABLE`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import hashlib
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

from pipelines.answer import Answer
from pipelines.fetch_options import FetchOptions
from pipelines.host_turns import HostTurns
from pipelines.hosts import HostBook, backoff
from pipelines.photo_checks import Verdict, check_photo, quick_check
from pipelines.request import Requester

HEALABLE = frozenset({"throttled", "server_error", "timeout", "truncated"})
_STEP = 64  # rows taken from a stream's source at once
_GATHER_S = 0.01  # to wake a thread costs as much as to write a row down: rows that end within this wake it once
_UNREAD = 128  # ended rows that nobody took, above which a stream asks for nothing more


class _Stream:
    """Rows of one caller: started on the loop, taken by the caller's thread."""

    def __init__(self) -> None:
        self.done: SimpleQueue[dict[str, Any] | BaseException] = SimpleQueue()
        self.tasks: set[asyncio.Task[None]] = set()
        self.room = asyncio.Event()
        self.room.set()
        self.full = self.closed = False

    def put(self, row: dict[str, Any] | BaseException) -> None:
        """On the loop."""
        self.done.put(row)
        if self.done.qsize() >= _UNREAD:
            self.full = True
            self.room.clear()
            if self.done.qsize() < _UNREAD // 2:  # taken just now, by a thread that saw `full` unset
                self.reopen()

    def take(self, wait: bool) -> list[dict[str, Any] | BaseException]:
        """What has ended, on the caller's thread; with `wait` at least one row."""
        ended = []
        if wait:
            ended.append(self.done.get())
            time.sleep(_GATHER_S)
        with contextlib.suppress(Empty):
            while True:
                ended.append(self.done.get_nowait())
        return ended

    def reopen(self) -> None:
        """On the loop."""
        self.full = False
        self.room.set()


class Fetcher:
    """One event loop in a thread and one HTTP session on it, for as long as this object lives.

    All calls, from whatever thread, share one window of requests and the turns at hosts. Close it, or use it as a
    context manager; at exit of the interpreter it closes itself.

    Args:
        keeper: who holds the limits of hosts: None for a `HostBook` of its own, or what `hosts.keeper_actor` gave.
    """

    def __init__(self, options: FetchOptions, keeper: Any = None) -> None:
        self.options = options
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetcher", daemon=True)
        self._thread.start()
        self._resizer = ThreadPoolExecutor(1, thread_name_prefix="resize") if options.mode == "resize" else None
        self._known = frozenset(options.placeholders)
        self._closed = False
        self._run(self._open(keeper))
        atexit.register(self.close)

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stream(self, rows: Iterable[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
        """One `photos` row per row given, in the order in which they end.

        Rows are taken as they are needed, at most `fetch.pending` ahead, so that a host that has to wait stalls no
        other. Closing the iterator cancels the rows that have not ended.

        Args:
            rows: `photo_id, url, fetch_url, license, author, page_url` each; `fetch_url` is where bytes come from.
        """
        with contextlib.closing(self.batches(rows)) as batches:
            for ended in batches:
                yield from ended

    def batches(self, rows: Iterable[Mapping[str, str]]) -> Generator[list[dict[str, Any]]]:
        """The rows of `stream`, those that ended at about the same time together."""
        stream, source, open_, more = _Stream(), iter(rows), 0, True
        try:
            while more or open_:
                if more and open_ < self.options.pending:
                    batch = list(islice(source, min(_STEP, self.options.pending - open_)))
                    more = bool(batch)
                    open_ += len(batch)
                    if batch:
                        self._loop.call_soon_threadsafe(self._start, stream, batch)
                ended = stream.take(wait=bool(open_) and (not more or open_ >= self.options.pending))
                open_ -= len(ended)
                if stream.full and ended:
                    self._loop.call_soon_threadsafe(stream.reopen)
                if good := [row for row in ended if isinstance(row, dict)]:
                    yield good
                for row in ended:
                    if isinstance(row, BaseException):
                        raise row
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cancel, stream)

    def fetch(self, rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        """One `photos` row per row given, in the same order; ids must differ."""
        ended = {row["photo_id"]: row for row in self.stream(rows)}
        return [ended[row["photo_id"]] for row in rows]

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
        if self._resizer:
            self._resizer.shutdown()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self, keeper: Any) -> None:
        # Names are looked up in threads: dead ones take long, and the usual handful of threads would wait for them.
        self._loop.set_default_executor(ThreadPoolExecutor(self.options.window, thread_name_prefix="lookup"))
        self._turns = HostTurns(keeper or HostBook(self.options), self.options)
        self._turns.start()
        self._requester = Requester(self.options, self._turns)

    async def _shut(self) -> None:
        mine = asyncio.current_task()
        rows = [t for t in asyncio.all_tasks() if t is not mine and t.get_name() == "row"]
        for task in rows:
            task.cancel()
        await asyncio.gather(*rows, return_exceptions=True)
        await self._requester.close()
        await self._turns.close()
        await self._loop.shutdown_default_executor()

    def _start(self, stream: _Stream, rows: Sequence[Mapping[str, str]]) -> None:
        if stream.closed:
            return
        for row in rows:
            task = self._loop.create_task(self._photo(row, stream), name="row")
            stream.tasks.add(task)
            task.add_done_callback(stream.tasks.discard)

    def _cancel(self, stream: _Stream) -> None:
        stream.closed = True
        for task in list(stream.tasks):
            task.cancel()

    async def _photo(self, row: Mapping[str, str], stream: _Stream) -> None:
        try:
            stream.put(await self._ended(row, stream.room))
        except asyncio.CancelledError:
            stream.put(RuntimeError("the fetcher was closed"))  # for a caller that still waits
            raise
        except Exception as error:  # noqa: BLE001 - raised where the rows are taken
            stream.put(error)

    async def _ended(self, row: Mapping[str, str], room: asyncio.Event) -> dict[str, Any]:
        """Ask until there is an answer that stays, or no attempt is left."""
        o, spent, attempts = self.options, 0.0, 0
        while True:
            answer = Answer(final_url=row["fetch_url"])
            await self._requester.attempt(answer, room)
            attempts += answer.asked
            spent += answer.ms
            photo = await self._look(answer) if answer.body is not None else None
            if answer.status not in HEALABLE or answer.aside or attempts >= o.attempts:
                break
            if (answer.retry_after or 0) > o.retry_after_max_s:
                answer.error += "; it asks for a longer wait than fetch.retry_after_max_s"
                break
            # A wait that was asked for is held by the host's desk, for all rows; one of 0 s is no leave to hurry.
            await asyncio.sleep(backoff(o.backoff_s, attempts, row["photo_id"]))
        return as_row(row, answer, photo, attempts, spent)

    async def _look(self, answer: Answer) -> Photo:
        """Check the body, and make it smaller where that is asked for; sets the answer's status."""
        o, body = self.options, answer.body or b""
        verdict = quick_check(body) if o.mode == "raw" else check_photo(body, o.max_pixels, o.max_ratio)
        answer.end(verdict.status, verdict.error)
        photo = Photo(body, verdict)
        if verdict.status != "ok":
            return photo
        if self._known and photo.sha256 in self._known:
            answer.end("placeholder", "a known picture that says that the photo is unavailable")
        elif self._resizer:
            small = await self._loop.run_in_executor(self._resizer, _resize, photo, o.resize_px)
            if small is None:
                answer.end("not_image", "the photo does not decode")
            else:
                return small
        return photo


@dataclass
class Photo:
    """Bytes to keep and what they are. Without a size where the mode looks at none."""

    body: bytes
    verdict: Verdict
    dhash: int | None = None

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


def _resize(photo: Photo, side: int) -> Photo | None:
    from pipelines.photo_resize import resize

    small = resize(photo.body, photo.verdict, side)
    if small is None:
        return None
    body, width, height, dhash = small
    return Photo(body, Verdict("ok", "", width, height), dhash)


def as_row(
    row: Mapping[str, str], answer: Answer, photo: Photo | None, attempts: int, ms: float
) -> dict[str, Any]:  # fmt: skip
    """The `photos` row of a fetched URL. Bytes, hashes and the upright size only when ok."""
    kept = photo if answer.status == "ok" else None
    return {
        "photo_id": row["photo_id"], "url": row["url"], "status": answer.status, "error": answer.error or None,
        "http_status": answer.http_status, "final_url": answer.final_url, "attempts": attempts, "ms": ms,
        "bytes": kept and kept.body, "sha256": kept and kept.sha256, "dhash": kept and kept.dhash,
        "duplicate_of": None,
        "width": (kept and kept.verdict.width) or None, "height": (kept and kept.verdict.height) or None,
        "license": row["license"], "author": row["author"], "page_url": row["page_url"],
    }  # fmt: skip


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
