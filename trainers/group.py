"""One long-lived Ray Train run that takes training jobs, so that its start-up is paid once.

Starting a worker group costs 10-180 s on two cores. The loop trains half a dozen networks, so the workers stay and
fetch one job after the other from a mailbox; if a worker dies, Ray Train starts the group again and the open job
goes on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tables import InputError, Lake

if TYPE_CHECKING:  # a driver that trains nothing needs no torch
    from trainers.notes import Note


class _Mailbox:
    """Holds jobs and their results; an async actor, so that waiting costs nothing."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any] | None] = []
        self.results: list[dict[str, Any]] = []
        self.notes: list[Note] = []
        self.changed = asyncio.Condition()

    async def put(self, job: dict[str, Any] | None) -> None:
        async with self.changed:
            self.jobs.append(job)
            self.changed.notify_all()

    async def open_job(self) -> int:
        return len(self.results)

    async def take(self, number: int) -> dict[str, Any] | None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.jobs) > number)
            return self.jobs[number]

    async def note(self, note: Note) -> None:
        self.notes.append(note)

    async def answer(self, number: int, result: dict[str, Any]) -> None:
        async with self.changed:
            if len(self.results) == number:
                self.results.append(result)
                self.changed.notify_all()

    async def result(self, number: int, wait_s: float) -> tuple[dict[str, Any] | None, list[Note]]:
        """The result, or None if it is not there in time, and the notes since the last call."""
        async with self.changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait_for(lambda: len(self.results) > number), wait_s)
            notes, self.notes = self.notes, []
            return (self.results[number] if len(self.results) > number else None), notes


def _serve(config: dict[str, Any]) -> None:
    """The training function: every worker takes every job; they share a job's batches."""
    import ray
    import ray.train
    import ray.train.collective
    import ray.train.torch

    from trainers.jobs import run_job, set_threads

    set_threads(config["threads"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device())
    mailbox = config["mailbox"]

    # One number for all: a worker that asked later might be told of the next job already.
    first: Any = ray.get(mailbox.open_job.remote()) if rank == 0 else None
    number: int = first if world == 1 else ray.train.collective.broadcast_from_rank_zero(first)
    while (job := ray.get(mailbox.take.remote(number))) is not None:
        try:
            result: dict[str, Any] = {"done": run_job(job, rank, world, device, mailbox.note.remote)}
        except InputError as error:
            result = {"refused": error}
        if rank == 0:
            ray.get(mailbox.answer.remote(number, result))
        ray.train.report({"job": number})
        number += 1


class TrainGroup:
    """Context manager around the worker group; needs a connected Ray.

    Args:
        train: the `resources.train` section: `workers`, `cpus`, `gpus`, `threads`, `max_failures`.
        lake: holds Ray Train's own records, in `ray_train/`.
    """

    def __init__(self, train: Any, lake: Lake) -> None:
        self.train, self.storage = train, lake.files
        self.mailbox: Any = None
        self.error: BaseException | None = None
        self.sent = 0

    def __enter__(self) -> TrainGroup:
        import ray

        # The group needs room beside the stages' actors, which rest while it trains: book next to nothing. On this
        # node, whose end is the end of the run anyway: another may go.
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        self.mailbox = ray.remote(num_cpus=0, label_selector=here)(_Mailbox).remote()
        self.thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        self.thread.start()
        return self

    def _fit(self) -> None:
        import ray.train
        from ray.train.torch import TorchTrainer

        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        train = self.train
        # A least and a most number: Ray Train starts with what there is, goes on with fewer where a node leaves for
        # good, and looks every minute whether more would fit.
        workers: Any = train.workers if isinstance(train.workers, int) else tuple(train.workers)
        per_worker: dict[str, float] = {"CPU": train.cpus}
        if train.gpus:
            per_worker["GPU"] = train.gpus
        try:
            TorchTrainer(
                _serve,
                train_loop_config={"mailbox": self.mailbox, "threads": int(train.threads)},
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers, use_gpu=bool(train.gpus), resources_per_worker=per_worker
                ),
                run_config=ray.train.RunConfig(
                    name=f"group-{uuid.uuid4().hex[:8]}",
                    storage_path=self.storage.full("ray_train"),
                    storage_filesystem=self.storage.fs,
                    failure_config=ray.train.FailureConfig(max_failures=int(train.max_failures)),
                ),
            ).fit()
        except BaseException as error:  # noqa: BLE001 - raised again in `run`, on the caller's thread
            self.error = error

    def run(self, job: Mapping[str, Any], *watchers: Callable[[Note], object]) -> dict[str, Any]:
        """Train a job (see `trainers.jobs.run_job`) and return its result.

        Args:
            watchers: called with every note while the network trains.

        Raises:
            InputError: the job names something that is not there.
            RuntimeError: the worker group gave up.
        """
        import ray

        number, self.sent = self.sent, self.sent + 1
        ray.get(self.mailbox.put.remote(dict(job)))
        while True:
            result, notes = ray.get(self.mailbox.result.remote(number, 0.5))
            for note in notes:
                for watch in watchers:
                    watch(note)
            if result is not None:
                if "refused" in result:
                    raise result["refused"]
                return result["done"]
            if not self.thread.is_alive():
                raise RuntimeError(f"the training workers gave up: {self.error}") from self.error

    def __exit__(self, *exc: object) -> None:
        import ray

        ray.get(self.mailbox.put.remote(None))
        self.thread.join(60)
        ray.kill(self.mailbox)


@contextmanager
def training_bar(title: str, steps: int) -> Iterator[Callable[[Note], object]]:
    """A progress bar with the loss; gives the function to call with each note."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, loss=0.0)
        yield lambda note: bar.update(task, completed=note.step, loss=note.loss)
        bar.update(task, completed=steps)
