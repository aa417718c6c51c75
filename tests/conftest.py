"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tables import Lake

# A machine may be busy: no test depends on the clock. Nor on the day: the same examples every time.
settings.register_profile("busy", deadline=None, derandomize=True)
settings.load_profile("busy")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported: no token in the home directory
# Before torch is: tiny networks gain nothing from a second thread, and on a busy machine two wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: two processes, each taking file after file, then end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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


@pytest.fixture(scope="session")
def lake() -> Lake:
    """A tiny lake with two rounds that tests read; copy it before changing it."""
    from tiny import shared_lake

    return shared_lake()


@pytest.fixture(scope="module")
def folder(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for commands that change things, with a copy of that lake as `lake`: run `default`, finished."""
    made = tmp_path_factory.mktemp("folder")
    shutil.copytree(lake.uri, made / "lake")
    return made


@pytest.fixture(scope="session")
def report(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report in a place of its own, with fewer frames of the turning template than a person would like."""
    from tiny import CATEGORY

    from pipelines.report import write_report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.report_sources.FRAMES", 2)
        made = write_report(lake, CATEGORY, "default")
    return Path(shutil.copy(made, tmp_path_factory.mktemp("report")))
