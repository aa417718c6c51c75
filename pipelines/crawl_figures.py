"""How fast a crawl went: photos and megabytes a second over the time it was at work, from its parts' manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.report_figures import INK, SOFT, as_svg, blank

PAUSE_S = 60.0  # nothing in work for longer is a pause between runs, which is left out of the time
_BINS = 60
_UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"), (86400.0, "days"))


@dataclass(frozen=True)
class Pace:
    """A crawl's speed in equal steps of the time at work.

    Attributes:
        edges: [N + 1] seconds at work, pauses left out.
        photos: [N] ok photos a second.
        megabytes: [N] 10^6 bytes of photos a second.
        pauses: [M] where pauses were, seconds at work.
    """

    edges: np.ndarray
    photos: np.ndarray
    megabytes: np.ndarray
    pauses: np.ndarray

    @property
    def seconds(self) -> float:
        return float(self.edges[-1])


def pace(manifests: Iterable[Mapping[str, Any]]) -> Pace | None:
    """The pace that the notes `began, ended, status, body_bytes` of parts tell; None if they tell no time.

    What a part fetched is spread evenly over the time between its beginning and its end.
    """
    noted = [m for m in manifests if m.get("ended") is not None and m.get("began") is not None]
    if not noted:
        return None
    began = np.array([m["began"] for m in noted], np.float64)
    ended = np.maximum([m["ended"] for m in noted], began + 1e-3)
    amounts = np.array([[m["status"].get("ok", 0), m["body_bytes"] / 1e6] for m in noted], np.float64)
    clock, work = _time_at_work(began, ended)
    began, ended = np.interp(began, clock, work), np.interp(ended, clock, work)
    edges = np.linspace(0, work[-1], _BINS + 1)
    done = np.array([np.clip((e - began) / (ended - began), 0, 1) @ amounts for e in edges])  # [N + 1, 2]
    rate = np.diff(done, axis=0) / np.diff(edges)[:, None]
    return Pace(edges, rate[:, 0], rate[:, 1], work[2::2])


def _time_at_work(began: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of every stretch of work in turn, [2S], by the clock and in seconds at work."""
    order = np.argsort(began)
    began, last = began[order], np.maximum.accumulate(ended[order])
    first = np.flatnonzero(np.r_[True, began[1:] > last[:-1] + PAUSE_S])
    starts, stops = began[first], last[np.r_[first[1:] - 1, len(last) - 1]]
    clock = np.c_[starts, stops].ravel()
    steps = np.diff(clock, prepend=clock[0])
    steps[::2] = 0
    return clock, np.cumsum(steps)


def pace_chart(found: Pace, values: np.ndarray, color: str, name: str) -> str:
    """A rate over the time at work, its mean as a dashed line, pauses as dotted ones. SVG."""
    size, unit = _unit(found.seconds)
    figure, axes = blank(440, 210)
    axes.stairs(values, found.edges / size, color=color, linewidth=1.6)
    axes.stairs(values, found.edges / size, color=color, fill=True, alpha=0.18, linewidth=0)
    axes.axhline(float(values.mean()), color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)))
    for at in found.pauses:
        axes.axvline(at / size, color=INK, linewidth=1, linestyle=":")
    axes.set_xlim(0, found.seconds / size)
    axes.set_ylim(0, max(float(values.max()) * 1.08, 1e-6))
    axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(f"{unit} at work")
    return as_svg(figure, name)


def duration(seconds: float) -> str:
    """A time as people say it: `48 s`, `3.5 min`, `26.1 h`."""
    size, unit = _unit(seconds)
    short = {"seconds": "s", "minutes": "min", "hours": "h", "days": "days"}[unit]
    return f"{seconds / size:.1f} {short}" if size > 1 or seconds < 10 else f"{seconds:.0f} {short}"


def _unit(seconds: float) -> tuple[float, str]:
    """The unit in which a time is a number that people can hold: 2 to 120 of it."""
    return [(size, name) for size, name in _UNITS if size == 1 or seconds >= 2 * size][-1]
