"""A fetcher's side of the host book: who may ask which host now, without asking the book for every request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque
from typing import Any

from pipelines.fetch_options import FetchOptions
from pipelines.hosts import LEASE_S, Grant, Report

BEAT_S = 0.25
IDLE_S = 10.0  # a host not used for so long is given back
_log = logging.getLogger(__name__)


class AsideError(Exception):
    """The host is not asked any more in this run; `status` is what its rows get."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


class Desk:
    """One host as this fetcher sees it: its share of slots, who has them, who waits."""

    __slots__ = (
        "answered", "aside", "busy", "delay", "failed", "ms", "name", "not_before", "retry_after", "silent",
        "slots", "throttled", "timer", "told", "used", "waiting", "well",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name, self.slots, self.busy, self.told = name, 0, 0, 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.not_before = self.delay = self.used = 0.0
        self.well = False  # the last photo it was asked for came
        self.aside: tuple[str, str] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.forget()

    def forget(self) -> None:
        """What was reported is not reported again."""
        self.answered, self.failed, self.silent, self.throttled, self.ms, self.retry_after = 0, 0, 0, 0, 0.0, -1.0


class HostTurns:
    """Turns at hosts. Lives on one event loop.

    Args:
        keeper: a `HostBook` in this process, or the handle of the Ray actor that keeps one.
    """

    def __init__(self, keeper: Any, options: FetchOptions) -> None:
        self._keeper, self._most = keeper, options.per_host
        self._me = uuid.uuid4().hex
        self._desks: dict[str, Desk] = {}
        self._dirty: set[Desk] = set()
        self._seen, self._heard_at = 0, time.monotonic()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to talk to the book; needs a running loop."""
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._beat())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):  # the book may be gone before its clients
            async with asyncio.timeout(2):
                await self._call("leave")

    async def take(self, host: str) -> Desk:
        """Wait for a turn at the host, which `give` ends.

        Raises:
            AsideError: the host was set aside, before or while waiting.
        """
        desk = self._desks.get(host)
        if desk is None:
            desk = self._desks[host] = Desk(host)
        if desk.busy < desk.slots and not desk.waiting and not desk.not_before:
            desk.busy += 1
            return desk
        turn = asyncio.get_running_loop().create_future()
        desk.waiting.append(turn)
        self._serve(desk)
        if self._want(desk) > desk.told:
            self._report(desk, now=True)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.exception():
                desk.busy -= 1
                self._serve(desk)
            raise
        return desk

    def give(self, desk: Desk, outcome: str = "", ms: float = 0.0, retry_after: float | None = None) -> None:
        """End a turn. `outcome`: answered, failed, silent, throttled, or empty where the host had no part in it."""
        desk.busy -= 1
        if outcome == "answered":
            desk.answered += 1
            desk.ms += ms
        elif outcome:
            desk.failed += outcome == "failed"
            desk.silent += outcome == "silent"
            desk.throttled += outcome == "throttled"
            if retry_after is not None:
                desk.retry_after = max(desk.retry_after, retry_after)
                self._pause(desk, retry_after)
        self._report(desk, now=outcome in ("failed", "throttled") or desk.busy >= desk.slots)
        self._serve(desk)

    def set_delay(self, host: str, seconds: float) -> None:
        """Crawl-delay of the host's robots.txt."""
        if (desk := self._desks.get(host)) and seconds > desk.delay:
            desk.delay = seconds
            self._pause(desk, seconds)
            self._report(desk, now=True)

    def _pause(self, desk: Desk, seconds: float) -> None:
        if seconds > 0:
            desk.not_before = max(desk.not_before, time.monotonic() + seconds)

    def _serve(self, desk: Desk) -> None:
        """Give free slots to those who wait, unless the host is paused; then come back when it is not."""
        if desk.aside:
            while desk.waiting:
                if not (turn := desk.waiting.popleft()).done():
                    turn.set_exception(AsideError(*desk.aside))
            return
        while desk.waiting and desk.busy < desk.slots:
            if desk.not_before:
                if (left := desk.not_before - time.monotonic()) > 0:
                    if desk.timer is None:
                        desk.timer = asyncio.get_running_loop().call_later(left, self._resume, desk)
                    return
                desk.not_before = 0.0
            if not (turn := desk.waiting.popleft()).done():
                desk.busy += 1
                turn.set_result(None)
                self._pause(desk, desk.delay)

    def _resume(self, desk: Desk) -> None:
        desk.timer = None
        self._serve(desk)

    # -- talking to the book ------------------------------------------------------------------------------------------

    def _want(self, desk: Desk) -> int:
        return min(desk.busy + len(desk.waiting), self._most)

    def _report(self, desk: Desk, now: bool = False) -> None:
        self._dirty.add(desk)
        if now:
            self._wake.set()

    async def _call(self, method: str, *args: Any) -> Any:
        function = getattr(self._keeper, method)
        return await getattr(function, "remote", function)(self._me, *args)  # of a Ray actor, or of a book here

    async def _beat(self) -> None:
        next_round = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):  # wait_for of Python 3.11 can swallow the end of this task
                    await self._wake.wait()
            self._wake.clear()
            now = time.monotonic()
            if now >= next_round:
                next_round = now + IDLE_S / 4
                self._round(now)
            desks, self._dirty = self._dirty, set()
            if not desks:
                continue
            reports = []
            for desk in desks:
                if desk.busy or desk.waiting or desk.answered:
                    desk.used = now
                # Momentarily idle is not done: the share is kept for a while.
                desk.told = self._want(desk) or int(now - desk.used < IDLE_S)
                reports.append(
                    Report(desk.name, desk.slots, desk.busy, desk.told, desk.answered, desk.ms, desk.failed,
                           desk.silent, desk.throttled, desk.retry_after, desk.delay)
                )  # fmt: skip
                desk.forget()
            try:
                await self._call("tell", self._seen, reports)
            except Exception as error:  # noqa: BLE001 - Ray has many ways to say that an actor is gone for now
                _log.warning("the host book does not answer: %s", error)
                self._dirty |= desks
                await asyncio.sleep(BEAT_S)

    def _round(self, now: float) -> None:
        """Give idle hosts back; stop where the book has been silent for so long that it may soon take shares away."""
        silent = now - self._heard_at > LEASE_S / 2
        for desk in list(self._desks.values()):
            if silent:
                desk.slots = 0
            if desk.busy or desk.waiting:
                continue
            if desk.slots == 0 and desk.told == 0 and desk not in self._dirty:
                del self._desks[desk.name]
            elif now - desk.used > IDLE_S:
                self._dirty.add(desk)

    async def _watch(self) -> None:
        while True:
            try:
                seen, reset, grants = await self._call("watch", self._seen)
            except Exception as error:  # noqa: BLE001 - as above
                _log.warning("the host book does not answer: %s", error)
                await asyncio.sleep(BEAT_S)
                continue
            self._heard_at = time.monotonic()
            if reset:  # the book is a new one, or has given this client up
                for desk in self._desks.values():
                    desk.slots = 0
                    self._report(desk, now=True)
            self._seen = seen
            for grant in grants:
                self._apply(grant)

    def _apply(self, grant: Grant) -> None:
        desk = self._desks.get(grant.host)
        if desk is None:
            desk = self._desks[grant.host] = Desk(grant.host)
        shrunk = grant.slots < desk.slots
        desk.slots, desk.delay, desk.aside = grant.slots, max(desk.delay, grant.delay), grant.aside
        self._pause(desk, grant.wait)
        self._report(desk, now=shrunk)
        self._serve(desk)
