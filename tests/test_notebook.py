"""The notebooks run from top to bottom, and are committed without outputs.

`bring-your-own-species` makes the lake that `reading-the-lake` opens: it needs the records of a real run. The other two
open the lake that all tests share.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from tiny import shared_lake

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Whether the notebook holds, not whether the animal is learned.
QUICK = " ".join((
    "resources.actors=1 resources.train.threads=1 top_n=6 stop.drop=null stop.views=0",
    "detect.score=0.01 detect.min_side=4 detect.most=1 train.image_size=64 train.detector.image_size=96",
    *(f"train.{n}.net.width=8 train.{n}.net.channels=16" for n in ("pose", "aux", "detector")),
    "train.acsm.net.width=8 train.acsm.net.features=32 train.acsm.min_confidence=0",
    *(f"train.{n}.plan.steps=4" for n in ("pose", "aux", "detector", "acsm")),
    *(f"train.{n}.plan.batch=4" for n in ("pose", "detector", "acsm")),
))  # fmt: skip
Execute = Callable[[str, str, str], nbformat.NotebookNode]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_committed_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert not [c for c in cells if c.cell_type == "code" and (c.outputs or c.execution_count is not None)]


@pytest.fixture(scope="module")
def execute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Execute]:
    """Run a notebook in a folder of its own on a lake and a run; the notebook with its outputs."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
        (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (folder / "python").chmod(0o755)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("WILDSHAPE_PHOTOS", "12 30")
        patch.setenv("WILDSHAPE_QUICK", QUICK)
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):  # nobody's profile, nobody's history
            patch.setenv(name, str(folder / "jupyter"))

        def run(name: str, lake: str, run: str) -> nbformat.NotebookNode:
            patch.setenv("WILDSHAPE_LAKE", lake)
            patch.setenv("WILDSHAPE_RUN", run)
            notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
            where = {"metadata": {"path": str(folder)}}
            NotebookClient(notebook, timeout=900, coalesce_streams=True, resources=where).execute()
            return notebook

        yield run


@pytest.fixture(scope="module")
def species(execute: Execute) -> nbformat.NotebookNode:
    return execute("bring-your-own-species", "", "")


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    """Kinds of the pictures that a notebook shows."""
    kinds = [kind for c in notebook.cells if c.cell_type == "code" for o in c.outputs for kind in o.get("data", {})]
    return [kind for kind in kinds if kind.startswith("image/")]


def text(notebook: nbformat.NotebookNode) -> str:
    """All that a notebook prints; what it shows as tables, as text."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)


@pytest.mark.slow
def test_quickstart(execute: Execute) -> None:
    made = execute("quickstart", shared_lake().uri, "default")
    assert sorted(pictures(made)) == ["image/gif", *["image/png"] * 3]
    assert re.search(r"rounds \[0, 1, 2\], best on validation is round \d", text(made))
    assert re.search(r"\d +2 +test +\d", text(made))


@pytest.mark.slow
def test_anatomy_of_a_criterion(execute: Execute) -> None:
    made = execute("anatomy-of-a-criterion", shared_lake().uri, "default")
    assert len(pictures(made)) == 6
    assert "worst_four" in text(made)
    assert re.search(r"worst_four and cf_cm2 share \d+ %", text(made))


@pytest.mark.ray
@pytest.mark.slow
def test_anatomy_of_a_criterion_without_the_truth(species: nbformat.NotebookNode, execute: Execute) -> None:
    """A lake of one's own: the held-out labels judge."""
    made = execute("anatomy-of-a-criterion", "species/lake", "dachshund")
    assert len(pictures(made)) == 6


@pytest.mark.ray
@pytest.mark.slow
def test_bring_your_own_species(species: nbformat.NotebookNode) -> None:
    assert len(pictures(species)) == 4
    said = text(species)
    assert "dachshund.template: 1084 vertices" in said
    assert "'photos': 12" in said
    assert re.search(r"1 +1 +val +\d+ +\d", said), "a round with pseudo-labels was measured"


@pytest.mark.ray
@pytest.mark.slow
def test_reading_the_lake(species: nbformat.NotebookNode, execute: Execute) -> None:
    made = execute("reading-the-lake", "species/lake", "dachshund")
    assert len(pictures(made)) == 3
    assert "round 1: 6 of " in text(made)
    assert "wildshape-dachshund-dachshund@best is version" in text(made)
