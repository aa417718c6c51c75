"""Ray Train workers that share a training: the curve of one worker, kill -9 in the middle, a shared evaluation."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from processes import descendants
from safetensors.torch import load_file
from test_extensions import acsm_job
from tiny import CATEGORY, _train_settings, shared_lake

from models.checkpoint import load_checkpoint
from tables import InputError, Lake
from trainers import evaluate
from trainers.data import load_labelled
from trainers.evaluate import evaluate_acsm, evaluate_pose
from trainers.group import TrainGroup
from trainers.jobs import run_job
from trainers.notes import PICTURES, Note
from trainers.stepper import AverageOverWorkers

STEPS, INTERVAL, BATCH = 40, 8, 5  # a batch that two workers cannot halve


def exact(job: dict[str, Any]) -> dict[str, Any]:
    """The job in float64, with nothing in it that depends on who else is in the batch."""
    settings = copy.deepcopy(job["settings"])
    settings["plan"] |= {"precision": "float64", "freeze_norm": True, "steps": STEPS, "batch": BATCH}
    settings["plan"] |= {"checkpoint_every": INTERVAL, "lr": 1e-3, "schedule": "constant"}
    return {**job, "settings": settings}


def jobs(lake: Lake) -> dict[str, dict[str, Any]]:
    pose = {"kind": "pose", "lake": lake.uri, "category": CATEGORY, "settings": _train_settings()["pose"], "seed": 0}
    masks = exact(acsm_job(lake))
    masks["settings"]["net"] |= {"surface": True, "hypotheses": 2}
    masks["settings"]["mask_losses"] |= {
        "keypoints_first": 0.85,
        "warm_up": 0.05,
    }  # the last six steps, two of them warm
    return {"acsm": exact(acsm_job(lake)), "pose": exact(pose), "masks": masks}


def lake_in(folder: Path) -> Lake:
    shutil.copytree(shared_lake().uri, folder / "lake")
    return Lake(str(folder / "lake"))


def losses(notes: list[Note]) -> np.ndarray:
    assert [n.step for n in notes] == list(range(1, STEPS + 1))
    return np.array([n.loss for n in notes])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Note]]:
    """What one worker tells of each job: it calls this function, and nothing else is different in a group of one."""
    told: dict[str, list[Note]] = {}
    for name, job in jobs(lake_in(tmp_path_factory.mktemp("alone"))).items():
        told[name] = []
        run_job(job, tell=told[name].append)
    return told


@pytest.fixture(scope="module")
def pair(ray_local: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainGroup]:
    train = SimpleNamespace(workers=2, cpus=0.01, gpus=0, threads=1, max_failures=2)
    with TrainGroup(train, Lake(str(tmp_path_factory.mktemp("pair")))) as group:
        yield group


@pytest.fixture(scope="module")
def together(pair: TrainGroup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Note], Any]]:
    """What two workers tell of each job, and what comes of it."""
    told: dict[str, tuple[list[Note], Any]] = {}
    for name, job in jobs(lake_in(tmp_path_factory.mktemp("together"))).items():
        notes: list[Note] = []
        told[name] = (notes, pair.run(job, notes.append))
    return told


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["acsm", "pose", "masks"])
def test_two_workers_train_as_one(
    alone: dict[str, list[Note]], together: dict[str, tuple[list[Note], Any]], kind: str
) -> None:
    one, two = losses(alone[kind]), losses(together[kind][0])
    assert np.ptp(one) > 0.1 * one.mean()  # steps were made, and of some length
    np.testing.assert_allclose(two, one, rtol=1e-9)


@pytest.mark.ray
def test_the_parts_of_a_loss_are_those_of_the_whole_batch(
    alone: dict[str, list[Note]], together: dict[str, tuple[list[Note], Any]]
) -> None:
    for one, two in zip(alone["masks"], together["masks"][0], strict=True):
        assert sum(two.terms.values()) == pytest.approx(two.loss, rel=1e-9)
        assert two.terms == pytest.approx(one.terms, rel=1e-9)
    assert {"cycle", "coverage"} <= set(alone["masks"][-1].terms)


@pytest.mark.ray
def test_a_training_that_diverges_is_refused_and_not_tried_again(pair: TrainGroup, tmp_path: Path) -> None:
    job = jobs(lake_in(tmp_path))["pose"] | {"name": "aux"}
    job["settings"]["plan"] |= {"lr": 1e9, "clip": 0.0}
    before, notes = training_workers(), list[Note]()
    with pytest.raises(InputError, match=r"^train\.aux\.plan\.lr=1000000000\.0: the loss is (nan|inf) at step \d+"):
        pair.run(job, notes.append)
    assert training_workers() == before  # the group was not started again
    steps = [n.step for n in notes]
    assert steps == sorted(set(steps))


@pytest.mark.ray
def test_pictures_come_while_it_trains(together: dict[str, tuple[list[Note], Any]]) -> None:
    for kind, tiles in (("acsm", 3), ("pose", 2)):
        shown = [n for n in together[kind][0] if n.picture is not None]
        assert [n.step for n in shown] == [STEPS * i // PICTURES for i in range(1, PICTURES + 1)]
        for n in shown:
            picture: Any = n.picture
            assert picture.dtype == np.uint8
            assert picture.shape[1] / picture.shape[0] == tiles / 3
        assert not np.array_equal(shown[0].picture, shown[-1].picture)  # type: ignore[arg-type]


def training_workers() -> set[int]:
    """Process ids of the training workers of this process's Ray."""
    found = set()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def kill_between_checkpoints(lake: Lake, killed: list[int]) -> None:
    """kill -9 a worker about half an interval after the second checkpoint."""
    times: list[int] = []
    while len(times) < 2:
        for path in Path(lake.uri).glob("models/acsm/*/checkpoint.pt"):
            if path.stat().st_mtime_ns not in times:
                times.append(path.stat().st_mtime_ns)
        time.sleep(0.002)
    time.sleep((times[1] - times[0]) / 2e9)
    killed.append(min(training_workers()))
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.ray
def test_a_killed_worker_costs_at_most_one_checkpoint_interval(
    pair: TrainGroup, together: dict[str, tuple[list[Note], Any]], tmp_path: Path
) -> None:
    whole, undisturbed = together["acsm"]
    notes: list[Note] = []
    killed: list[int] = []
    lake = lake_in(tmp_path)
    killer = threading.Thread(target=kill_between_checkpoints, args=(lake, killed), daemon=True)
    killer.start()
    done = pair.run(jobs(lake)["acsm"], notes.append)
    killer.join(1)
    assert killed
    assert len(training_workers() - set(killed)) == 2  # the group is whole again
    steps = [n.step for n in notes]
    again = [(before, after) for before, after in itertools.pairwise(steps) if after != before + 1]
    assert len(again) == 1, steps  # it was interrupted once
    before, after = again[0]
    assert (after - 1) % INTERVAL == 0  # from a checkpoint
    assert after > 1  # and not from the beginning
    assert before - (after - 1) <= INTERVAL
    truth = losses(whole)
    assert all(n.loss == truth[n.step - 1] for n in notes)
    ours, theirs = load_file(done["model"]), load_file(undisturbed["model"])
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    assert done["metrics"] == undisturbed["metrics"]


