"""The report's charts: matplotlib SVG whose colours are the page's own, so that they turn with light and dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Colours that stand for the page's CSS variables while matplotlib draws.
INK, SOFT, LINE, WARM, COOL, FAINT = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", WARM: "--warm", COOL: "--cool", FAINT: "--faint"}
CROWDED = 8  # with more rounds than this, only the first, the best and the last carry their values
_POINTS = 72.0  # SVG units per inch in matplotlib


class Curve(NamedTuple):
    """A line of a chart: its name, x and y, colour, width, and whether it is dashed."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = COOL
    width: float = 2.0
    dashed: bool = False
    opacity: float = 1.0


def rounds_chart(curves: Sequence[Curve], best: int | None) -> str:
    """AUC by round: a line for each split, every point with its value, the best round marked."""
    figure, axes = blank(372, 280)
    values = np.array([v for c in curves for v in c.y], np.float64)
    span = max(float(np.ptp(values)), 4.0)
    low, high = max(0.0, float(values.min()) - 0.35 * span), min(100.0, float(values.max()) + 0.35 * span)
    rounds = sorted({x for c in curves for x in c.x})
    if best is not None:
        axes.axvspan(best - 0.22, best + 0.22, color=FAINT, linewidth=0)
        axes.text(
            best, low + 0.03 * (high - low), "best on\nvalidation", ha="center", va="bottom", color=SOFT, size=10.5
        )
    ends = {c.label: np.interp(rounds, c.x, c.y) for c in curves}
    for c in curves:
        axes.plot(c.x, c.y, color=c.color, linewidth=2.2, marker="o", markersize=5.5, clip_on=False)
        others = [v for name, v in ends.items() if name != c.label]
        for x, y in zip(c.x, c.y, strict=True):
            if len(rounds) > CROWDED and x not in (rounds[0], rounds[-1], best):
                continue
            above = all(y >= o[rounds.index(x)] for o in others)
            axes.annotate(
                f"{y:.1f}", (x, y), (0, 9 if above else -9), textcoords="offset points", ha="center",
                va="bottom" if above else "top", color=c.color, size=12, weight="bold",
            )  # fmt: skip
    room = max(0.45, 0.08 * (max(rounds) - min(rounds)))
    axes.set_xlim(min(rounds) - room, max(rounds) + room)
    axes.set_ylim(low, high)
    axes.set_xticks(rounds, [f"{r:.0f}" for r in rounds])
    axes.set_xlabel("round")
    _legend(axes, curves, "lower left", bbox_to_anchor=(-0.02, 0.99), ncols=len(curves), borderaxespad=0)
    return as_svg(figure, "AUC by round")


