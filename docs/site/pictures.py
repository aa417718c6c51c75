"""The pictures of docs/concepts.md, from a run in the sandbox (what the README's first command leaves in `./lake`).

    python -m docs.site.pictures lake docs/images

Another run gives other animals and the same ideas.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch

from models import load_checkpoint
from models.articulation import part_transforms, skin
from models.camera import axis_angle_to_quat, project, quat_multiply
from models.crops import SEEN, STORED, to_photo, window
from models.photo import decode_photo
from models.predict import predict_acsm
from models.template import Template
from models.template_picture import PANEL, template_picture
from pipelines.pose_picture import THREE, TWO
from pipelines.report_mesh import shade
from pipelines.round_pictures import contact_sheet
from pipelines.run_record import open_run
from selection import score
from tables import QUADRUPED, Lake, join_rows, to_numpy

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

SIZE = 360  # pixels of a drawn mesh
BLUE, ORANGE, GREY = (tuple(c / 255 for c in colour) for colour in (TWO, THREE, (70, 70, 80)))
GREEN = (0.17, 0.6, 0.3)


def main(uri: str, folder: Path) -> None:
    """Draw all pictures from the run `default` of a lake into a folder."""
    lake = Lake(uri)
    run = open_run(lake, "default")
    net: Any = load_checkpoint(str(run.model_path(1)))
    chosen, pseudo, instances = (run.dataset(t, 1) for t in ("selections", "pseudo_labels", "instances"))
    assert chosen is not None
    assert pseudo is not None
    assert instances is not None
    rows = join_rows(chosen.read(), pseudo.read(), "instance_id")
    rows = join_rows(rows, instances.read(["instance_id", "bbox", "crop"]), "instance_id").sort_by("rank")
    template_views(net.template, folder)
    camera(net.template, folder)
    articulation(net.template, folder)
    good, bad = _clear(rows, 0.02), _clear(rows, 0.75)
    pseudo_labels(net, rows, good, folder)
    criteria(rows, good, bad, folder)
    rounds(folder)
    contact_sheet(chosen.read().sort_by("rank"), pseudo, instances).save(folder / "concept_selection.jpg", quality=85)


def template_views(template: Template, folder: Path) -> None:
    """Of the picture that `wildshape template` makes the side with its names large, and two views below it."""
    width, height = PANEL
    whole = template_picture(template)
    side, three_quarters, bent = (
        whole[y:, x:][:height, :width] for x, y in ((0, 0), (width, height), (2 * width, height))
    )
    large = cv2.resize(side, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)[height // 5 : -height // 5]
    both = np.concatenate([large, np.concatenate([three_quarters, bent], 1)], 0)
    cv2.imwrite(str(folder / "concept_template.png"), cv2.cvtColor(both, cv2.COLOR_RGB2BGR))


def camera(template: Template, folder: Path) -> None:
    """One template under six cameras."""
    views = [
        ("s 0.8, t (0, 0), azimuth 60°", 0.8, 0.0, 0.0, 60, 0),
        ("s 0.5: smaller, or farther", 0.5, 0.0, 0.0, 60, 0),
        ("t (0.3, -0.3): shifted", 0.5, 0.3, -0.3, 60, 0),
        ("azimuth 0°: from the front", 0.8, 0.0, 0.0, 0, 0),
        ("azimuth 150°: from behind", 0.8, 0.0, 0.0, 150, 0),
        ("elevation 35°: from above", 0.8, 0.0, 0.0, 60, 35),
    ]
    figure, panels = plt.subplots(2, 3, figsize=(8, 5.6))
    for axes, (title, s, tx, ty, azimuth, elevation) in zip(panels.flat, views, strict=True):
        _mesh(axes, template, project(_camera(s, tx, ty, azimuth, elevation), torch.tensor(template.vertices)).numpy())
        axes.set_title(title, fontsize=10)
        axes.axhline(0, color=GREY, linewidth=0.4)
        axes.axvline(0, color=GREY, linewidth=0.4)
        axes.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axes.tick_params(labelsize=7, length=2)
    panels[0, 0].set_xlabel("x, to the right", fontsize=8)
    panels[0, 0].set_ylabel("y, down", fontsize=8)
    _save(figure, folder / "concept_camera.png")


def articulation(template: Template, folder: Path) -> None:
    """A tree of parts, each turned about its own axis at its pivot and carried along by its parents."""
    poses: list[tuple[str, dict[str, float]]] = [
        ("rest", {}),
        ("neck 35°: the head goes along", {"neck": 35}),
        ("head 35° alone", {"head": 35}),
        ("neck and head 35° each", {"neck": 35, "head": 35}),
        ("legs", {"leg_LF": -30, "leg_RF": 15, "leg_LB": 25, "leg_RB": -20}),
        ("tail 50°", {"tail": 50}),
    ]
    figure, panels = plt.subplots(2, 3, figsize=(8, 4.6))
    axes_of_parts = torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(template.parts), 1)
    look = _camera(0.85, 0.0, 0.0, 90, 8)
    for axes, (title, bent) in zip(panels.flat, poses, strict=True):
        angles = torch.tensor([math.radians(bent.get(name, 0.0)) for name in template.parts])
        moves = part_transforms(axes_of_parts, angles, torch.tensor(template.pivots), template.parents)
        posed = skin(torch.tensor(template.vertices), torch.tensor(template.weights), moves)
        _mesh(axes, template, project(look, posed).numpy())
        pivots = (moves[..., :3] @ torch.tensor(template.pivots)[..., None])[..., 0] + moves[..., 3]
        at = project(look, pivots).numpy()
        marked = [p for p, name in enumerate(template.parts) if name in bent]
        axes.plot(at[marked, 0], at[marked, 1], "x", color="black", markersize=7, markeredgewidth=2)
        axes.set(title=title, ylim=(0.65, -0.65))
        axes.title.set_size(10)
        axes.axis("off")
    _save(figure, folder / "concept_articulation.png")


def pseudo_labels(net: Any, rows: Any, i: int, folder: Path) -> None:
    """What each network says of one web animal."""
    crop, (two, aux, views, three) = _crop(rows, i), _opinions(rows, i)
    vertices = predict_acsm(net, crop[None], mesh=True).vertices[0, 0].numpy() * (SEEN / STORED)
    titles = ("crop", "2D net", "auxiliary 2D net", "2D net, seven views", "3D net, its joints", "3D net, its mesh")
    figure, grid = plt.subplots(2, 3, figsize=(8, 5.7))
    panels = grid.flat
    for axes, title in zip(panels, titles, strict=True):
        axes.imshow(crop, extent=(-1, 1, 1, -1))
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    _pose(panels[1], two[:, :2], BLUE, two[:, 2])
    _pose(panels[2], aux[:, :2], GREEN, aux[:, 2])
    for view in views:
        panels[3].plot(*view[:, :2].T, ".", color=BLUE, markersize=3.5, markeredgecolor="black", markeredgewidth=0.3)
    _pose(panels[4], three, ORANGE)
    panels[5].imshow(shade(vertices[None], net.template, SIZE)[0], extent=(-1, 1, 1, -1))
    _save(figure, folder / "concept_pseudo_labels.jpg")


def criteria(rows: Any, good: int, bad: int, folder: Path) -> None:
    """What the four criteria of the method measure, on an animal that is kept and one that is not."""
    figure, panels = plt.subplots(2, 4, figsize=(8, 4.5))
    names = ("kp_conf", "cf_mt", "cf_cm", "cf_cm2")
    scores = {name: score(name, rows) for name in names}
    for line, i in zip(panels, (good, bad), strict=True):
        crop, (two, aux, views, three) = _crop(rows, i), _opinions(rows, i)
        others = (None, views[1:].mean(0)[:, :2], aux[:, :2], three)
        for axes, name, other, colour in zip(line, names, others, (BLUE, BLUE, GREEN, ORANGE), strict=True):
            axes.imshow(crop, extent=(-1, 1, 1, -1), alpha=0.75)
            axes.axis("off")
            if other is None:
                axes.scatter(*two[:, :2].T, s=4 + 80 * two[:, 2], color=BLUE, edgecolor="black", linewidth=0.5)
            else:
                for a, b in zip(two[:, :2], other, strict=True):
                    axes.plot(*np.stack([a, b]).T, color="white", linewidth=2.5)
                    axes.plot(*np.stack([a, b]).T, color="crimson", linewidth=1.5)
                axes.plot(*other.T, "s", color=colour, markersize=4, markeredgecolor="black", markeredgewidth=0.4)
                axes.plot(*two[:, :2].T, "o", color=BLUE, markersize=4, markeredgecolor="black", markeredgewidth=0.4)
            axes.set_title(f"{name}: {scores[name][i]:.1f}", fontsize=10)
    _save(figure, folder / "concept_criteria.jpg")


def rounds(folder: Path) -> None:
    """Who judges whom."""
    figure, axes = plt.subplots(figsize=(8, 3.1))
    axes.set(xlim=(0, 8), ylim=(0, 3.1))
    axes.axis("off")

    def box(x: float, y: float, wide: float, text: str, colour: str) -> None:
        axes.add_patch(FancyBboxPatch((x, y), wide, 0.6, "round,pad=0.03", facecolor=colour, edgecolor="none"))
        axes.text(x + wide / 2, y + 0.3, text, ha="center", va="center", fontsize=9.5)

    def arrow(a: tuple[float, float], b: tuple[float, float], text: str, shift: tuple[float, float]) -> None:
        axes.annotate("", b, a, arrowprops={"arrowstyle": "-|>", "color": GREY, "shrinkA": 1, "shrinkB": 1})
        at = (a[0] + b[0]) / 2 + shift[0], (a[1] + b[1]) / 2 + shift[1]
        axes.text(*at, text, fontsize=8, color=GREY, va="center", ha="left" if shift[0] else "center")

    box(0.1, 2.4, 7.8, "labels", "#cfe8d5")
    box(0.1, 0.1, 7.8, "animals in web photos, and what the 2D nets say of them", "#d6e4f5")
    for number, x in enumerate((0.1, 3.45, 6.8)):
        box(x, 1.25, 1.1, f"3D net {number}", "#f6d9b8")
        arrow((x + 0.55, 2.36), (x + 0.55, 1.9), "trains", (0.06, 0))
        if number < 2:
            box(x + 1.65, 1.25, 0.95, f"pseudo-\nlabels {number + 1}", "#e3dcf1")
            arrow((x + 1.15, 1.55), (x + 1.6, 1.55), "judges", (0, 0.14))
            arrow((x + 2.12, 0.74), (x + 2.12, 1.2), "", (0.06, 0))
            arrow((x + 2.65, 1.55), (x + 3.3, 1.55), "the best", (0, 0.14))
    _save(figure, folder / "concept_rounds.png")


def _camera(s: float, tx: float, ty: float, azimuth: float, elevation: float) -> torch.Tensor:
    """From the front at azimuth 0: the template has Y up, a picture has y down."""
    x, y = torch.eye(3)[:2]
    front = axis_angle_to_quat(x, torch.tensor(math.pi + math.radians(elevation)))
    turn = quat_multiply(front, axis_angle_to_quat(y, torch.tensor(math.radians(azimuth))))
    return torch.cat([torch.tensor([s, tx, ty]), turn])


def _mesh(axes: Any, template: Template, vertices: np.ndarray) -> None:
    axes.imshow(shade(vertices[None], template, SIZE)[0], extent=(-1, 1, 1, -1))
    axes.set(xlim=(-1, 1), ylim=(1, -1))


def _pose(axes: Any, joints: np.ndarray, colour: Any, confidence: np.ndarray | None = None) -> None:
    for a, b in QUADRUPED.edges:
        axes.plot(*joints[[a, b]].T, color="black", linewidth=2.4)
        axes.plot(*joints[[a, b]].T, color=colour, linewidth=1.4)
    size = 14 if confidence is None else 3 + 28 * confidence
    axes.scatter(*joints.T, s=size, color=colour, edgecolor="black", linewidth=0.5, zorder=3)


def _clear(rows: Any, share: float) -> int:
    """The largest of the animals about this share of the ranking, which a reader can make something of."""
    near = np.arange(int(share * len(rows)), min(len(rows), int(share * len(rows)) + 25))
    return int(near[to_numpy(rows["bbox"], 4)[near, 2:].max(1).argmax()])


def _crop(rows: Any, i: int) -> np.ndarray:
    found = decode_photo(rows["crop"][i].as_py())
    assert found is not None
    return cv2.resize(found, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def _opinions(rows: Any, i: int) -> tuple[np.ndarray, ...]:
    """Joints of the 2D net [K,3], of the auxiliary one, its seven views [T,K,3], of the 3D net [K,2]: in the crop."""
    win = window(to_numpy(rows["bbox"], 4)[i], STORED)
    corner = to_photo(np.array([[[0.0, 0.0]]]), win[None])[0, 0]

    def place(joints: np.ndarray) -> np.ndarray:
        moved = joints.astype(np.float64)
        moved[..., :2] = (moved[..., :2] - corner) / (win[2] / 2)
        return moved

    shapes = (
        ("keypoints", (-1, 3)),
        ("keypoints_aux", (-1, 3)),
        ("keypoints_mt", (-1, len(QUADRUPED), 3)),
        ("keypoints_3d", (-1, 2)),
    )
    return tuple(place(to_numpy(rows[name], *shape)[i]) for name, shape in shapes)


def _save(figure: Any, path: Path) -> None:
    """As wide as a page's text, so that letters keep their size."""
    figure.tight_layout()
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
