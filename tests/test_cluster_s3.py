"""Three nodes, the lake in an S3-compatible store, the loop as a submitted job, and a node that dies in the middle."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bucket import open_bucket
from looped import SMALL, environment, undisturbed
from processes import descendants

from tables import Dataset, Lake

LAKE, JOB = "s3://bucket/lake", "loop"
PATIENCE_S = 900  # for a machine that does much else; nothing is measured here


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def node() -> dict[str, Any]:
    """What every node gets; its agent's port is fixed otherwise, and then another Ray of this machine may have it."""
    return {"object_store_memory": 100 << 20, "dashboard_agent_listen_port": free_port()}


@contextlib.contextmanager
def three_nodes() -> Iterator[Any]:
    """A head that computes nothing and runs the driver, and two nodes of which either can hold all the work."""
    from ray.cluster_utils import Cluster

    # A killed node is missed after seconds: what cannot be connected to answers at once.
    # Workers are started when there is work for them.
    config = {
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 5,
        "prestart_worker_first_driver": False,
    }
    head = {**node(), "num_cpus": 0, "include_dashboard": True, "dashboard_port": free_port(), "_system_config": config}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=3, **node())
        yield cluster
    finally:
        cluster.shutdown()


def works_on(one: Any) -> str:
    """Command lines of what a node's Ray has started."""
    lines = []
    for pid in descendants(one.all_processes["raylet"][0].process.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"))
    return "\n".join(lines)


def wait_until(moment: Callable[[], Any], alive: Callable[[], bool], told: Callable[[], str]) -> Any:
    """What `moment` gives once that is true; `alive` and `told` are of what should bring it about."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := moment()):
        assert alive(), told()[-4000:]
        assert time.monotonic() < deadline, told()[-4000:]
        time.sleep(0.2)
    return found


def submit(address: str, *entry: str) -> None:
    """`ray job submit` as on a command line, once the cluster takes jobs."""
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address, "--no-wait",
        "--submission-id", JOB, "--", *entry,
    ]  # fmt: skip
    done: list[subprocess.CompletedProcess] = []

    def taken() -> bool:
        done[:] = [subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)]
        return not done[0].returncode

    early = "No available agent"  # the head's own comes up a little after its web server
    wait_until(taken, lambda: early in done[0].stderr + done[0].stdout, lambda: done[0].stderr)


def labelled_in_part(lake: Lake) -> bool:
    """Whether a part of the pseudo-labels is committed."""
    base = "pseudo_labels/category=quadruped"
    return any(lake.files.names(f"{base}/{name}/_manifests") for name in lake.files.names(base))


def made_of(lake: Lake) -> dict[str, Dataset]:
    """The datasets behind round 1."""
    row = lake.files.read_json("runs/tiny/rounds.json")[1]
    tables = ("instances", "pseudo_labels", "selections")
    made = {table: lake.find(table, "quadruped", row[table].rsplit("/", 1)[1]) for table in tables}
    return made | {"photos": lake.latest("photos", "quadruped")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_on_three_nodes_with_its_lake_in_a_bucket_survives_a_node(tmp_path: Path) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    whole = Lake(str(undisturbed()[0] / "lake"))
    with contextlib.ExitStack() as held:
        held.enter_context(open_bucket())
        lake = Lake(LAKE)
        # The same world, which need not be drawn again.
        held.callback(shutil.rmtree, lake.files.local(""))
        shutil.copytree(Path(whole.uri, "sandbox"), lake.files.local("sandbox"))
        cluster = held.enter_context(three_nodes())
        overrides = [
            # Not `auto`: Ray tells a job the address of the cluster that was started last on this machine.
            *SMALL, "rounds=1", f"resources.address={cluster.address}", f"lake={LAKE}",
            f"mlflow.uri=sqlite:///{tmp_path}/mlflow.db",
            # The weights are the same, but are sent to the bucket less often.
            *(f"train.{name}.plan.checkpoint_every=100" for name in ("detector", "pose")),
        ]  # fmt: skip
        address = f"http://{cluster.webui_url}"
        submit(address, sys.executable, "-m", "pipelines.selftrain", *overrides)
        jobs = JobSubmissionClient(address)
        running = lambda: jobs.get_job_status(JOB) in (JobStatus.PENDING, JobStatus.RUNNING)  # noqa: E731
        told = lambda: jobs.get_job_logs(JOB)  # noqa: E731
        wait_until(lambda: labelled_in_part(lake), running, told)
        works = [(n, works_on(n)) for n in cluster.list_all_nodes() if n is not cluster.head_node]
        victim, work = max(works, key=lambda w: [w[1].count(name) for name in ("MapWorker", "RayTrainWorker")])
        assert "MapWorker" in work or "RayTrainWorker" in work
        cluster.remove_node(victim, allow_graceful=False)
        assert lake.files.read_json("runs/tiny/run.json") is None, "killed too late"
        wait_until(lambda: not running(), lambda: True, told)
        assert jobs.get_job_status(JOB) == JobStatus.SUCCEEDED, told()[-4000:]

        assert lake.files.read_json("runs/tiny/metrics.json") == [
            row for row in whole.files.read_json("runs/tiny/metrics.json") if row["round"] < 2
        ]
        ours, theirs = made_of(lake), made_of(whole)
        assert {name: d.path for name, d in ours.items()} == {name: d.path for name, d in theirs.items()}
        assert {name: d.state() for name, d in ours.items()} == {name: d.state() for name, d in theirs.items()}
        assert ours["selections"].read().equals(theirs["selections"].read())
        assert b"<html" in (lake.files.read("runs/tiny/report.html") or b"")[:500]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["mlartifacts", "mlflow.db"]