def pck_chart(curves: Sequence[Curve], name: str) -> str:
    """Share of joints within a distance, for distances as shares of the box's longer side."""
    figure, axes = blank(372, 280)
    axes.axvspan(0.06, 0.10, color=FAINT, linewidth=0)
    axes.text(0.08, 101, "AUC range", ha="center", va="bottom", size=10.5, color=SOFT)
    for c in curves:
        axes.plot(
            c.x, c.y, color=c.color, linewidth=c.width, linestyle=(0, (4, 2.5)) if c.dashed else "-", alpha=c.opacity,
            solid_capstyle="round",
        )  # fmt: skip
    axes.set_xlim(0, max(x for c in curves for x in c.x))
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    axes.set_xlabel("distance / longer side of the box")
    named = list(curves)
    if len(named) > CROWDED:
        thick = max(c.width for c in named)
        named = [c for c in named if c.dashed or c.width == thick] + [curves[len(curves) // 2]._replace(label="others")]
    _legend(axes, named, "lower right")
    return as_svg(figure, name)


def histogram(scores: np.ndarray, selected: np.ndarray, unit: str) -> str:
    """How the scores of a round lie, kept and rejected, with the cut between them; [N] float and [N] bool."""
    finite = np.isfinite(scores)
    scores, selected = scores[finite], selected[finite]
    low, high = np.quantile(scores, [0.0, 0.98])
    low = 0.0 if 0 <= low < 0.25 * high else float(low)
    step = max(float(high) - low, 1e-9) / 36
    cut = _cut(scores, selected)
    if cut is not None and cut > low + step:
        step = (cut - low) / round((cut - low) / step)  # the cut lies between two bars, not within one
    edges = low + step * np.arange(int(np.ceil((high - low) / step)) + 1)
    figure, axes = blank(440, 180)
    shown = np.clip(scores, edges[0], edges[-1] - step / 2)
    for rows, color in ((selected, COOL), (~selected, SOFT)):
        axes.hist(shown[rows], edges, color=color, alpha=0.9 if color == COOL else 0.45, linewidth=0)
    if cut is not None:
        axes.axvline(cut, color=INK, linewidth=1.4)
        left = cut < (edges[0] + edges[-1]) / 2
        axes.annotate(
            f"cut at {cut:.3g}{unit}", (cut, 1), (6 if left else -6, -3), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="left" if left else "right", va="top", color=INK, size=12, weight="bold",
        )  # fmt: skip
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylabel("animals")
    beyond = int((scores > edges[-1]).sum())
    axes.set_xlabel(
        f"score{f' ({unit.strip()})' if unit else ''}" + (f"; the last bar holds {beyond} beyond" if beyond else "")
    )
    axes.yaxis.set_major_locator(_locator())
    return as_svg(figure, "scores")


def _cut(scores: np.ndarray, selected: np.ndarray) -> float | None:
    """The score between the last kept and the first rejected; None if nothing was kept, or nothing rejected."""
    if selected.all() or not selected.any():
        return None
    kept, lost = scores[selected], scores[~selected]
    return float((kept.max() + lost.min()) / 2 if kept.mean() <= lost.mean() else (kept.min() + lost.max()) / 2)


def blank(width: int, height: int) -> tuple[Any, Any]:
    """An empty figure of this size and its axes, in the page's style."""
    import matplotlib

    style: Any = {
        "svg.fonttype": "none", "font.size": 12, "axes.edgecolor": LINE, "axes.labelcolor": SOFT, "xtick.color": LINE,
        "ytick.color": LINE, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT, "axes.spines.top": False,
        "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True, "axes.grid.axis": "y",
        "grid.color": LINE, "grid.linewidth": 0.8, "axes.axisbelow": True, "text.color": INK, "ytick.major.size": 0,
        "axes.facecolor": "none", "figure.facecolor": "none",
    }  # fmt: skip
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width / _POINTS, height / _POINTS), layout="constrained")
        return figure, figure.add_subplot()


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, integer=True)


def _legend(axes: Any, curves: Sequence[Curve], where: str, **more: Any) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=c.color, linewidth=max(c.width, 2), alpha=c.opacity, linestyle="--" if c.dashed else "-")
        for c in curves
    ]
    axes.legend(
        lines,
        [c.label for c in curves],
        loc=where,
        frameon=False,
        fontsize=12,
        handlelength=1.6,
        labelcolor=INK,
        **more,
    )


def as_svg(figure: Any, name: str) -> str:
    """The figure as SVG in the page's own colours; `name` is what a screen reader says."""
    import matplotlib

    sink = io.StringIO()
    # Date and hash salt fixed: the same run gives the same report.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(sink, format="svg", metadata={"Date": None}, transparent=True)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    head, _, rest = text.partition(">")
    view = head[head.index('viewBox="') :].split('"')[1]
    return f'<svg class="chart" role="img" aria-label="{name}" viewBox="{view}">{rest}'


_PRINTED = {INK: "#1b1d22", SOFT: "#63676f", LINE: "#dcdde0", WARM: "#c2570c", COOL: "#0b6fb8", FAINT: "#eeeff1"}


def as_png(figure: Any) -> bytes:
    """The figure as a picture on white, in the colours that the page has by day."""
    from matplotlib.colors import to_hex

    for artist in figure.findobj():
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get = getattr(artist, f"get_{name}", None)
            value: Any = get() if get else None
            try:
                color = to_hex(value)
            except (TypeError, ValueError):  # none, or one for each point
                continue
            if color in _PRINTED:
                getattr(artist, f"set_{name}")(_PRINTED[color])
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return sink.getvalue()
