"""Many arms in processes side by side on the GPUs there are, and the file that keeps what came out."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from benchmarks.study_arms import Arm, Bench, run_arm
from benchmarks.study_world import commit_of
from tables import write_atomically
from trainers.jobs import set_threads

Task = tuple[Callable[..., Any], tuple[Any, ...]]


class Results:
    """A file of rows: one made in the same way is not made again, one made in another way is replaced.

    Args:
        head: what the file says once, above the rows.
    """

    def __init__(self, path: str, head: dict[str, Any]) -> None:
        self.path, self.head = Path(path), head
        known = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
        self.head = known | head | {"command": command}
        self.rows: list[dict[str, Any]] = known.get("rows", [])

    def lacks(self, bench: Bench, arm: Arm, seed: int) -> bool:
        """Whether an arm is still to be done for a seed."""
        mark = bench.mark(arm)
        return sum(r["mark"] == mark and r["seed"] == seed for r in self.rows) < arm.rounds

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep rows, in place of those of the same arms and seeds."""
        new = {(r["arm"], r["seed"]) for r in rows}
        self.rows = [r for r in self.rows if (r["arm"], r["seed"]) not in new] + list(rows)
        self.write()

    def write(self) -> None:
        head = json.dumps({k: v for k, v in self.head.items() if k != "rows"}, indent=1)
        lines = ",\n".join("  " + json.dumps(r) for r in sorted(self.rows, key=lambda r: (r["arm"], r["seed"])))
        write_atomically(str(self.path), f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'.encode())


def parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """The arguments that the experiments share."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--world", default=".study_lake/full", help="what benchmarks.study_world made")
    made.add_argument("--work", default="/tmp/wildshape-study", help="lake for all that is trained")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, default=2000, help="optimizer steps of every arm")
    made.add_argument("--size", type=int, default=128, help="pixels of the nets' input")
    made.add_argument("--width", type=int, default=32, help="of the nets' first stage")
    made.add_argument("--arms", nargs="+", help="only arms whose names match, as `cf_cm*`")
    made.add_argument("--workers", type=int, default=8, help="processes side by side")
    made.add_argument("--minutes", type=float, default=1e9, help="start no arm after so long")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--commit", default=commit_of(), help="named in every row")
    made.add_argument("--out", default=out)
    return made


@contextmanager
def processes(workers: int) -> Iterator[Callable[[Iterable[Task], float], Iterator[Any]]]:
    """Gives a function that does tasks side by side and yields what they return, in the order they end.

    A task that raises is told about and left out.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_settle, initargs=(torch.cuda.device_count(),)) as pool:

        def run(tasks: Iterable[Task], until: float = float("inf")) -> Iterator[Any]:
            futures = [pool.submit(_in_time, until, function, arguments) for function, arguments in tasks]
            for future in as_completed(futures):
                try:
                    yield future.result()
                except Exception as error:  # noqa: BLE001 - the other arms go on, this one is missing in the file
                    sys.stderr.write(f"failed: {type(error).__name__}: {error}\n")

        yield run


def _settle(gpus: int) -> None:
    """One thread a process, and one of the GPUs, each in turn."""
    set_threads(1)
    if gpus > 1:
        number = multiprocessing.current_process()._identity[0]  # type: ignore[attr-defined]
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % gpus)


def _in_time(until: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments) if time.time() < until else None


def chosen(arms: Sequence[Arm], args: argparse.Namespace) -> list[Arm]:
    """The arms that `--arms` names, by default all."""
    return [a for a in arms if not args.arms or any(fnmatchcase(a.name, like) for like in args.arms)]


def run_arms(run: Any, bench: Bench, arms: Sequence[Arm], results: Results, args: argparse.Namespace) -> None:
    """Do what the file lacks, seed by seed and the longest arms first, and keep each as it ends."""
    todo = [(run_arm, (bench, a, s)) for a in arms for s in args.seeds if results.lacks(bench, a, s)]
    todo.sort(key=lambda task: (task[1][2], -task[1][1].rounds))
    began = time.time()
    for number, rows in enumerate(run(todo, args.began + 60 * args.minutes)):
        for row in rows or []:
            row["commit"] = args.commit
        results.add(rows or [])
        told = f"{rows[-1]['arm']} seed {rows[-1]['seed']}: test {rows[-1]['test']}" if rows else "no time left"
        sys.stderr.write(f"{time.time() - began:5.0f} s  {number + 1}/{len(todo)}  {told}\n")


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if not device.startswith("cuda"):
        return platform.processor() or "cpu"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def paired(rows: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], split: str) -> list[float]:
    """Differences to the base, seed by seed."""
    of = {r["seed"]: r[split] for r in base}
    return [r[split] - of[r["seed"]] for r in sorted(rows, key=lambda r: r["seed"]) if r["seed"] in of]
