"""The loop as a person starts it, made small, and one run of it that all tests of a session read."""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 2
# Everything small, yet several parts a stage and several checkpoints a training.
SMALL = (
    "run=tiny", f"rounds={ROUNDS}", "top_n=8", "criterion=cf_cm2", "stop.patience=0", "stop.drop=null", "stop.views=0",
    "resources.actors=1",
    "resources.train.threads=1", "fetch.block=4",
    "sandbox.name=tiny", "sandbox.photo_px=96", "sandbox.workers=1",
    "sandbox.labelled.train=12", "sandbox.labelled.val=4", "sandbox.labelled.test=4", "sandbox.web.photos=40",
    "detect.score=0.01", "detect.min_side=4", "detect.most=1",
    "train.image_size=64", "train.detector.image_size=96",
    *(f"train.{n}.net.{k}" for n in ("pose", "aux", "detector") for k in ("width=8", "channels=16")),
    "train.acsm.net.width=8", "train.acsm.net.features=32",
    *(f"train.{n}.plan.{k}" for n in ("pose", "detector", "acsm") for k in ("batch=4", "checkpoint_every=4")),
    # Nets of a few steps are sure of nothing: count every joint, or no pseudo-label would.
    "train.acsm.min_confidence=0.0",
    "train.detector.plan.steps=8", "train.acsm.plan.steps=12", "train.aux.plan=${train.acsm.plan}",
    # Long enough that the workers, who outlive a killed driver a little, do not get to the end of it.
    "train.pose.plan.steps=200",
)  # fmt: skip


def command(folder: Path, *more: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return [sys.executable, "-m", "pipelines.selftrain", *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def finish(folder: Path, *more: str) -> str:
    """Run the loop in a folder to its end; what it printed."""
    done = subprocess.run(
        command(folder, *SMALL, *more),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@functools.cache
def undisturbed() -> tuple[Path, str]:
    """Folder of a run that nobody disturbed, and what it printed."""
    folder = tempfile.TemporaryDirectory(prefix="wildshape-loop-")
    atexit.register(folder.cleanup)
    return Path(folder.name), finish(Path(folder.name), "log=file")
