"""A Ray to work on: local, or a cluster whose nodes get our packages through `runtime_env`."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from tables import InputError

PACKAGES = ("conf", "models", "pipelines", "sandbox", "selection", "tables", "trainers")


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
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def our_packages() -> dict[str, Any]:
    """`runtime_env` that carries our packages, wherever they are installed."""
    folders = []
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin:
            folders.append(os.path.dirname(spec.origin))
    return {"py_modules": folders, "excludes": ["__pycache__"]}