def averaged(rank: int, folder: Path) -> None:
    """Keep the mean of tensors long and short, of two workers that count for a quarter and for three."""
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    rows = torch.arange(2 * 3 * 400 * 400.0).reshape(2, 3, 400, 400).to(memory_format=torch.channels_last)
    long, short = rows * (rank + 1), rows[:, :, :4, :4].contiguous() * (rank + 1)
    weights = [torch.nn.Parameter(torch.ones(size)) for size in (3, 1_000_000, 7)]
    with AverageOverWorkers([0.25, 0.75][rank]) as average:
        average.add(short, long)
        average.gradients_of(weights, sum((w * (rank + 1) * (i + 1)).sum() for i, w in enumerate(weights)))  # type: ignore[arg-type]
    torch.save([short, long, *(w.grad for w in weights), rows], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_mean_of_workers_is_that_of_tensors_long_and_short(tmp_path: Path) -> None:
    import torch.multiprocessing as mp

    mp.spawn(averaged, (tmp_path,), 2)  # type: ignore[no-untyped-call]
    for rank in range(2):
        short, long, *grads, rows = torch.load(tmp_path / f"{rank}.pt")
        assert long.nbytes > AverageOverWorkers.LONG > short.nbytes
        assert torch.equal(long, 1.75 * rows)
        assert torch.equal(short, 1.75 * rows[:, :, :4, :4])
        for i, grad in enumerate(grads):
            assert (grad == 1.75 * (i + 1)).all()


# -- evaluation -----------------------------------------------------------------------------------------------------


def evaluated(rank: int, world: int, store: str, uri: str, out: Any) -> None:
    """What a worker finds on the test split, in batches of 3."""
    evaluate.BATCH = 3  # type: ignore[misc]
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    lake = Lake(uri)
    run = lake.files.read_json("runs/default/run.json")
    acsm: Any = load_checkpoint(run["rounds"][-1]["model"])
    pose: Any = load_checkpoint(run["networks"]["pose"])
    calls: list[int] = []
    acsm.register_forward_pre_hook(lambda *_: calls.append(1))
    data = load_labelled(lake, CATEGORY, "test", 64)
    found = evaluate_acsm(acsm, data, rank, world), evaluate_pose(pose, data, 64, rank, world)
    out.put((rank, len(calls), found))
    if world > 1:
        torch.distributed.destroy_process_group()


def test_workers_share_an_evaluation_and_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import queue

    import torch.multiprocessing as mp

    monkeypatch.setattr(evaluate, "BATCH", evaluate.BATCH)  # put back afterwards
    uri, store = shared_lake().uri, str(tmp_path / "store")
    mine: Any = queue.Queue()
    evaluated(0, 1, "", uri, mine)
    _, batches, alone = mine.get()
    assert batches == 4
    context = mp.get_context("spawn")
    out = context.Queue()
    started = [context.Process(target=evaluated, args=(rank, 2, store, uri, out)) for rank in range(2)]
    for process in started:
        process.start()
    try:
        found = [out.get(timeout=240) for _ in started]
    finally:
        for process in started:
            process.join(60)
    assert [calls for _, calls, _ in found] == [2, 2]
    for _, _, both in found:
        assert both == alone


# -- on GPUs --------------------------------------------------------------------------------------------------------


def on_a_gpu(rank: int, world: int, folder: Path) -> None:
    """Keep the losses and the metrics of each kind of training, as this worker of a group finds them; needs no Ray."""
    device = f"cuda:{rank}"
    torch.cuda.set_device(device)
    if world > 1:
        store = f"file://{folder / 'store'}"
        torch.distributed.init_process_group("nccl", init_method=store, rank=rank, world_size=world)
    found = {}
    for kind, job in jobs(Lake(str(folder / "lake"))).items():
        told: list[float] = []
        done = run_job(job, rank, world, device, lambda note, told=told: told.append(note.loss))  # type: ignore[misc]
        found[kind] = {"losses": told, "metrics": done["metrics"]}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_and_evaluate_as_one(tmp_path: Path) -> None:
    import torch.multiprocessing as mp

    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        lake_in(folder)
        mp.spawn(on_a_gpu, (world, folder), world)  # type: ignore[no-untyped-call]
    alone, first, second = (json.loads((tmp_path / p).read_text()) for p in ("1/0.json", "2/0.json", "2/1.json"))
    for kind, found in alone.items():
        np.testing.assert_allclose(first[kind]["losses"], found["losses"], rtol=1e-7)
        assert first[kind]["metrics"] == second[kind]["metrics"]
        assert close(first[kind]["metrics"], found["metrics"]), kind


def close(ours: Any, theirs: Any) -> bool:
    """Equal but for the last digits of every number in nested metrics."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(close(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(close, ours, theirs))
    return bool(ours == theirs or ours == pytest.approx(theirs, rel=1e-3, nan_ok=True))
