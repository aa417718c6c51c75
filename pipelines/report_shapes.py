"""A 3D network's shapes over labelled photos: a fixed spread from good to bad by error, so that none can be picked."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pyarrow.compute as pc

from models.checkpoint import load_checkpoint
from models.crops import SEEN, STORED
from models.predict import predict_acsm
from models.template import Template
from pipelines import report_crops as crops
from pipelines.posed_mesh import TO_GLTF
from pipelines.report_mesh import part_colors, shade, webp
from pipelines.report_page import data, note
from pipelines.report_three import three_js
from pipelines.shape_errors import NEAR, ShapeErrors, shape_errors
from tables import InputError, Lake, to_numpy
from trainers.data import instances_from, label_table

# Where in the order of errors the shown instances stand.
SPREAD = {"Good": (0.05, 0.15, 0.25), "Median": (0.45, 0.50, 0.55), "Bad": (0.75, 0.85, 0.95)}
PIXELS, PHOTO_PIXELS = 320, 400
ZOOM = SEEN / STORED * 100 / crops.VIEW[1]  # the network's window within what is shown of the stored crop
_BATCH = 64


@dataclass(frozen=True)
class Shown:
    """One instance: its rank by error among `of`, its numbers, its picture (SVG) and its mesh.

    Attributes:
        vertices: [V, 3] float32: x right, y up, z towards the viewer; [-1, 1] spans the network's window.
    """

    name: str
    rank: int
    of: int
    error: float
    within: int
    joints: int
    camera_deg: float
    picture: str
    vertices: np.ndarray


@dataclass(frozen=True)
class Shapes:
    """The instances by group, and the template that gives all of them faces and colours."""

    groups: dict[str, list[Shown]]
    template: Template


def spread_of_shapes(lake: Lake, category: str, model: str, split: str) -> Shapes | None:
    """Predict on a split with a 3D checkpoint and draw instances at fixed places in the order of their errors.

    Returns:
        None if the split has no instance with a visible joint.

    Raises:
        InputError: the lake has no labels, or the checkpoint cannot be read.
    """
    net: Any = load_checkpoint(model)
    rows = label_table(lake, category)
    rows = rows.filter(pc.equal(rows["split"], split))
    if not len(rows):
        return None
    rows = rows.take(pc.sort_indices(rows, sort_keys=[("instance_id", "ascending")]))
    found = instances_from(rows, net.config["image_size"])
    parts = [found.take(np.arange(s, min(s + _BATCH, len(found)))) for s in range(0, len(found), _BATCH)]
    outs = [predict_acsm(net, p.crops, mesh=True) for p in parts]
    judged = ShapeErrors(*map(np.concatenate, zip(*map(shape_errors, outs, parts), strict=True)))
    order = np.argsort(judged.error, kind="stable")  # NaN last
    order = order[np.isfinite(judged.error[order])]
    if not len(order):
        return None
    places = {g: sorted({round(q * (len(order) - 1)) for q in at}) for g, at in SPREAD.items()}
    taken = [p for group in places.values() for p in group]
    mesh = np.stack([outs[i // _BATCH].vertices[i % _BATCH, 0].numpy() for i in order[taken]]).astype(np.float64)
    over = shade(mesh * ZOOM, net.template, PIXELS)
    stored, windows = rows["crop"].to_pylist(), to_numpy(rows["window"], 3)
    shown: dict[int, Shown] = {}
    for n, place in enumerate(taken):
        i = order[place]
        label = np.where(judged.visible[i], 1.0, np.nan)
        picture = crops.figure(
            crops.crop_image(stored[i], PHOTO_PIXELS), crops.mesh_layer(webp(over[n], 78)),
            crops.pose_layer(crops.in_crop(judged.truth[i], windows[i]), label, "two"),
            crops.pose_layer(crops.in_crop(judged.found[i], windows[i]), None, "three"),
        )  # fmt: skip
        shown[place] = Shown(
            found.ids[i], place + 1, len(order), float(judged.error[i]), int(judged.within[i]),
            int(judged.visible[i].sum()), float(judged.camera_deg[i]), picture,
            (mesh[n] * TO_GLTF).astype(np.float32),
        )  # fmt: skip
    return Shapes({g: [shown[p] for p in at] for g, at in places.items()}, net.template)


def shapes_html(lake: Lake, category: str, model: str | None, split: str | None) -> str:
    """The viewer of `spread_of_shapes` with its data, or a sentence that says why there is none."""
    if split is None:
        return note("No labelled split was evaluated, so there is nothing to compare shapes with.")
    if model is None:
        return note("The round\u2019s checkpoint is no longer in the lake.")
    try:
        shapes = spread_of_shapes(lake, category, model, split)
    except InputError as error:
        return note(f"No shapes: {error}")
    if shapes is None:
        return note(f"The {split} split has no labelled joint.")
    choices = "".join(_group(name, found) for name, found in shapes.groups.items())
    view = _VIEW if three_js() else note(_MISSING)
    return f'<div class="choices">{choices}</div>{_STAGE.replace("VIEW", view)}{data("shapes-data", plain(shapes))}'


def plain(shapes: Shapes) -> dict[str, Any]:
    """What the page's script needs: little-endian arrays in base64, the topology once for all shapes."""
    template = shapes.template
    colors = np.clip(np.round(template.weights @ part_colors(template)), 0, 255)
    return {
        "faces": _packed(template.faces, "<u4"),
        "colors": _packed(colors, "u1"),
        "half": 1 / ZOOM,  # half the side of the shown photo in the vertices' unit
        "shapes": {s.name: _packed(s.vertices, "<f4") for found in shapes.groups.values() for s in found},
    }


