"""A training on as many workers as there are: a node leaves for good, and the others go on from the last checkpoint.

The cluster is a process of its own, for a process holds one Ray.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_group import INTERVAL, jobs, lake_in, training_workers

from tables import InputError, Lake
from trainers.cluster import check_resources
from trainers.jobs import run_job

ROOT = Path(__file__).resolve().parents[1]
STEPS = 200


def longer(job: dict[str, Any]) -> dict[str, Any]:
    """Long enough that the node is gone before it is done."""
    job["settings"]["plan"] |= {"steps": STEPS, "lr": 1e-4}
    return job


def in_a_cluster(uri: str) -> dict[str, Any]:
    """Train on two nodes, of which one leaves after the first checkpoint: steps, losses and workers."""
    import ray
    from ray.cluster_utils import Cluster

    from trainers.group import TrainGroup

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    told: list[tuple[int, float]] = []
    sizes: list[int] = []

    def watch(note: Any) -> None:
        told.append((note.step, note.loss))
        if not sizes and note.step > INTERVAL:
            held = training_workers()
            sizes.append(len(held))
            for pid in held:  # no step is made while the node leaves, however long that takes
                os.kill(pid, signal.SIGSTOP)
            cluster.remove_node(second)
            for pid in held & training_workers():
                os.kill(pid, signal.SIGCONT)

    train = SimpleNamespace(workers=[1, 2], cpus=1, gpus=0, threads=1, max_failures=2)
    lake = Lake(uri)
    with TrainGroup(train, lake) as group:
        group.run(longer(jobs(lake)["acsm"]), watch)
        sizes.append(len(training_workers()))
    ray.shutdown()
    cluster.shutdown()
    return {"told": told, "workers": sizes}


@pytest.mark.ray
@pytest.mark.slow
def test_when_a_node_leaves_for_good_the_others_go_on(tmp_path: Path) -> None:
    lake = lake_in(tmp_path)
    curve: dict[int, float] = {}
    (tmp_path / "alone").mkdir()
    run_job(longer(jobs(lake_in(tmp_path / "alone"))["acsm"]), tell=lambda note: curve.update({note.step: note.loss}))
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, __file__, lake.uri], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["workers"] == [2, 1]
    steps = [step for step, _ in said["told"]]
    again = [(before, after) for before, after in itertools.pairwise(steps) if after <= before]
    assert len(again) <= 1, steps  # none where the node left between a checkpoint and the next note
    assert all(after > INTERVAL and before - after <= INTERVAL for before, after in again)
    assert steps[-1] == STEPS
    np.testing.assert_allclose([loss for _, loss in said["told"]], [curve[s] for s in steps], rtol=1e-9)


@pytest.mark.parametrize("workers", [[2, 1], [0, 2], [1], [1, 2, 3], [1.0, 2], "2", [1, True]])
def test_a_range_of_workers_is_two_whole_numbers(workers: Any) -> None:
    from omegaconf import OmegaConf

    given = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "base.yaml").resources)
    given["train"]["workers"] = [1, 4]
    check_resources(given)
    given["train"]["workers"] = workers
    with pytest.raises(InputError, match=r"resources\.train\.workers"):
        check_resources(given)
    given["train"] |= {"workers": [1, 4], "cpus": 0.01}
    with pytest.raises(InputError, match=r"resources\.train\.cpus=0\.01"):
        check_resources(given)


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(in_a_cluster(sys.argv[1])) + "\n")
