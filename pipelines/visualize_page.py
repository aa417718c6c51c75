"""The page of `visualize`: one HTML file beside its pictures, which opens from disk."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from pipelines.report_crops import VIEW, figure, pose_layer
from pipelines.report_page import page
from tables import write_atomically


class Shape(NamedTuple):
    """One animal; its pictures are named by its id.

    Attributes:
        truth, found: [K, 2] labelled and reprojected joints, percent of the stored crop.
        visible: [K] bool, labelled joints.
        error: mean distance of the labelled joints by the longer side of the box; NaN without one.
        within: labelled joints that are off by less than a tenth of that side.
        camera_deg: how far the camera is off, where the label knows it.
    """

    name: str
    truth: np.ndarray
    found: np.ndarray
    visible: np.ndarray
    error: float
    within: int
    camera_deg: float | None


STYLE = """
.shapes { display: grid; grid-template-columns: repeat(auto-fill,minmax(min(100%,540px),1fr)); gap: 18px }
.three-up { display: grid; grid-template-columns: repeat(3,1fr); gap: 10px }
.three-up figure { margin: 0 }
.three-up figcaption { font-size: 13px; color: var(--soft); margin-top: 3px }
.three-up img { width: 100%; aspect-ratio: 1; display: block; border-radius: 8px; background: #fff }
.card code { color: var(--soft) }
"""


def write_page(path: str, title: str, about: str, shapes: Sequence[Shape]) -> None:
    """Write the page, whole or not at all.

    Args:
        about: a sentence on the network.
    """
    body = (
        f'<p class="kicker">wildshape</p><h1>{escape(title)}</h1><p class="summary">{escape(about)}</p>'
        '<div class="tools"><span><i></i> label</span><span><i class="o"></i> reprojected joints</span>'
        '<label>mesh over the photo <input type="range" min="0" max="1" step="0.01" value="0.5" '
        'aria-label="opacity of the mesh" '
        "oninput=\"document.documentElement.style.setProperty('--mesh',this.value)\"></label></div>"
        f'<div class="shapes">{"".join(map(_card, shapes))}</div>'
    )
    html = page(f"{title}: wildshape", body, f":root {{ --mesh: .5 }}{STYLE}")
    write_atomically(path, html.encode())


def _card(s: Shape) -> str:
    low, side = VIEW
    placed = f'x="{low:g}" y="{low:g}" width="{side:g}" height="{side:g}"'
    layers = (
        f'<image href="{s.name}.jpg" {placed}/>',
        f'<image class="mesh" href="{s.name}_shape.png" {placed}/>',
        pose_layer(s.truth, np.where(s.visible, 1.0, np.nan), "two"),
        pose_layer(s.found, None, "three"),
    )
    pictures = (
        (figure("", *layers), "the input"),
        (f'<img src="{s.name}_shape.png" alt="shape from its predicted view">', "from its predicted view"),
        (f'<img src="{s.name}.gif" alt="shape turning">', "turning"),
    )
    cells = "".join(f"<figure>{p}<figcaption>{n}</figcaption></figure>" for p, n in pictures)
    camera = "" if s.camera_deg is None else f"<span>camera off by <b>{s.camera_deg:.0f}&deg;</b></span>"
    joints = int(s.visible.sum())
    error = f"<span>mean error <b>{100 * s.error:.1f} %</b> of the box side</span>" if joints else ""
    return (
        f'<article class="card"><div class="three-up">{cells}</div><p class="facts">{error}'
        f"<span><b>{s.within} / {joints}</b> joints within 10 %</span>{camera}<code>{s.name}</code></p></article>"
    )