def _packed(values: Any, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


_MISSING = "No 3D view: the installed trimesh does not carry three.js in the form that this page knows."
_VIEW = """<figure><div class="view">
<canvas id="view" tabindex="0" role="application" aria-describedby="view-help"></canvas></div>
<figcaption class="tools"><label><input type="checkbox" id="behind" checked>photo behind it</label>
<button type="button" id="reset">back to the photo&rsquo;s view</button></figcaption>
<p class="note" id="view-help">Drag to turn the shape, or use the arrow keys while it has the focus; + and &minus; or
the wheel zoom, 0 goes back to the photo&rsquo;s view.</p></figure>"""
_STAGE = f"""<div class="stage"><figure><div id="photo"></div><figcaption class="tools">
<label><input type="checkbox" id="label" checked><i></i>label</label>
<label><input type="checkbox" id="joints" checked><i class="o"></i>reprojected joints</label>
<label>mesh
<input type="range" id="mesh" min="0" max="1" step="0.01" value="0" aria-label="opacity of the mesh"></label>
</figcaption><p class="facts" id="facts" aria-live="polite"></p>
<p class="files"><button type="button" id="glb">Download GLB</button>
<button type="button" id="obj">Download OBJ</button>
<span class="note">coloured by part; x right, y up, z towards the camera</span></p></figure>VIEW</div>
<noscript>{note("The 3D view and the downloads need JavaScript.")}</noscript>
"""


def _group(name: str, found: list[Shown]) -> str:
    choices = "".join(_choice(name, s) for s in found)
    return f'<fieldset><legend class="{name.lower()}">{name}</legend>{choices}</fieldset>'


def _choice(group: str, s: Shown) -> str:
    camera = f"<span>camera off by <b>{s.camera_deg:.0f}&deg;</b></span>" if np.isfinite(s.camera_deg) else ""
    facts = (
        f"<span><b>{s.rank}</b> of {s.of} by error</span>"
        f"<span>mean error <b>{100 * s.error:.1f} %</b> of the box side</span>"
        f"<span><b>{s.within} / {s.joints}</b> joints within {100 * NEAR:.0f} %</span>{camera}"
        f"<code>{escape(s.name)}</code>"
    )
    return (
        f'<label class="choice"><input type="radio" name="shape" value="{escape(s.name)}" '
        f'aria-label="{group}: mean error {100 * s.error:.1f} %" data-facts="{escape(facts)}">'
        f"{s.picture}<span>{100 * s.error:.1f} %</span></label>"
    )
