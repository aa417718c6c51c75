"""A Ray to work on: local, or a cluster whose nodes get our packages through `runtime_env`."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from tables import InputError
from trainers import logs

_log = logging.getLogger(__name__)
PACKAGES = ("conf", "models", "pipelines", "sandbox", "selection", "tables", "trainers")

# What a worker frees goes back to the system: Arrow's own pool and an arena for each thread would keep it, and a worker
# that has seen twenty thousand photos would be larger than one that has seen a thousand (benchmarks/stream.py).
_FRUGAL = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}

_ADDRESS = re.compile(r"auto|(ray://)?[^\s/]+:\d{1,5}")
_MOST = 10_000  # of anything that is counted: far above any cluster, far below what overflows inside Ray
_WHOLE, _NUMBER = "a whole number", "a number"
# Least and most of each key of the section, which conf/base.yaml explains. Ray counts resources in steps of 0.0001.
_BOUNDS: dict[str, tuple[str, float, float]] = {
    "actors": (_WHOLE, 1, _MOST), "cpus": (_NUMBER, 0.0001, _MOST), "gpus": (_NUMBER, 0, _MOST),
    "threads": (_WHOLE, 1, _MOST), "failure_budget": (_NUMBER, 0, 1), "train.workers": (_WHOLE, 1, _MOST),
    "train.cpus": (_NUMBER, 0.0001, _MOST), "train.gpus": (_NUMBER, 0, _MOST), "train.threads": (_WHOLE, 1, _MOST),
    "train.max_failures": (_WHOLE, 0, _MOST),
}  # fmt: skip


def check_resources(resources: Any) -> None:
    """Refuse a `resources` section that no stage could run with, before anything starts.

    Raises:
        InputError: naming the key that is missing, unknown, of the wrong type or out of bounds.
    """
    from omegaconf import OmegaConf

    given = OmegaConf.to_container(resources, resolve=True) if OmegaConf.is_config(resources) else resources
    values = _flat("resources", given)
    known = {"address", *_BOUNDS}
    for name in sorted(known ^ values.keys()):
        fix = "must be given" if name in known else f"no such key: use {', '.join(sorted(known))}"
        raise InputError(f"resources.{name}", values.get(name, "null"), fix)
    for name, (kind, least, most) in _BOUNDS.items():
        value = values[name]
        if name == "train.workers" and isinstance(value, list):
            continue
        right = type(value) is int or (type(value) is float and kind is _NUMBER)
        if not right or not least <= value <= most:
            raise InputError(f"resources.{name}", value, f"must be {kind} between {least} and {most}")
        if name.endswith("gpus") and value > 1 and value != int(value):
            raise InputError(f"resources.{name}", value, "above 1, must be whole: only one GPU can be shared")
    if isinstance(values["train.workers"], list):
        _check_range(values["train.workers"], values)
    address = values["address"]
    if address is not None and not (isinstance(address, str) and _ADDRESS.fullmatch(address)):
        raise InputError("resources.address", address, "use null for a local Ray, auto or host:port for a cluster")


def _check_range(workers: list[Any], values: Mapping[str, Any]) -> None:
    """Refuse a least and a most number of training workers that are none, or that Ray would count wrongly."""
    if len(workers) != 2 or any(type(n) is not int for n in workers) or not 1 <= workers[0] <= workers[1] <= _MOST:
        fix = f"must be a whole number between 1 and {_MOST}, or a list of the least and the most"
        raise InputError("resources.train.workers", workers, fix)
    # How many fit into what a node has, Ray tells by dividing floats: 0.03 CPUs hold two workers of 0.01.
    for name in ("train.cpus", "train.gpus"):
        if values[name] * 16 % 1:
            fix = "must be whole sixteenths where resources.train.workers is a list, say 0.0625 or 1"
            raise InputError(f"resources.{name}", values[name], fix)


def _flat(name: str, section: Any) -> dict[str, Any]:
    """The keys of the section and of its `train`, which become `train.<key>`."""
    if not isinstance(section, Mapping):
        raise InputError(name, section, "is a section: set its keys one by one")
    flat = {str(key): value for key, value in section.items() if key != "train"}
    if "train" in section or name == "resources":
        inner = _flat(f"{name}.train", section.get("train"))
        flat |= {f"train.{key}": value for key, value in inner.items()}
    return flat


@contextmanager
def connect(resources: Any) -> Iterator[None]:
    """A Ray to work on: the one in use, the cluster at `resources.address`, or a local one for the while.

    Nodes of a cluster get our packages through `runtime_env`, so they need only the dependencies.

    Raises:
        InputError: no cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = resources.address
    mine = {} if address else {name: value for name, value in _FRUGAL.items() if name not in os.environ}
    os.environ.update(mine)  # which a local Ray's workers inherit; a cluster's nodes have their own
    try:
        ray.init(
            address=address or "local",
            runtime_env=our_packages() if address else None,
            # One more than the stages need, for training workers that rest while a stage runs.
            num_cpus=None if address else max(os.cpu_count() or 1, math.ceil(resources.actors * resources.cpus)) + 1,
            include_dashboard=False if not address else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
        )
    except ConnectionError as error:
        raise InputError("resources.address", address, f"no Ray cluster answers ({error}); `ray start`?") from error
    finally:
        for name in mine:
            del os.environ[name]
    ports = sorted({f"{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in ray.nodes() if n["Alive"]})
    logs.event(_log, "Ray connected", address=address or "local", resources=ray.cluster_resources(), metrics=ports)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def check_room(resources: Any, name: str = "resources") -> None:
    """Refuse an actor that the local Ray in use can never hold: Ray would wait for room without a word.

    A cluster (`resources.address`) may grow, so there Ray is left to wait.

    Args:
        name: of the section, to be told in the refusal.

    Raises:
        InputError: an actor books more CPUs or GPUs than there are.
    """
    import ray

    if resources.address:
        return
    there = ray.cluster_resources()
    for key, kind in (("cpus", "CPU"), ("gpus", "GPU")):
        booked, most = getattr(resources, key), there.get(kind, 0)
        if booked > most:
            raise InputError(f"{name}.{key}", booked, f"the local Ray has {most:g} for an actor to book")


def check_batches(resources: Any, train: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise InputError for a network of `names` whose batch has less items than there may be training workers.

    Args:
        train: the `train` section of the config.
    """
    _, most = _least_and_most(resources.train.workers)
    for name in names:
        batch = train[name]["plan"]["batch"]
        if batch < most:
            raise InputError("resources.train.workers", most, f"train.{name}.plan.batch={batch} is not enough for all")


def check_training(resources: Any, stages: bool) -> None:
    """Refuse training workers for which the local Ray in use has no room, or that leave none for a stage's actor.

    Either would wait for ever without a word. Of a list in `resources.train.workers` as many are started as fit.

    Args:
        stages: whether stages run beside the workers, which stay while they do.

    Raises:
        InputError: they book more CPUs or GPUs than there are.
    """
    import ray

    if resources.address:
        return
    there = ray.cluster_resources()
    least, most = _least_and_most(resources.train.workers)
    for key, kind in (("cpus", "CPU"), ("gpus", "GPU")):
        booked, has = getattr(resources.train, key), there.get(kind, 0)
        beside = getattr(resources, key) if stages else 0
        # CPUs are one pool; a share of a GPU lies on one of them.
        devices = [1.0] * int(has) if kind == "GPU" and booked < 1 else [float(has)]
        each = int(max(devices, default=0) / booked + 1e-9) if booked else 0
        started = max(least, min(most, each * len(devices))) if booked else 0
        if started > each * len(devices) or beside > _room(devices, booked, started, each) + 1e-9:
            told = f" beside a stage's actor of {beside:g}" if beside else ""
            fix = f"the local Ray has {has:g} {kind}s, too few for {started} training workers{told}: lower it"
            raise InputError(f"resources.train.{key}", booked, fix)


def _room(devices: list[float], booked: float, started: int, each: int) -> float:
    """What one more may book beside workers that fill the devices one by one, `each` on a device."""
    full, rest = divmod(started, each) if started else (0, 0)
    free = [d - booked * n for d, n in zip(devices, [*[each] * full, rest], strict=False)]
    return max([*free, sum(devices[full + (rest > 0) :])], default=0)


def _least_and_most(workers: Any) -> tuple[int, int]:
    """Of `resources.train.workers`, a number or a list of two."""
    return (workers, workers) if isinstance(workers, int) else (workers[0], workers[1])


def our_packages() -> dict[str, Any]:
    """`runtime_env` that carries our packages, wherever they are installed."""
    folders = []
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin:
            folders.append(os.path.dirname(spec.origin))
    return {"py_modules": folders, "excludes": ["__pycache__"]}
