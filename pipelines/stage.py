"""A stage: units of work from one table to the next, streamed through actors by Ray Data.

A unit is one output part. Its worker writes and commits the part itself, so a stage may be killed at any instant:
the next run does the units that have no manifest yet. Units have the same rows however often the stage was
interrupted, and a model sees the same batches, so numbers repeat on CPU.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from tables import Dataset
from trainers import logs, meters
from trainers.cluster import check_room, connect

if TYPE_CHECKING:
    from rich.progress import Progress

_log = logging.getLogger(__name__)

DEATHS = 3  # of actors with one and the same unit, after which the unit is lost
ON_GPU = 3  # parts in work in one actor on a GPU: one is computed while others are read, decoded and committed


class Worker(Protocol):
    """Lives as long as its actor: loads models once, then does one unit a call.

    A call gets the part's name and the unit's payload (plain JSON), commits the part and returns counts.
    """

    def __call__(self, part: str, payload: Any) -> Mapping[str, int]: ...


class GivenUp(Exception):
    """What is said of a unit that too many actors died of."""


class Actor:
    """What Ray Data holds: turns a batch of one unit into a call and an exception into a row.

    Args:
        output: where the worker commits.
        run: name of this run of the stage, no other's.
        names: what its lines of the log carry.
    """

    def __init__(
        self,
        factory: type[Any],
        args: Mapping[str, Any],
        output: Dataset,
        run: str,
        threads: int,
        names: Mapping[str, str],
    ) -> None:
        self.log, self.stage = logs.Gathered(names), f"{output.table}/{output.fingerprint}"
        self.work, self.output, self.run = factory(**args), output, run
        self._door, self._left, self._inside = threading.Lock(), threading.Condition(), 0
        gc.freeze()  # what is loaded lives as long as the actor: the collector need not walk it again and again
        if torch := sys.modules.get("torch"):  # a crawl's worker needs none, and to import it takes seconds
            torch.set_num_threads(threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        part, payload = str(batch["part"][0]), json.loads(str(batch["payload"][0]))
        counts, error = self.attempt(part, payload)
        return {"part": [part], "counts": [json.dumps(counts)], "error": [error], "log": [self.log.take()]}

    def attempt(self, part: str, payload: Any) -> tuple[dict[str, int], str]:
        """The worker's counts, and what is to be said of what it raised or nothing."""
        with self.noted(part) as counts:
            try:
                with self.trying(part):
                    counts.update(self.work(part, payload))
                return dict(counts), ""
            except Exception as error:  # noqa: BLE001 - a poison unit is a row of the stage's result, the others go on
                self.lost(error)
                return {}, told(error)

    @contextmanager
    def noted(self, part: str) -> Iterator[Counter[str]]:
        """Log what is said meanwhile as the unit's, and at the end its counts, which the caller fills in."""
        counts, began = Counter[str](), time.monotonic()
        with logs.within(stage=self.stage, unit=part):
            yield counts
            logs.event(_log, "unit ended", seconds=round(time.monotonic() - began, 3), **counts)

    def lost(self, error: Exception) -> None:
        """Log that the unit in work is lost."""
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        logs.event(_log, f"unit lost: {reason}", logging.ERROR, traceback=told(error))

    @contextmanager
    def trying(self, part: str) -> Iterator[None]:
        """Note for the while that a unit is in work: what is noted at its next try is how many actors died meanwhile.

        Ray tries a unit again whose actor died, however often. Of several in work nobody knows which one it was, so
        each of them is tried again alone; then no other is given up for the one that kills.

        Raises:
            GivenUp: `DEATHS` actors died of it.
        """
        files, note = self.output.files, f"{self.output.path}/_tries/{self.run}-{part}.json"
        deaths = files.read_json(note) or 0
        if deaths >= DEATHS:
            raise GivenUp(f"{deaths} actors died of it")
        with self._alone() if deaths else self._among_others():
            files.write_json(note, deaths + 1)
            try:
                yield
            finally:
                files.fs.delete_file(files.full(note))

    @contextmanager
    def _among_others(self) -> Iterator[None]:
        with self._door, self._left:
            self._inside += 1
        try:
            yield
        finally:
            with self._left:
                self._inside -= 1
                self._left.notify()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no unit in until this one is through, and wait until those inside have left."""
        with self._door:
            with self._left:
                self._left.wait_for(lambda: not self._inside)
            yield


def told(error: Exception) -> str:
    """What a unit's row says of it: the traceback, unless the unit was not even begun."""
    return str(error) if isinstance(error, GivenUp) else "".join(traceback.format_exception(error))


