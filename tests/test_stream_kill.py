"""kill -9 of every stage's actor, of the driver and of a node in the middle of a stream: the same rows in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from processes import descendants, kill_alone
from streaming import CATEGORY, FETCH, RULES, World, same, serve, world_below

from tables import Dataset, Lake

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with serve(folder) as origin:
        yield world_below(folder, origin)


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, ...]:
    return world.by_hand(Lake(str(tmp_path_factory.mktemp("undisturbed"))))


class Run:
    """The command in a folder of its own, whose origin lets through as many parts as it is told.

    Attributes:
        tables: what it writes.
        driver: the command's process.
    """

    def __init__(self, world: World, undisturbed: tuple[Dataset, ...], folder: Path) -> None:
        self.world, self.folder, self.log = world, folder, folder / "log"
        files = Lake(str(folder / "lake")).files
        self.tables = [Dataset(files, t.table, t.category, t.identity, t.slot) for t in undisturbed]
        photos = undisturbed[0]
        found = (photos.read(["photo_id", "url"], [part]) for part in photos.parts())
        # As the crawl asks for them: in the order of their ids.
        in_order = sorted(found, key=lambda rows: rows["photo_id"][0].as_py())
        self.paths = [[urlsplit(url).path for url in rows["url"].to_pylist()] for rows in in_order]
        world.origin.closed.update(path for paths in self.paths for path in paths)

    def start(self, *more: str) -> None:
        given = {**self.world.models, "model": self.world.detector, "category": CATEGORY, "round": 1}
        given |= {f"detect.{name}": value for name, value in RULES.items()}
        given |= {f"source.{name}": value for name, value in self.world.source().items()}
        given |= {"fetch.block": FETCH["block"], "fetch.allow_hosts": "[127.0.0.1]"}
        given |= {"fetch.read_s": 600, "fetch.total_s": 600, "fetch.opt_out": [], "source.extensions": []}
        given |= {"fetch.connect_s": 60, "fetch.min_bytes_per_s": 0}
        command = [sys.executable, "-m", "pipelines.stream", *(f"{k}={v}" for k, v in given.items()), *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
        with self.log.open("ab") as out:
            self.driver = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=out, stderr=out)

    def let_through(self, parts: int) -> None:
        """Open the origin for so many parts, and wait until they are pseudo-labels."""
        self.world.origin.closed -= {path for paths in self.paths[:parts] for path in paths}
        self.wait_for(lambda: len(self.tables[-1].parts()) >= parts)
        assert len(self.tables[-1].parts()) == parts

    def wait_for(self, moment: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 240
        while not (found := moment()):
            assert self.driver.poll() is None, f"ended before the moment: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"the moment did not come: {self.log.read_text()[-3000:]}"
            time.sleep(0.02)
        return found

    def end(self, undisturbed: tuple[Dataset, ...]) -> None:
        """Let all through, and see whether all is there once and as it would have been."""
        self.world.origin.closed.clear()
        assert self.driver.wait(timeout=300) == 0, self.log.read_text()[-4000:]
        same(undisturbed, tuple(self.tables))
        for table in self.tables:
            key = "photo_id" if table.table == "photos" else "instance_id"
            held = [name for part in table.parts() for name in table.read([key], [part])[key].to_pylist()]
            assert len(held) == len(set(held))


def actors(ancestor: int) -> list[int]:
    """Ray Data's workers below a process, the longest at work first."""
    found = []
    for pid in descendants(ancestor):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def test_a_stream_survives_its_actors_and_its_driver(
    world: World, undisturbed: tuple[Dataset, ...], tmp_path: Path
) -> None:
    run = Run(world, undisturbed, tmp_path)
    run.start()
    run.let_through(1)
    old = actors(run.driver.pid)
    assert len(old) == 3
    for done, pid in enumerate(old, 2):  # an actor of each stage
        os.kill(pid, signal.SIGKILL)
        run.let_through(done)
    kill_alone(run.driver)
    asked = world.origin.requests.copy()
    before = [t.manifests() for t in run.tables]

    run.start()
    run.end(undisturbed)
    # What was committed is not done again; only parts that turned out to hold duplicates were made smaller.
    assert {p: m["file"] for p, m in before[0].items()}.items() <= {
        p: m["file"] for p, m in run.tables[0].manifests().items()
    }.items()
    done = {path for paths in run.paths[:4] for path in paths}
    assert {path for path in done if world.origin.requests[path] > asked[path]} == set()


def test_a_stream_survives_a_node(world: World, undisturbed: tuple[Dataset, ...], tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        first = cluster.add_node(num_cpus=3)
        run = Run(world, undisturbed, tmp_path)
        run.start(f"resources.address={cluster.address}")
        run.let_through(2)
        cluster.add_node(num_cpus=3)
        cluster.remove_node(first, allow_graceful=False)
        run.let_through(4)
        run.end(undisturbed)
    finally:
        cluster.shutdown()
