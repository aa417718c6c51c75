"""Networks that what they are given cannot stop, and that what is wrong with the device does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from models.device_errors import device_broke, out_of_memory

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Careful(Generic[Item, Answer]):
    """Halves a batch that fails until the item that fails is alone.

    Out of memory is such a failure: it costs a split, and from then on batches are no larger than what went through.

    Args:
        ask: answers a batch, an answer an item.
        most: items in a batch at first.
    """

    def __init__(self, ask: Callable[[Sequence[Item]], Sequence[Answer]], most: int) -> None:
        self.ask, self.most = ask, most
        self.good: Sequence[Item] = ()  # an item that was answered, to tell a bad item from a bad device

    def __call__(self, items: Sequence[Item]) -> list[Answer | Exception]:
        """The answer to each item, or what it raised where it is alone to blame.

        Raises:
            RuntimeError: the device broke, or an item that was answered before fails now: no item is to blame.
        """
        if len(items) <= self.most:
            try:
                answers: list[Answer | Exception] = [*self.ask(items)]
                self.good = items[:1]
                return answers
            except Exception as error:  # noqa: BLE001 - whatever an item makes a network raise
                failure = error.with_traceback(None)  # the frames would hold the batch in memory
            if device_broke(failure):
                raise RuntimeError(f"the device broke: {failure}") from failure
            if len(items) == 1:
                self._check_device()
                return [failure]
            if out_of_memory(failure):
                self.most = min(self.most, len(items) // 2)
        half = len(items) // 2
        return [*self(items[:half]), *self(items[half:])]

    def _check_device(self) -> None:
        """Ask again what was answered before."""
        if self.good:
            try:
                self.ask(self.good)
            except Exception as error:
                raise RuntimeError(f"fails on what it has answered before: {error}") from error