def run_stage(
    output: Dataset,
    units: Mapping[str, Any],
    worker: type[Worker],
    args: Mapping[str, Any],
    resources: Any,
    input_state: str,
    finish: bool = True,
    at_once: int = 1,
    show: Callable[[Iterator[dict[str, Any]]], Iterator[dict[str, Any]]] | None = None,
) -> Counter[str]:
    """Do the units that are not committed yet, then mark the dataset finished for this input.

    Args:
        output: where the worker commits; a unit is done when a part of its name is committed.
        units: part name -> payload (plain JSON), in the order to do them.
        worker: class whose instances do a unit; `args` are its keyword arguments.
        resources: the `resources` section of the config.
        input_state: what the units were made from; the same state and finished means nothing to do.
        finish: write the finished marker here; False where the caller has more to commit first.
        at_once: units in work at once in one actor, each in a thread of its own.
        show: passes the stage's rows on and shows how far it is; None counts units.

    Returns:
        The counts the workers gave, summed over this run, with `units`, `units_skipped` and `units_lost`.

    Raises:
        InputError: an actor books more than a local Ray has.
        RuntimeError: more than `resources.failure_budget` of the units were lost; the rest is committed.
    """
    committed = set(output.parts())
    todo = {p: u for p, u in units.items() if p not in committed}
    totals: Counter[str] = Counter(units=len(todo), units_skipped=len(units) - len(todo))
    errors: list[str] = []
    if todo:
        with connect(resources):
            check_room(resources)
            output.unfinish()
            actor = {"factory": worker, "args": dict(args), "output": output, "run": uuid.uuid4().hex[:8]}
            rows = _stream(todo, actor, resources, at_once)
            with logs.within(stage=f"{output.table}/{output.fingerprint}"):
                logs.event(_log, "stage begins", units=len(todo), skipped=totals["units_skipped"])
                for ended, row in enumerate(show(rows) if show else progress(rows, output.table, len(todo)), 1):
                    counts = json.loads(row["counts"])
                    totals.update(counts)
                    if row["error"]:
                        errors.append(f"{row['part']}: {row['error']}")
                    logs.replay(row["log"])
                    meters.unit(output.table, counts, bool(row["error"]))
                    meters.put("wildshape_units_left", len(todo) - ended, stage=output.table)
                logs.event(_log, "stage ended", **{**totals, "units_lost": len(errors)})
    totals["units_lost"] = len(errors)
    check_lost(output.table, errors, len(units), resources)
    if finish and not output.is_finished(input_state):
        output.finish(input_state, totals)
    return totals


def parts_at_once(resources: Any) -> int:
    """How many parts an actor with a network is to have in work: so its CPUs decode while its GPU computes."""
    return ON_GPU if resources.gpus else 1


def check_lost(name: str, errors: list[str], units: int, resources: Any) -> None:
    """Raise RuntimeError if more of the units were lost than `resources.failure_budget` allows."""
    if len(errors) > resources.failure_budget * units:
        raise RuntimeError(f"{name}: {len(errors)} of {units} units were lost; first: {errors[0]}")


def _stream(todo: Mapping[str, Any], actor: dict[str, Any], resources: Any, at_once: int) -> Iterator[dict[str, Any]]:
    import ray

    rows = [{"part": p, "payload": json.dumps(u)} for p, u in todo.items()]
    units = ray.data.from_items(rows, override_num_blocks=len(rows))
    yield from through(units, Actor, actor, resources, at_once, len(rows)).iter_rows()


def through(
    units: Any, actor: type[Any], args: dict[str, Any], resources: Any, at_once: int = 1, most: int | None = None
) -> Any:
    """Send a Ray dataset of units through actors, `resources.actors` of them, each with its CPUs, GPUs and threads.

    Args:
        actor: called with a batch of one unit; `args` and `threads` are its keyword arguments.
        most: more actors than this have nothing to do.
    """
    import ray

    return units.map_batches(
        actor,
        fn_constructor_kwargs={**args, "threads": int(resources.threads), "names": logs.ids()},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=min(int(resources.actors), most or int(resources.actors)),
            max_concurrent_calls_per_actor=at_once, enable_true_multi_threading=at_once > 1,
        ),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus or None,
    )  # fmt: skip


def progress(rows: Iterator[dict[str, Any]], name: str, total: int) -> Iterator[dict[str, Any]]:
    """Pass rows on and show a bar with the rate and the time left."""
    with progress_bar() as bar:
        task = bar.add_task(name, total=total)
        for row in rows:
            yield row
            bar.advance(task)


def watched(rows: Iterator[dict[str, Any]], look: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """Pass rows on while a thread looks every second at what the workers have committed meanwhile; a last look ends it.

    A slow object store is not asked all the time: looking takes at most a twentieth of it.
    """
    over = threading.Event()

    def keep_looking() -> None:
        pause = 1.0
        while not over.wait(pause):
            begun = time.monotonic()
            look()
            pause = max(1.0, 20 * (time.monotonic() - begun))

    thread = threading.Thread(target=keep_looking, name="progress", daemon=True)
    thread.start()
    try:
        yield from rows
    finally:
        over.set()
        thread.join()
    look()


def progress_bar(*more: str) -> Progress:
    """The bar of a stage, on the error stream; `more` are templates of columns behind the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("eta"), TimeRemainingColumn(), *(TextColumn(text) for text in more),
    )  # fmt: skip
    return Progress(*columns, console=Console(stderr=True))


def parts_as_units(source: Dataset, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One unit per committed part of the input: the same batches however often the stage is interrupted."""
    return {part: {"part": part, **(extra or {})} for part in source.parts()}
