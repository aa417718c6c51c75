"""A unit that takes its actor's process with it: the others go on, and it is given up after a few."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipelines.stage import DEATHS, run_stage
from tables import Dataset, InputError, Lake, schema
from trainers.cluster import check_training


class Deadly:
    """Worker whose process ends at a part, as at a photo that crashes a decoder, while others take their time.

    It notes every attempt.
    """

    def __init__(self, output: Dataset, poison: str, notes: str, seconds: float = 0.0) -> None:
        self.output, self.poison, self.notes, self.seconds = output, poison, notes, seconds

    def __call__(self, part: str, payload: Any) -> Mapping[str, int]:
        with open(self.notes, "a", encoding="utf-8") as f:
            f.write(f"{part}\n")
        time.sleep(self.seconds / (4 if part == self.poison else 1))
        if part == self.poison:
            os._exit(1)
        row = {"model": payload, "model_id": part, "split": "test"}
        self.output.write(part, pa.Table.from_pylist([row], schema("metrics")), schema("metrics"))
        return {"rows": 1}


@pytest.mark.ray
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_unit_that_kills_its_actors_is_lost_and_no_other(
    at_once: int, tmp_path: Path, ray_local: SimpleNamespace
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find test modules by name
    output, notes = Lake(str(tmp_path)).dataset("metrics", "deer", {"n": 1}), tmp_path / "notes"
    units = {f"u{i}": "x" for i in range(6)}
    alone = SimpleNamespace(**{**vars(ray_local), "actors": 1})
    args = {"output": output, "poison": "u2", "notes": str(notes), "seconds": at_once - 1.0}
    with pytest.raises(RuntimeError, match=f"1 of 6 units were lost; first: u2: {DEATHS} actors died of it"):
        run_stage(output, units, Deadly, args, alone, "a", at_once=at_once)
    assert output.parts() == ["u0", "u1", "u3", "u4", "u5"]
    tries = Counter(notes.read_text().split())
    assert tries.pop("u2") == DEATHS
    assert max(tries.values()) <= 2  # those that were in work beside it are tried again alone
    # Another run begins anew, and what was committed is left alone.
    healed = run_stage(output, units, Deadly, {**args, "poison": ""}, alone, "a")
    assert (healed["units"], healed["units_lost"], healed["rows"]) == (1, 0, 1)


@pytest.mark.ray
@pytest.mark.parametrize("key", ["cpus", "gpus"])
def test_an_actor_that_the_local_ray_cannot_hold_is_refused(
    key: str, tmp_path: Path, ray_local: SimpleNamespace
) -> None:
    output = Lake(str(tmp_path)).dataset("metrics", "deer", {"n": 1})
    greedy = SimpleNamespace(**{**vars(ray_local), key: 64})
    with pytest.raises(InputError, match="the local Ray has") as caught:
        run_stage(output, {"u": "x"}, Deadly, {}, greedy, "a")
    assert caught.value.argument == f"resources.{key}"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"workers": 3, "cpus": 4096}, r"^resources\.train\.cpus=4096: the local Ray has \d+ CPUs, too few for 3"),
        ({"workers": [1, 4], "gpus": 1}, r"^resources\.train\.gpus=1: the local Ray has 0 GPUs, too few for 1 tr"),
        (
            {"workers": [1, 10_000], "cpus": 1},
            r"^resources\.train\.cpus=1: .* too few for \d+ training workers beside a stage",
        ),
    ],
)
def test_training_workers_that_would_wait_for_ever_are_refused(
    train: dict[str, Any], said: str, ray_local: SimpleNamespace
) -> None:
    wanted = SimpleNamespace(**{"workers": 1, "cpus": 0.0625, "gpus": 0, **train})
    resources = SimpleNamespace(**{**vars(ray_local), "train": wanted})
    with pytest.raises(InputError, match=said):
        check_training(resources, stages=True)


@pytest.mark.ray
def test_a_stage_must_fit_beside_the_training_workers(ray_local: SimpleNamespace) -> None:
    import ray

    all_of_them = SimpleNamespace(workers=1, cpus=ray.cluster_resources()["CPU"], gpus=0)
    resources = SimpleNamespace(**{**vars(ray_local), "train": all_of_them})
    check_training(resources, stages=False)
    with pytest.raises(InputError, match="beside a stage's actor of 1"):
        check_training(resources, stages=True)


@pytest.mark.parametrize(
    ("workers", "booked", "actor", "fits"),
    [
        (1, 0.6, 0.6, True), (2, 0.6, 0.4, True), (2, 0.6, 0.6, False), (3, 0.6, 0, False), (4, 0.5, 0.1, False),
        (3, 0.5, 0.5, True), (1, 0.5, 1, True), (2, 0.4, 1, True), (3, 0.4, 1, False), (1, 1, 1, True),
        (2, 1, 0.1, False), (1, 0.1, 2, False), ([1, 9], 0.5, 0, True), ([1, 9], 0.5, 0.5, False), (1, 0, 2, True),
    ],
)  # fmt: skip
def test_shares_of_two_gpus_each_lie_on_one(
    workers: Any, booked: float, actor: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    train = SimpleNamespace(workers=workers, cpus=0.0625, gpus=booked)
    resources = SimpleNamespace(address=None, cpus=1, gpus=actor, train=train)
    if fits:
        check_training(resources, stages=True)
    else:
        with pytest.raises(InputError, match=r"^resources\.train\.gpus"):
            check_training(resources, stages=True)


@pytest.mark.ray
def test_a_dataset_that_is_extended_is_finished_only_when_all_is_done(
    tmp_path: Path, ray_local: SimpleNamespace
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    output = Lake(str(tmp_path)).dataset("metrics", "deer", {"n": 1})
    args = {"output": output, "poison": "", "notes": str(tmp_path / "notes")}
    run_stage(output, {"u0": "x"}, Deadly, args, ray_local, "a")
    assert output.is_finished("a")
    with pytest.raises(RuntimeError, match="1 of 2"):  # the payload does not fit the table
        run_stage(output, {"u0": "x", "u1": {}}, Deadly, args, ray_local, "b")
    assert output.finished() is None
