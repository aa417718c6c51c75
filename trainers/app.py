"""Entry points: a Hydra command that turns bad input into one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from omegaconf.errors import InterpolationResolutionError

from tables import InputError
from trainers.cluster import check_resources

# Ray 2.60 writes a token to the home directory unless told otherwise; a local cluster listens on loopback only.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray's core prints errors that are none (ray-project/ray#53727) into the progress bars.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Nothing is reported to anybody unless the user asks for it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# Commands that write nothing there: the lake may be read-only, or none.
_LEAVE_THE_LAKE = ("export", "predict", "template", "visualize")


def command(config_name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Make `run(cfg)` the command of `conf/<config_name>.yaml`.

    `resources`, `seed` and `lake` are checked here, for every command alike, before anything starts.
    `InputError` and a reference to no key (`${nope}`) print as one line and exit with 2; other errors keep their
    traceback and exit with 1.
    """

    def wrap(run: Callable[[Any], None]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)
        def main(cfg: Any) -> None:
            try:
                check_resources(cfg.get("resources"))
                check_seed(cfg.get("seed"))
                if config_name not in _LEAVE_THE_LAKE:
                    check_lake(cfg.get("lake"))
                run(cfg)
            except InputError as error:
                sys.stderr.write(f"error: {error}\n")
                sys.exit(2)
            except InterpolationResolutionError as error:
                sys.stderr.write(f"error: {error.full_key or 'config'}: {str(error).splitlines()[0]}\n")
                sys.exit(2)

        return main

    return wrap


def check_seed(seed: Any) -> None:
    """Refuse a `seed` that not every generator takes.

    Raises:
        InputError: it is no whole number from 0 to 2^32 - 1.
    """
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise InputError("seed", seed, f"must be a whole number between 0 and {2**32 - 1}")


def check_lake(lake: Any) -> None:
    """Refuse a local lake that cannot be written to, or cannot be made.

    Raises:
        InputError: with the reason that the system gave.
    """
    path = os.path.abspath(str(lake).removeprefix("file://"))
    if not lake or "://" in str(lake).removeprefix("file://") or os.path.isfile(path):
        return  # `tables.Lake` says what is wrong with it, or it is not local
    check_writable("lake", lake, path)


def check_writable(argument: str, value: Any, folder: str) -> None:
    """Refuse a folder that cannot be written to, or cannot be made; no trace of the attempt stays.

    Only an attempt tells: access rights say nothing of read-only mounts and of what root may not do either.

    Raises:
        InputError: with the reason that the system gave.
    """
    there = folder
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    try:
        TemporaryDirectory(prefix=".wildshape-", dir=there).cleanup()
    except OSError as error:
        raise InputError(argument, value, f"cannot be written: {there}: {error.strerror}") from None
