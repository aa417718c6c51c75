"""A round's diagnostics drawn: charts and a table for the report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from pipelines import report_page as page
from pipelines.diagnostics import THRESHOLDS
from pipelines.report_figures import COOL, FAINT, INK, SOFT, WARM, as_svg, blank
from selection import VIEW_NAMES

Found = Mapping[str, Any]
_NONE = "&ndash;"
SIZE = (372, 280)
DASHES = ("-", (0, (5, 2)), (0, (2, 1.6)), (0, (7, 2, 1.5, 2)))
SHORT = ("front", "front\nright", "right", "back\nright", "back", "back\nleft", "left", "front\nleft")


def risk_figure(found: Found) -> Any:
    """Mean error of the best-scored share of the animals, by criterion, between chance and the truth."""
    figure, axes = blank(*SIZE)
    others = [c for c in found["curves"] if c != found["criterion"]]
    for name, curve in found["curves"].items():
        mine = name == found["criterion"]
        style = "-" if mine else DASHES[others.index(name) % len(DASHES)]
        x = [100 * v for v in curve["coverage"]]
        color = WARM if mine else COOL
        axes.plot(x, curve["risk"], color=color, linewidth=2.8 if mine else 1.4, linestyle=style, label=name)
    areas = {r["criterion"]: r["aurc"] for r in found["aurc"]}
    axes.axhline(areas["random"], color=SOFT, linewidth=1.2, linestyle=(0, (1, 2)))
    axes.annotate("random", (100, areas["random"]), (0, 3), textcoords="offset points", color=SOFT, ha="right", size=11)
    share = 100 * found["selected"] / max(1, found["instances"])
    axes.axvline(share, color=INK, linewidth=1)
    right = share < 60
    axes.annotate(
        "selected", (share, 0), (5 if right else -5, 4), xycoords=("data", "axes fraction"), color=INK, size=11,
        textcoords="offset points", va="bottom", ha="left" if right else "right",
    )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 1.25 * max(areas["random"], *(max(c["risk"]) for c in found["curves"].values())))
    axes.set_xlabel("best-scored share of the animals, %")
    axes.set_ylabel("mean error / box side")
    axes.legend(
        loc="upper left", ncols=3, columnspacing=1.2, frameon=False, fontsize=10.5, labelcolor=INK, handlelength=2.2
    )
    return figure


def reliability_figure(found: Found) -> Any:
    """How many joints of a stated confidence are right."""
    figure, axes = blank(*SIZE)
    bins = found["reliability"]
    width = 1 / len(bins["joints"])
    most = max(bins["joints"]) or 1
    for i, (correct, joints) in enumerate(zip(bins["correct"], bins["joints"], strict=True)):
        if correct is not None:
            axes.bar(
                (i + 0.5) * width, 100 * correct, 0.9 * width, color=COOL, alpha=0.25 + 0.65 * joints / most,
                linewidth=0,
            )  # fmt: skip
    axes.plot([0, 1], [0, 100], color=WARM, linewidth=1.6, linestyle=(0, (4, 2.5)))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("confidence of a joint in the 2D net")
    axes.set_ylabel("right, %")
    return figure


def views_figure(found: Found) -> Any:
    """From where the animals are seen: those there are, and those selected."""
    figure, axes = blank(*SIZE)
    places = range(len(VIEW_NAMES))
    for name, color, width in (("all", FAINT, 0.86), ("selected", COOL, 0.5)):
        counts = found["views"][name]
        total = sum(counts) or 1
        axes.bar(
            places, [100 * c / total for c in counts], width, color=color, linewidth=0.8, edgecolor=SOFT, label=name
        )
    axes.set_xticks(list(places), SHORT, fontsize=9.5)
    axes.set_ylabel("share of the animals, %")
    axes.legend(loc="upper left", frameon=False, fontsize=11, labelcolor=INK)
    return figure


COMPARED = (
    "round", "kept", f"PCK@{THRESHOLDS[-1]:.2f}<br>kept", f"PCK@{THRESHOLDS[-1]:.2f}<br>all", "AURC",
    "of what is<br>to gain", "not of the<br>species", "evenness<br>of views", "Jaccard with<br>the former",
)  # fmt: skip


def compared_cells(number: int, found: Found) -> list[str]:
    """A round's row under `COMPARED`."""
    kept, every = (_percent(found["pck"][n][-1]) if "pck" in found else _NONE for n in ("selected", "all"))
    area = next((r for r in found.get("aurc", ()) if r["criterion"] == found["criterion"]), None)
    captured = _NONE if area is None or area["captured"] is None else f"{area['captured']:.0f} %"
    strangers, even, same = (found.get(k) for k in ("strangers", "evenness", "jaccard"))
    return [
        str(number), f"{found['selected']:,} of {found['instances']:,}", kept, every,
        _NONE if area is None else f"{area['aurc']:.4f}", captured, _percent(strangers),
        _NONE if even is None else f"{even:.2f}", _NONE if same is None else f"{same:.2f}",
    ]  # fmt: skip


def diagnostics_html(found: Found | None, opened: bool = False) -> str:
    """The charts and the table of a round, folded away or `opened`; empty where the run has no record of it."""
    if not found:
        return ""
    charts = [page.chart("Viewpoints", "eight directions, told by the 2D joints", as_svg(views_figure(found), "views"))]
    table = ""
    if "aurc" in found:
        side = "on the held-out labels" if "held-out" in found["truth"] else "against the sandbox's truth"
        charts[:0] = [
            page.chart("Risk and coverage", f"error {side}", as_svg(risk_figure(found), "risk and coverage")),
            page.chart(
                "Reliability", f"calibration error {found['ece']:.2f}; darker: more joints",
                as_svg(reliability_figure(found), "reliability"),
            ),
        ]  # fmt: skip
        table = _areas(found)
    return (
        f"<details {'open' if opened else ''}><summary>How good they are <small>{_facts(found)}</small></summary>"
        f'<div class="charts">{"".join(charts)}</div>{table}</details>'
    )


def _facts(found: Found) -> str:
    facts = []
    if "pck" in found:
        kept, every = (_percent(found["pck"][name][-1]) for name in ("selected", "all"))
        which = "the best as many" if "held-out" in found["truth"] else "the selected"
        facts.append(f"PCK@{THRESHOLDS[-1]:.2f} {kept} of {which}, {every} of all")
    if found.get("strangers"):
        facts.append(f"{found['strangers']:.1f} % of the selected are none of the species")
    if found["evenness"] is not None:
        facts.append(f"viewpoints {found['evenness']:.2f} as even as those of all")
    return "; ".join(facts)


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f} %"


def _areas(found: Found) -> str:
    rows = []
    for r in found["aurc"]:
        captured = "&ndash;" if r["captured"] is None else f"{r['captured']:.0f} %"
        rows.append(([escape(r["criterion"]), f"{r['aurc']:.4f}", captured], r["criterion"] == found["criterion"]))
    text = (
        f'<p class="note">Area under risk and coverage (AURC) of {found["aurc"][0]["instances"]:,} animals, lower is '
        "better; the last column is its place between chance (0) and the order of the errors themselves (100).</p>"
    )
    table = page.table(["criterion", "AURC", "of what there is to gain"], rows)
    return f"<details><summary>All criteria <small>by AURC</small></summary>{text}{table}</details>"
