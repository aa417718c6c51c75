"""Prometheus metrics, through Ray: what the driver has seen done. Their meanings stand in docs/operations.md.

The driver alone keeps them: it sees every unit end and every part committed once, however many actors died of it.
Without Ray, and where Ray was installed without its metrics agent (`pip install 'ray[default]'`), they go nowhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trainers import logs

if TYPE_CHECKING:
    from trainers.notes import Note

# Name -> its kind, its tags beside `run`, what it says. Ray writes `ray_` before the name and `_total` behind counters.
METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "wildshape_units": ("Counter", ("stage", "result"), "units of work of a stage that ended: done or lost"),
    "wildshape_units_left": ("Gauge", ("stage",), "units of work of a stage that this run has still to do"),
    "wildshape_items": ("Counter", ("stage", "kind"), "what the units of a stage counted, such as instances"),
    "wildshape_photos": ("Gauge", ("status",), "committed rows of a crawl by status"),
    "wildshape_photo_bytes": ("Gauge", (), "bytes of the photos that a crawl has committed"),
    "wildshape_stream_rows": ("Gauge", ("stage",), "photos that a stage of a stream has committed"),
    "wildshape_stream_waiting": ("Gauge", ("stage",), "photos that wait before a stage of a stream"),
    "wildshape_train_step": ("Gauge", ("network",), "optimizer steps done of a training"),
    "wildshape_train_loss": ("Gauge", ("network",), "loss of a training at its last note"),
    "wildshape_train_steps_per_s": ("Gauge", ("network",), "optimizer steps a second since the note before"),
}
_made: dict[str, Any] = {}


def add(name: str, value: float, **tags: str) -> None:
    """Count up."""
    if (metric := _metric(name)) and value > 0:
        metric.inc(value, tags={"run": logs.ids().get("run", ""), **tags})


def put(name: str, value: float, **tags: str) -> None:
    """Set a gauge."""
    if metric := _metric(name):
        metric.set(value, tags={"run": logs.ids().get("run", ""), **tags})


def unit(stage: str, counts: Mapping[str, int], lost: bool) -> None:
    """A unit of a stage ended."""
    add("wildshape_units", 1, stage=stage, result="lost" if lost else "done")
    for kind, number in counts.items():
        add("wildshape_items", number, stage=stage, kind=kind)


def photos(committed: Mapping[str, int]) -> None:
    """What a crawl has committed: rows by status, and the `bytes` of its photos."""
    for status, number in committed.items():
        if status == "bytes":
            put("wildshape_photo_bytes", number)
        else:
            put("wildshape_photos", number, status=status)


def training(network: str) -> Callable[[Note], None]:
    """What `TrainGroup.run` calls with each note of a training."""
    last: tuple[float, int] | None = None

    def watch(note: Note) -> None:
        nonlocal last
        before, last = last, (time.monotonic(), note.step)
        put("wildshape_train_step", note.step, network=network)
        put("wildshape_train_loss", note.loss, network=network)
        if before:
            speed = (last[1] - before[1]) / max(last[0] - before[0], 1e-3)
            put("wildshape_train_steps_per_s", speed, network=network)

    return watch


def _metric(name: str) -> Any:
    """The metric, made on first use; None where no Ray is connected."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if name not in _made:
        from ray.util import metrics

        kind, tags, text = METRICS[name]
        _made[name] = getattr(metrics, kind)(name, description=text, tag_keys=("run", *tags))
    return _made[name]
