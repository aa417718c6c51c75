"""What a photo shows: how many animals, from where, in what light, behind what. Two distributions, one machinery."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from models.camera import axis_angle_to_quat, quat_multiply
from models.template import Template
from sandbox import background
from sandbox.animal import animal
from sandbox.background import OCCLUDERS, SCENES, Layer
from sandbox.individual import FUR, STRANGE, born, pose
from sandbox.lens import jpeg, lens
from sandbox.photo import Light, Photo, Placed, Seen, render

ASPECTS = ((4, 3), (3, 2), (1, 1), (3, 4), (16, 10))


@dataclass(frozen=True)
class Style:
    """A distribution of photos; angles in degrees, chances in 0..1.

    Attributes:
        elevation, roll: (low, high) and the deviation.
        frontal: chance that the azimuth is drawn from the whole circle; else it is side-ish.
        counts: chances of 1, 2, 3, 4 animals of the kind.
        strangers: chance of distractors beside them.
        occlusion: chance of each of up to three things before an animal.
        truncation: how far (in animal lengths) the animal may be off the photo's middle.
        size: (low, high) of the animal's length over the photo's shorter side.
    """

    elevation: tuple[float, float]
    roll: float
    frontal: float
    counts: tuple[float, float, float, float]
    strangers: float
    occlusion: float
    truncation: float
    size: tuple[float, float]
    swing: float
    blur: float
    variation: float


LABELLED = Style((-5, 25), 4, 0.25, (0.88, 0.12, 0, 0), 0.10, 0.25, 0.10, (0.60, 1.00), 0.85, 0.6, 0.10)
WEB = Style((-15, 50), 10, 0.70, (0.58, 0.25, 0.11, 0.06), 0.22, 0.45, 0.30, (0.42, 1.30), 1.0, 1.0, 0.13)


def take(
    template: Template, style: Style, rng: np.random.Generator, px: int, subject: str = "animals",
    backgrounds: str | None = None,
) -> Photo:  # fmt: skip
    """One photo: `subject` is `animals`, `strangers` (distractors only) or `nothing`.

    Args:
        template: the kind that is labelled.
        px: longer side of the photo.
        backgrounds: folder of photos to cut the backdrop from; None: it is painted.
    """
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    w, h = (round(px * a / max(aspect)) for a in aspect)
    elevation = rng.uniform(*style.elevation)
    light = _light(rng)
    roll = np.deg2rad(rng.normal(0, style.roll))
    animals = _cast(template, style, rng, (h, w), elevation, roll, subject)
    feet = min((_foot(p) for p in animals), default=0.8 * h)  # the ground reaches up to the farthest animal
    horizon = 0.5 * h - np.tan(np.deg2rad(elevation)) * 1.2 * max(h, w)
    horizon = float(np.clip(min(horizon, feet - 0.06 * h), -0.6 * h, 0.85 * h))
    kind = str(rng.choice(SCENES))
    backdrop = background.cut(rng, backgrounds, h, w) if backgrounds else background.paint(rng, kind, h, w, horizon)
    backdrop = backdrop * np.float32(rng.uniform(0.8, 1.1))
    fronts = [_front(p, style, rng, h, w, kind) for p in animals]
    image, seen = render(backdrop, animals, fronts, light)
    final = lens(rng, image, style.blur)
    return Photo(final, jpeg(final, int(rng.integers(40, 96))), seen)


def take_labelled(
    template: Template, rng: np.random.Generator, px: int, as_web: float = 0.0, backgrounds: str | None = None,
    tries: int = 40,
) -> Photo:  # fmt: skip
    """A photo fit for labelling: each animal of the kind is seen well enough (half of it, ten keypoints, a fair size).

    Args:
        as_web: chance that it is as varied as the web's.

    Raises:
        ValueError: no such photo in `tries`.
    """
    style = WEB if as_web and rng.random() < as_web else LABELLED
    for _ in range(tries):
        photo = take(template, style, rng, px, backgrounds=backgrounds)
        good = [s for s in photo.animals if s.target and _fit(s)]
        if good and len(good) == sum(s.target for s in photo.animals):
            return photo
    raise ValueError(f"px={px}: no photo fit for labelling in {tries} tries")


def _fit(seen: Seen) -> bool:
    return seen.share > 0.5 and (seen.keypoints[:, 2] > 0).sum() >= 10 and min(seen.bbox[2:]) >= 12


def view(azimuth: float, elevation: float, roll: float) -> np.ndarray:
    """Quaternion [4] (wxyz) of a camera at an azimuth (0 looks at the face) and elevation; radians."""
    x, y, z = torch.eye(3, dtype=torch.float64)
    turns = (
        (z, roll), (x, elevation), (x, np.pi), (y, azimuth),
    )  # fmt: skip
    q = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    for axis, angle in turns:
        q = quat_multiply(q, axis_angle_to_quat(axis, torch.tensor(angle, dtype=torch.float64)))
    return q.numpy()


def _cast(
    template: Template, style: Style, rng: np.random.Generator, size: tuple[int, int], elevation: float, roll: float,
    subject: str,
) -> list[Placed]:  # fmt: skip
    """Animals in painting order, the farthest (feet highest in the photo) first."""
    h, w = size
    own = 1 + int(rng.choice(4, p=style.counts)) if subject == "animals" else 0
    others = 0
    if subject == "strangers" or (subject == "animals" and rng.random() < style.strangers):
        others = int(rng.integers(1, 3))
    total = own + others
    placed = []
    for i in range(total):
        scale = rng.uniform(*style.size) * (1 if total == 1 else 0.90 / np.sqrt(total) + 0.12)
        if i < own:
            who = born(template, rng, style.variation, FUR)
        else:
            name = ("bird", "box", "long")[rng.integers(3)]
            who = born(animal(name), rng, 0.15, STRANGE if rng.random() < 0.75 else FUR)
        if rng.random() < style.frontal:
            azimuth = rng.uniform(-180, 180)
        else:
            azimuth = rng.choice((-90, 90)) + rng.normal(0, 24)
        tilt = elevation + rng.normal(0, 2)
        q = view(np.deg2rad(azimuth), np.deg2rad(tilt), roll + np.deg2rad(rng.normal(0, 1)))
        s = 0.5 * scale * min(h, w)
        vertices = pose(who, rng, style.swing)
        it = Placed(who, vertices, np.array([s, 0, 0, *q]), target=i < own)
        xy = it.points[:, :2]
        middle = 0.5 * (xy.min(0) + xy.max(0))
        spread = (0, 0) if total == 1 else (0.30 * w, 0.12 * h)
        at = np.array([0.5 * w, 0.55 * h]) + rng.uniform(-1, 1, 2) * spread
        if total > 1:
            at[0] = w * ((i + 0.5) / total) + rng.normal(0, 0.10) * w
        at += rng.normal(0, 0.5, 2) * style.truncation * 2 * s
        placed.append(it.moved(*(np.clip(at, (0.02 * w, 0.1 * h), (0.98 * w, 0.95 * h)) - middle)))
    return sorted(placed, key=_foot)


def _foot(placed: Placed) -> float:
    """The lowest row that the animal reaches."""
    return float(placed.points[:, 1].max())


def _light(rng: np.random.Generator) -> Light:
    sun = rng.uniform(0.15, 0.85)
    direction = np.array([rng.uniform(-0.9, 0.9), -rng.uniform(0.45, 1.0), -rng.uniform(0.0, 0.8)])
    warm = rng.normal(0, 0.04)
    sky = np.array([0.95 + warm, 1.0, 1.08 - warm])
    ground = np.array([0.42, 0.40, 0.34]) * rng.uniform(0.7, 1.2)
    direction = (direction / np.linalg.norm(direction)).astype(np.float32)
    return Light(direction, sun, 1.0 - 0.55 * sun, sky.astype(np.float32), ground.astype(np.float32))


def _front(placed: Placed, style: Style, rng: np.random.Generator, h: int, w: int, kind: str) -> list[Layer]:
    """Things before an animal: grass at its feet where grass grows, and by chance bushes, posts, rocks, a fence."""
    xy = placed.points[:, :2]
    (left, top), (right, foot) = xy.min(0), xy.max(0)
    tall, layers = foot - top, []
    if kind in ("meadow", "fence", "forest") and rng.random() < 0.6:
        for _ in range(rng.integers(1, 4)):
            x, size = rng.uniform(left, right), tall * rng.uniform(0.08, 0.22)
            layers.append(OCCLUDERS["tuft"](rng, h, w, x, foot + 0.03 * tall, size))
    names = ("post", "rock") if kind in ("wall", "room", "beach") else ("bush", "post", "rock", "bush", "tuft")
    for _ in range(3):
        if rng.random() < style.occlusion * 0.5:
            name = str(rng.choice(names))
            reach = {"bush": (0.25, 0.55), "rock": (0.25, 0.5), "post": (0.9, 1.6), "tuft": (0.3, 0.5)}[name]
            x, size = rng.uniform(left, right), tall * rng.uniform(*reach)
            layers.append(OCCLUDERS[name](rng, h, w, x, foot + rng.uniform(0.02, 0.12) * tall, size))
    if kind == "fence" and rng.random() < 0.5 * style.occlusion:
        layers.append(background.fence(rng, h, w, foot + 0.08 * tall, tall * rng.uniform(0.45, 0.75)))
    return layers


@lru_cache(maxsize=4)
def template_from(path: str | None, keypoints: str | None) -> Template:
    """The template to photograph: the sandbox's own, or a rig (GLB) with its keypoints."""
    return Template.from_rig(path, keypoints) if path and keypoints else animal()
