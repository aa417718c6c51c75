"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

settings.register_profile("busy", deadline=None)  # a machine may be busy: no test depends on the clock
settings.load_profile("busy")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported: no token in the home directory
# Before torch is: tiny networks gain nothing from a second thread, and on a busy machine two wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[SimpleNamespace]:
    """One local Ray for all tests that need it; the value is a `resources` section of two actors."""
    from pipelines.stage import connect

    resources = SimpleNamespace(address=None, actors=2, cpus=1, gpus=0, threads=1, failure_budget=0.0)
    with connect(resources):
        yield resources


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real sample data that is not part of the project."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("WILDSHAPE_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no test data at {path}; set WILDSHAPE_TEST_DATA")
    return path
