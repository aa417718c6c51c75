"""kill -9 of an actor, of a Ray worker and of the driver in the middle of a crawl: the same command finishes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from processes import descendants, kill_alone

from sandbox.origin import Origin
from tables import Lake

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = 3000


def command(rows: Path) -> list[str]:
    more = ["category=deer", f"source.path={rows}", "fetch.allow_hosts=[127.0.0.1]", "resources.actors=2"]
    return [sys.executable, "-m", "pipelines.crawl", *more]


@pytest.fixture
def origin(tmp_path: Path):
    """An origin of 3,000 photos of different bytes, each of which takes its time."""
    folder, rng = tmp_path / "web", np.random.default_rng(0)
    folder.mkdir()
    names = []
    for i in range(60):
        image = cv2.resize(rng.integers(0, 255, (6 + i % 7, 8, 3)).astype(np.uint8), (320, 240))
        names.append(f"{i}.jpg")
        cv2.imwrite(str(folder / names[-1]), image)
    behaviours = {f"/p/{i}.jpg": {"file": names[i % 60], "delay_s": 0.03} for i in range(PHOTOS)}
    (folder / "origin.json").write_text(json.dumps(behaviours))
    with Origin(folder) as origin:
        yield origin


def workers(driver: int, title: bytes) -> list[int]:
    found = []
    for pid in descendants(driver):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def wait_for(moment: Callable[[], bool], driver: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while not moment():
        assert driver.poll() is None, f"ended before the moment: {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"the moment did not come: {log.read_text()[-3000:]}"
        time.sleep(0.01)


@pytest.mark.ray
@pytest.mark.slow
def test_a_crawl_survives_every_kind_of_kill(tmp_path: Path, origin: Origin) -> None:
    rows, log = tmp_path / "rows.txt", tmp_path / "log"
    rows.write_text("".join(f"{origin.url}/p/{i}.jpg\n" for i in range(PHOTOS)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("ab") as out:
        driver = subprocess.Popen(command(rows), cwd=tmp_path, env=environment, stdout=out, stderr=out)
    wait_for(lambda: origin.requests.total() > 0.15 * PHOTOS, driver, log)
    os.kill(workers(driver.pid, b"ray::MapWorker")[0], signal.SIGKILL)
    wait_for(lambda: origin.requests.total() > 0.3 * PHOTOS, driver, log)
    os.kill(workers(driver.pid, b"ray::")[-1], signal.SIGKILL)
    wait_for(lambda: origin.requests.total() > 0.5 * PHOTOS, driver, log)
    kill_alone(driver)
    assert origin.requests.total() < 0.95 * PHOTOS, "the driver was killed too late to tell"

    done = subprocess.run(
        command(rows), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    dataset = Lake(str(tmp_path / "lake")).latest("photos", "deer")
    held = [n for part in dataset.parts() for n in dataset.read(["photo_id"], [part])["photo_id"].to_pylist()]
    assert len(held) == len(set(held)) == PHOTOS
    assert dataset.read(["status"])["status"].unique().to_pylist() == ["ok"]
    assert not list((tmp_path / "lake").rglob("*.spool"))

    size = {p: (origin.directory / how["file"]).stat().st_size for p, how in origin.behaviours.items()}
    again = sum((n - 1) * size[p] for p, n in origin.requests.items() if p in size and n > 1)
    assert again <= 0.02 * sum(size.values()), f"{again} of {sum(size.values())} bytes were fetched again"
