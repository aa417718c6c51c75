"""Every command and every block of Python in README, CONTRIBUTING and docs/ is executed, or named here with a reason.

A new one is executed as it stands, in a folder with a lake of a finished run. If it needs more, there are three ways:
put what it needs into `folder`; execute its part of the page in a test of its own, which takes it from
`documented.pieces(page, heading)`, and name that test in `ELSEWHERE`; or, where no test can execute it, say why in
`NOT_RUN`. What is not run is parsed: its keys and its files must exist.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from documented import ROOT, Piece, call, compose, inline, ours, pages, parse, pieces
from tiny import CATEGORY

from tables import Lake, join_rows
from trainers.tracking import open_tracker

# Page, or page and heading: the test that executes all of it.
ELSEWHERE = {
    ("README.md", "What is where"): "test_docs_commands.py",
    ("README.md", "Your own species"): "test_stranger.py",
    ("README.md", "One photo"): "test_one_photo.py",
    ("docs/exports.md", None): "test_exports_page.py",
    ("docs/first-hour.md", "Predict on a photo"): "test_first_hour.py",
    ("docs/new-species.md", None): "test_new_species.py",
    ("docs/new-species.md", "5. The web"): "test_stranger.py",
    ("docs/one-photo.md", None): "test_one_photo.py",
    ("docs/prepare-data.md", None): "test_prepare_data.py",
}

INSTALLS = "installs from the package index; `.ci/run` does so with the README's second line"
TRAINS = "trains for minutes to hours; tests/test_loop.py runs the loop, small"
MEASURES = "measures for minutes to hours, some on a GPU; its results are in benchmarks/results"
DUMP = "reads a dump of web photos that is not ours to ship; tests/test_crawl.py and test_stream.py run it on others"
CLUSTER = "needs a cluster, a registry or a bucket; tests/test_cluster_s3.py submits the loop to three local nodes"
DEPLOY = "needs Docker, Slurm, Kubernetes or machines; tests/test_deploy.py checks what it reads and runs the script"

# What a command or a block begins with: why no test executes it.
NOT_RUN = {
    "python3 -m venv .venv && .venv/bin/pip install": INSTALLS,
    "python -m pipelines.selftrain train=full": TRAINS,
    "python -m pipelines.selftrain -m": TRAINS,
    "python -m benchmarks.": MEASURES,
    "python benchmarks/": MEASURES,
    "torchrun --nproc-per-node 2 -m benchmarks.": MEASURES,
    "wildshape crawl source.path=yfcc100m_dataset.bz2": DUMP,
    "wildshape stream": DUMP,
    "python -m pipelines.ingest source.format=coco source.path=labelled.json source.images=photos/ split=train "
    "category=deer lake=s3": CLUSTER,
    "aws s3 cp": CLUSTER,
    "ray job ": CLUSTER,
    "docker build -f deploy/Dockerfile": DEPLOY,
    "kubectl ": DEPLOY,
    "ray dashboard deploy/": DEPLOY,
    "ray down deploy/": DEPLOY,
    "ray up deploy/": DEPLOY,
    "sbatch ": DEPLOY,
    "import fiftyone": "FiftyOne starts a database server; tests/test_export.py reads the folder as its importer does",
}


def reason(piece: Piece) -> str | None:
    """Why no test executes it."""
    return next((why for start, why in NOT_RUN.items() if piece.text.startswith(start)), None)


def elsewhere(piece: Piece) -> str | None:
    """The test that executes it."""
    return ELSEWHERE.get((piece.page, piece.heading)) or ELSEWHERE.get((piece.page, None))


EVERY = [piece for page in pages() for piece in pieces(page)]
PARSED = [p for p in EVERY if reason(p) or not elsewhere(p)]
RUN = [p for p in EVERY if not reason(p) and not elsewhere(p)]
RAY = {"acsm", "crawl", "detect", "detector", "evaluate", "ingest", "keypoints", "pose", "selftrain", "stream", "tune"}


def named(piece: Piece) -> str:
    return f"{piece.page}:{piece.line}"


@contextmanager
def explained(what: object) -> Iterator[None]:
    """Whatever is raised says which command of which page it is about, and what to do."""
    try:
        yield
    except (Exception, SystemExit) as error:
        error.add_note(f"{what}\nHow to cover a command is said at the top of tests/test_docs_commands.py.")
        raise


def test_the_lists_name_what_is_there() -> None:
    stale = [start for start in NOT_RUN if not any(piece.text.startswith(start) for piece in EVERY)]
    assert not stale, f"no page says this any more: take {stale} out of NOT_RUN"
    for (page, heading), name in ELSEWHERE.items():
        assert pieces(page, heading), f"{page} has no command below {heading!r}: take it out of ELSEWHERE"
        source = (ROOT / "tests" / name).read_text(encoding="utf-8")
        wanted = f'pieces("{page}"' + (f', "{heading}"' if heading else "")
        assert wanted in source, f"tests/{name} is to execute {page}: it takes that from documented.{wanted})"


@pytest.mark.parametrize("piece", PARSED, ids=named)
def test_what_is_typed_can_be_parsed(piece: Piece) -> None:
    with explained(piece):
        parse(piece)


@pytest.mark.parametrize("page", pages())
def test_commands_in_the_text_compose(page: str) -> None:
    for line, command in inline(page):
        with explained(f"{page}:{line}: {command}"):
            for words in ours(command):
                compose(words)


@pytest.mark.parametrize("page", pages())
def test_extras_that_are_to_be_installed_exist(page: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"(?:\.|wildshape)\[([a-z,]+)\]", (ROOT / page).read_text(encoding="utf-8"))
    assert {extra for names in named for extra in names.split(",")} <= set(project["optional-dependencies"])


@pytest.mark.slow
@pytest.mark.parametrize("piece", RUN, ids=named)
def test_what_is_typed_runs(piece: Piece, folder: Path, request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    mine = ours(piece.text) if re.match("python |wildshape ", piece.text) else []
    if RAY & {words[0] for words in mine if "--cfg" not in words}:
        request.getfixturevalue("ray_local")  # one Ray for all of them
    with explained(piece), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a reader sees a warning, and goes on
        if piece.language == "python":
            exec(compile(piece.text, named(piece), "exec"), {"table": joined(folder)})
            return
        for words in mine:
            try:
                call(words)
            except SystemExit as end:
                if end.code:
                    raise
        if not mine:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", piece.text], capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def joined(folder: Path) -> Any:
    """What the pages call `table`: pseudo-labels with their boxes."""
    lake = Lake(str(folder / "lake"))
    pseudo, instances = lake.datasets("pseudo_labels", CATEGORY)[-1], lake.latest("instances", CATEGORY)
    return join_rows(pseudo.read(), instances.read(["instance_id", "bbox"]), "instance_id")


@pytest.mark.slow
def test_the_tracking_server_shows_the_runs(tmp_path: Path) -> None:
    """`mlflow ui` as the README says it, on the store that a run leaves."""
    (tmp_path / "lake").mkdir()
    open_tracker({"uri": None, "experiment": "wildshape"}, Lake(str(tmp_path / "lake")), "default").close({})
    (piece,) = pieces("README.md", "What is where")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *shlex.split(piece.text), "--port", str(port), "--workers", "1"]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        body = b""
        while not body:
            assert server.poll() is None, (tmp_path / "log").read_text()
            with suppress(OSError):
                url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=wildshape"
                body = urlopen(url, timeout=60).read()
            time.sleep(0.2)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    assert json.loads(body)["experiment"]["lifecycle_stage"] == "active"
