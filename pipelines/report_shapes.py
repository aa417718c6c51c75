"""A 3D network's shapes over labelled photos: a fixed spread from good to bad by error, so that none can be picked."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
import pyarrow.compute as pc

from models.checkpoint import load_checkpoint
from models.crops import SEEN, STORED, to_photo
from models.metrics import camera_error_deg
from models.predict import in_photo, predict_acsm
from pipelines import report_crops as crops
from pipelines.report_mesh import fitted, shade, turned, webp
from tables import InputError, Lake, to_numpy
from trainers.data import instances_from, label_table

# Where in the order of errors the shown instances stand.
SPREAD = {"Good": (0.05, 0.15, 0.25), "Median": (0.45, 0.50, 0.55), "Bad": (0.75, 0.85, 0.95)}
PIXELS = 248
TURN_DEG = 70.0
_BATCH = 64


@dataclass(frozen=True)
class Shown:
    """One instance: its rank by error among `of`, its numbers and its pictures as HTML."""

    rank: int
    of: int
    error: float
    within: int
    visible: int
    camera_deg: float | None
    pictures: tuple[str, str, str, str]


def spread_of_shapes(lake: Lake, category: str, model: str, split: str) -> dict[str, list[Shown]]:
    """Predict on a split with a 3D checkpoint and draw instances at fixed places in the order of their errors.

    The error of an instance is the mean distance of its visible joints by the longer side of its box.

    Returns:
        group -> instances; empty if the split has no instance with a visible joint.

    Raises:
        InputError: the lake has no labels, or the checkpoint cannot be read.
    """
    net = load_checkpoint(model)
    rows = label_table(lake, category)
    rows = rows.filter(pc.equal(rows["split"], split))
    if not len(rows):
        return {}
    rows = rows.take(pc.sort_indices(rows, sort_keys=[("instance_id", "ascending")]))
    data = instances_from(rows, net.config["image_size"])  # type: ignore[arg-type, index]
    outs = [predict_acsm(net, data.crops[s : s + _BATCH], mesh=True) for s in range(0, len(data), _BATCH)]  # type: ignore[arg-type]
    joints = np.concatenate(
        [in_photo(o.keypoints[:, 0], data.windows[i * _BATCH : (i + 1) * _BATCH]) for i, o in enumerate(outs)]
    )
    cameras = np.concatenate([o.camera[:, 0, 3:].numpy() for o in outs])
    truth = to_photo(data.keypoints[..., :2].astype(np.float64), data.windows)
    visible = data.keypoints[..., 2] > 0
    share = np.linalg.norm(joints - truth, axis=-1) / data.size[:, None]
    counts = visible.sum(1)
    error = np.where(visible, share, 0).sum(1) / np.maximum(counts, 1)
    order = np.argsort(error, kind="stable")
    order = order[counts[order] > 0]
    if not len(order):
        return {}
    places = {g: sorted({round(q * (len(order) - 1)) for q in at}) for g, at in SPREAD.items()}
    taken = [p for group in places.values() for p in group]
    index = order[taken]
    mesh = np.stack([outs[i // _BATCH].vertices[i % _BATCH, 0].numpy() for i in index]).astype(np.float64)

    # The network's window within what is shown of the stored crop.
    zoom = SEEN / STORED * 100 / crops.VIEW[1]
    over = shade(mesh * zoom, net.template, PIXELS)  # type: ignore[arg-type]
    front, side = (shade(v, net.template, PIXELS) for v in fitted([mesh, turned(mesh, TURN_DEG)]))  # type: ignore[arg-type]
    stored, windows = rows["crop"].to_pylist(), to_numpy(rows["window"], 3)
    shown: dict[int, Shown] = {}
    for n, (place, i) in enumerate(zip(taken, index, strict=True)):
        photo = crops.crop_image(stored[i])
        label = crops.pose_layer(crops.in_crop(truth[i], windows[i]), np.where(visible[i], 1.0, np.nan), "two")
        guess = crops.pose_layer(crops.in_crop(joints[i], windows[i]), None, "three")
        known = bool(np.isfinite(data.cameras[i]).all())
        shown[place] = Shown(
            rank=place + 1, of=len(order), error=float(error[i]), visible=int(counts[i]),
            within=int((visible[i] & (share[i] < 0.10)).sum()),
            camera_deg=camera_error_deg(cameras[i : i + 1], data.cameras[i : i + 1], [1]) if known else None,
            pictures=(
                crops.figure(photo, label, guess),
                crops.figure(photo, crops.mesh_layer(webp(over[n], 78))),
                f'<img class="shape" alt="shape from its predicted view" src="{webp(front[n], 78)}">',
                f'<img class="shape" alt="shape turned" src="{webp(side[n], 78)}">',
            ),
        )  # fmt: skip
    return {g: [shown[p] for p in at] for g, at in places.items()}


def shapes_html(lake: Lake, category: str, model: str | None, split: str | None) -> str:
    """The cards of `spread_of_shapes`, or a sentence that says why there are none."""
    if split is None:
        return '<p class="note">No labelled split was evaluated, so there is nothing to compare shapes with.</p>'
    if model is None:
        return '<p class="note">The round&rsquo;s checkpoint is no longer in the lake.</p>'
    try:
        groups = spread_of_shapes(lake, category, model, split)
    except InputError as error:
        return f'<p class="note">No shapes: {escape(str(error))}</p>'
    if not groups:
        return f'<p class="note">The {escape(split)} split has no labelled joint.</p>'
    return "".join(
        f'<h3 class="group {g.lower()}">{g}</h3><div class="cards">{"".join(map(_card, found))}</div>'
        for g, found in groups.items()
    )


def _card(s: Shown) -> str:
    names = (
        "label and reprojection",
        "mesh over the photo",
        "from its predicted view",
        f"turned by {TURN_DEG:.0f}&deg;",
    )
    cells = "".join(f"<figure>{p}<figcaption>{n}</figcaption></figure>" for p, n in zip(s.pictures, names, strict=True))
    camera = "" if s.camera_deg is None else f"<span>camera off by <b>{s.camera_deg:.0f}&deg;</b></span>"
    return (
        f'<article class="card"><div class="quad">{cells}</div><p class="facts">'
        f"<span><b>{s.rank}</b> of {s.of} by error</span>"
        f"<span>mean error <b>{100 * s.error:.1f} %</b> of the box side</span>"
        f"<span><b>{s.within} / {s.visible}</b> joints within 10 %</span>{camera}</p></article>"
    )
