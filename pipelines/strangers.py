"""A part of the window for hosts that are not known to answer: many silent ones together leave the rest to others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipelines.host_turns import Desk


class Strangers:
    """Places for requests to hosts that are not `well`; hosts that wait get them by turns. Lives on one event loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[Desk, deque[asyncio.Future[bool]]] = {}

    @asynccontextmanager
    async def place(self, desk: Desk) -> AsyncIterator[None]:
        """A place, unless the host is well or becomes so while this waits: then none is needed."""
        held = not desk.well and await self._take(desk)
        try:
            yield
        finally:
            if held:
                self._give()

    def welcome(self, desk: Desk) -> None:
        """The host answers: those of its requests that wait need not."""
        for turn in self._waiting.pop(desk, ()):
            if not turn.done():
                turn.set_result(False)

    async def _take(self, desk: Desk) -> bool:
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(desk, deque()).append(turn)
        self._serve()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self._give()
            raise

    def _give(self) -> None:
        self._free += 1
        self._serve()

    def _serve(self) -> None:
        while self._free and self._waiting:
            desk = next(iter(self._waiting))
            turns = self._waiting.pop(desk)
            turn = turns.popleft()
            if turns:
                self._waiting[desk] = turns  # behind the others
            if not turn.done():
                self._free -= 1
                turn.set_result(True)
