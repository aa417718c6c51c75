"""Entry points: a Hydra command that turns bad input into one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import hydra

from tables import InputError

# Ray 2.60 writes a token to the home directory unless told otherwise; a local cluster listens on loopback only.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray's core prints errors that are none (ray-project/ray#53727) into the progress bars.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Nothing is reported to anybody unless the user asks for it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def command(config_name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Make `run(cfg)` the command of `conf/<config_name>.yaml`.

    `InputError` prints as one line and exits with 2; other errors keep their traceback and exit with 1.
    """

    def wrap(run: Callable[[Any], None]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)
        def main(cfg: Any) -> None:
            try:
                run(cfg)
            except InputError as error:
                sys.stderr.write(f"error: {error}\n")
                sys.exit(2)

        return main

    return wrap
