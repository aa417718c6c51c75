"""Entry points: a Hydra command that logs as `log` says, and whose exit code says how it ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from enum import IntEnum
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from omegaconf.errors import InterpolationResolutionError

from tables import InputError, Lake
from trainers import logs
from trainers.cluster import check_resources

# Ray 2.60 writes a token to the home directory unless told otherwise; a local cluster listens on loopback only.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray's core prints errors that are none (ray-project/ray#53727) into the progress bars.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Nothing is reported to anybody unless the user asks for it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# Commands that write nothing there: the lake may be read-only, or none.
_LEAVE_THE_LAKE = ("doctor", "export", "predict", "status", "template", "visualize")

_log = logging.getLogger(__name__)


class Exit(IntEnum):
    """Exit codes of all commands; docs/operations.md says what to do about each."""

    DONE = 0
    LOST = 1  # more was lost than the failure budget, a check failed, or an error with a traceback
    REFUSED = 2  # bad input, in one line, before anything was started
    NO_ANIMAL = 3  # of `predict` alone: all photos could be looked at, and none shows an animal
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM, as a scheduler sends it


def command(config_name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Make `run(cfg)` the command of `conf/<config_name>.yaml`.

    `resources`, `seed` and `lake` are checked here, for every command alike, before anything starts.
    `InputError`, a key that is none and a reference to no key (`${nope}`) print as a line and exit with 2; other errors
    keep their traceback and exit with 1; interrupts are a line, too (see `Exit`).
    """

    def wrap(run: Callable[[Any], None]) -> Callable[[], None]:
        begun = False

        @hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)
        def composed(cfg: Any) -> None:
            nonlocal begun
            begun = True
            try:
                check_resources(cfg.get("resources"))
                check_seed(cfg.get("seed"))
                logs.check_log(cfg.get("log"))
                writes = config_name not in _LEAVE_THE_LAKE
                if writes:
                    check_lake(cfg.get("lake"))
                name = cfg.get("run")
                folder = logs.log_folder(config_name, name, cfg.lake) if writes else None
                with logs.logging_to(cfg.log, config_name, name, folder):
                    logged(run, cfg)
            except InputError as error:
                sys.stderr.write(f"error: {error}\n")
                sys.exit(Exit.REFUSED)
            except InterpolationResolutionError as error:
                sys.stderr.write(f"error: {error.full_key or 'config'}: {str(error).splitlines()[0]}\n")
                sys.exit(Exit.REFUSED)

        def main() -> None:
            nonlocal begun
            begun = False
            try:
                composed()
            except KeyboardInterrupt:
                sys.stderr.write("interrupted: the same command goes on where it was\n")
                sys.exit(Exit.INTERRUPTED)
            except SystemExit as end:
                if end.code == signal.SIGTERM:  # from Ray, which ends a driver so
                    sys.stderr.write("terminated: the same command goes on where it was\n")
                    sys.exit(Exit.TERMINATED)
                if end.code == 1 and not begun:  # from Hydra, which could not compose the config
                    sys.exit(Exit.REFUSED)
                raise

        return main

    return wrap


def logged(run: Callable[[Any], None], cfg: Any) -> None:
    """Run a command and log how it began and ended."""
    logs.event(_log, "command begins", lake=cfg.get("lake"), category=cfg.get("category"))
    try:
        run(cfg)
    except InputError as error:
        logs.event(_log, f"refused: {error}")  # said on the error stream anyway, as is a traceback
        raise
    except Exception as error:
        logs.event(_log, f"failed: {type(error).__name__}: {error}")
        raise
    except BaseException as end:
        logs.event(_log, "ended early", why=type(end).__name__, code=getattr(end, "code", None))
        raise
    logs.event(_log, "command ended")


def check_seed(seed: Any) -> None:
    """Refuse a `seed` that not every generator takes.

    Raises:
        InputError: it is no whole number from 0 to 2^32 - 1.
    """
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise InputError("seed", seed, f"must be a whole number between 0 and {2**32 - 1}")


def check_lake(lake: Any) -> None:
    """Refuse a lake that cannot be used: a folder that cannot be written to or made, a bucket that is not there.

    Raises:
        InputError: with the reason that the system gave.
    """
    files = Lake(lake).files
    if files.is_local:
        check_writable("lake", lake, files.uri)
    elif why := files.unreachable():
        raise InputError("lake", lake, why)


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
