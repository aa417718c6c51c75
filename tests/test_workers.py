"""Two processes train one network: the same as one process does, whatever is drawn for a sample."""

from __future__ import annotations

import datetime
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from test_engine import PLAN, Toy
from torch import nn

from trainers.engine import fit


class Frozen(nn.BatchNorm1d):
    """Batch norm that keeps its statistics: what a half batch sees does not depend on the other half."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


def exact() -> Toy:
    """In float64, with noise drawn for every sample: one process and two differ by rounding alone."""
    task = Toy(norm=Frozen)
    task.model.double()
    task.x, task.y = task.x.double(), task.y.double()
    return task


def work(rank: int, folder: str) -> None:
    """One of two ranks: trains, and leaves its weights, losses and batches in the folder."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    wait = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=2, timeout=wait)
    for name, task in (("norm", Toy(seed=rank)), ("exact", exact())):
        losses: list[float] = []
        kept = fit(task, PLAN, rank=rank, world=2, on_step=lambda done, loss, to=losses: to.append(loss))  # type: ignore[misc]
        found = {"weights": task.model.state_dict(), "kept": kept.state_dict()}
        torch.save({**found, "losses": losses, "seen": task.seen}, f"{folder}/{name}-{rank}.pt")
    torch.distributed.barrier()
    # Gloo's threads may abort a process that ends in Python's own time; all that matters is written.
    os._exit(0)


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch has no gloo here")
    started = torch.multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, join=False, start_method="spawn")
    deadline = time.monotonic() + 120
    try:
        while not started.join(timeout=1):
            assert time.monotonic() < deadline, "two processes did not finish in time"
    finally:
        for process in started.processes:
            if process.is_alive():
                process.kill()
    alone, curve = exact(), []
    fit(alone, PLAN, on_step=lambda done, loss: curve.append(loss))
    for name in ("norm", "exact"):
        a, b = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1))
        # All hold one network, its batch norm's statistics too, and all know the loss of the whole batch.
        for part in ("weights", "kept"):
            assert a[part].keys() == b[part].keys()
            assert [k for k in a[part] if not torch.equal(a[part][k], b[part][k])] == []
        assert a["losses"] == b["losses"]
        assert len(a["losses"]) == 10
        assert all(math.isfinite(v) for v in a["losses"])
        for ours, theirs, both in zip(a["seen"], b["seen"], alone.seen, strict=True):
            assert sorted(ours + theirs) == sorted(both)
            assert len(ours) == len(theirs) == 2
    np.testing.assert_allclose(a["losses"], curve, rtol=1e-12)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(a["weights"][name], value, rtol=1e-10, atol=1e-12)
