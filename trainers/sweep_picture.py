"""Parallel coordinates of a sweep: an axis for each thing that was varied, a line for each trial."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainers.tune import SPACE


def parallel(rows: Sequence[Mapping[str, Any]], metric: str) -> bytes:
    """The picture as PNG.

    Args:
        rows: trials, the best first, each with the varied keys and `metric`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    keys = [k for k in (*SPACE, "steps") if len({r[k] for r in rows}) > 1]
    scores = np.array([r[metric] for r in rows], np.float64)
    low, high = float(scores.min()), float(scores.max())
    shades = (scores - low) / (high - low if high > low else 1.0)
    figure = Figure(figsize=(2.1 * (len(keys) + 1) + 1, 4.2), layout="constrained")
    axes = figure.add_subplot()
    levels = {k: _levels(rows, k) for k in keys}
    across = np.linspace(0, len(keys), 40 * max(1, len(keys)))
    for i in reversed(range(len(rows))):  # the best on top
        shift = 0.1 * ((i + 0.5) / len(rows) - 0.5)  # trials of one setting lie beside each other
        places = [levels[k][rows[i][k]] + shift for k in keys] + [float(shades[i])]
        color = colormaps["viridis"](0.92 * float(shades[i]))
        axes.plot(across, _smooth(across, places), color=color, linewidth=3.2 if i == 0 else 1.5, alpha=0.9)
    for x, key in enumerate(keys):
        axes.axvline(x, color="#63676f", linewidth=1)
        for value, y in levels[key].items():
            axes.annotate(
                "none" if value is None else str(value), (x, y), (5, 0), textcoords="offset points", va="center",
                size=10, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
            )  # fmt: skip
    axes.axvline(len(keys), color="#63676f", linewidth=1)
    for score in np.linspace(low, high, 5) if high > low else [low]:
        y = (score - low) / (high - low if high > low else 1.0)
        axes.annotate(f"{score:.1f}", (len(keys), y), (5, 0), textcoords="offset points", va="center", size=10)
    axes.set_xticks(range(len(keys) + 1), [*keys, metric])
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(keys) + 0.35)
    axes.set_ylim(-0.08, 1.08)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=11)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=144, metadata={"Software": None})
    return sink.getvalue()


def _levels(rows: Sequence[Mapping[str, Any]], key: str) -> dict[Any, float]:
    """Each value's height in [0, 1], evenly spaced: numbers in their order, null below them, words by name."""
    values = sorted({r[key] for r in rows}, key=lambda v: (v is not None, isinstance(v, str), v))
    return {v: 0.5 if len(values) == 1 else i / (len(values) - 1) for i, v in enumerate(values)}


def _smooth(across: np.ndarray, places: Sequence[float]) -> np.ndarray:
    """Heights at `across`, level at each axis."""
    at = np.clip(across.astype(int), 0, max(0, len(places) - 2))
    t = across - at
    start, end = np.array(places)[at], np.array(places)[np.minimum(at + 1, len(places) - 1)]
    return start + (end - start) * t * t * (3 - 2 * t)
