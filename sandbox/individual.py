"""One animal among its kind: its proportions, its pose and its coat, all drawn from a seeded generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from models.articulation import part_transforms, skin
from models.template import Template

PATTERNS = ("plain", "belly", "spots", "stripes", "socks", "patches")
# Base and second colour, RGB in 0..1, before jitter. Targets are furry browns, greys and whites.
FUR = (
    ((0.55, 0.36, 0.20), (0.92, 0.86, 0.74)), ((0.36, 0.22, 0.13), (0.72, 0.58, 0.42)),
    ((0.74, 0.57, 0.34), (0.97, 0.93, 0.85)), ((0.20, 0.18, 0.17), (0.86, 0.84, 0.81)),
    ((0.62, 0.60, 0.57), (0.24, 0.23, 0.24)), ((0.87, 0.83, 0.75), (0.42, 0.29, 0.19)),
    ((0.66, 0.33, 0.15), (0.95, 0.90, 0.82)), ((0.45, 0.42, 0.38), (0.83, 0.80, 0.74)),
)  # fmt: skip
# Distractors: colours of their own, though a grey one may fool a hasty model.
STRANGE = (
    ((0.22, 0.42, 0.55), (0.90, 0.88, 0.60)), ((0.38, 0.50, 0.24), (0.75, 0.76, 0.42)),
    ((0.48, 0.48, 0.52), (0.30, 0.30, 0.34)), ((0.85, 0.45, 0.50), (0.97, 0.85, 0.85)),
    ((0.30, 0.32, 0.30), (0.80, 0.30, 0.20)),
)  # fmt: skip


@dataclass(frozen=True)
class Coat:
    """Colours [3] in 0..1 and a pattern of `PATTERNS`, with the waves [W,3] and phases [W] of its noise."""

    base: np.ndarray
    second: np.ndarray
    pattern: str
    waves: np.ndarray
    phases: np.ndarray
    level: float


@dataclass(frozen=True)
class Individual:
    """A member of a template's species: bind vertices [V,3] and pivots [P,3] of its own, and a coat."""

    template: Template
    bind: np.ndarray
    pivots: np.ndarray
    coat: Coat


def born(template: Template, rng: np.random.Generator, amount: float = 0.12, palette: tuple = FUR) -> Individual:
    """Draw an individual; `amount` is the half range of each relative change of size (0.12 is +-12 %)."""
    bind, pivots = vary(template, rng, amount)
    return Individual(template, bind, pivots, draw_coat(rng, palette))


def vary(template: Template, rng: np.random.Generator, amount: float = 0.12) -> tuple[np.ndarray, np.ndarray]:
    """Change proportions smoothly: each part is scaled about its pivot along three axes, mirror parts alike.

    Returns:
        vertices [V,3] and pivots [P,3], float32, in the template's frame (not normalised again: one camera scale
        means one size of the kind).
    """
    p = len(template.parts)
    girth, draws = rng.uniform(-amount, amount), rng.uniform(-amount, amount, (p, 3))
    draws = np.where((np.array(template.part_mirror) < np.arange(p))[:, None], draws[list(template.part_mirror)], draws)
    scale = 1 + draws
    scale[:, 0] *= 1 + 0.6 * girth
    scale[[i for i, parent in enumerate(template.parents) if parent < 0], 1] *= 1 + 0.6 * girth
    pivots = template.pivots.astype(np.float64)
    moved = pivots.copy()
    matrix = np.zeros((p, 3, 4))
    for i, parent in enumerate(template.parents):  # a part's pivot rides on its parent
        if parent >= 0:
            moved[i] = matrix[parent, :, :3] @ pivots[i] + matrix[parent, :, 3]
        matrix[i, :, :3] = np.diag(scale[i])
        matrix[i, :, 3] = moved[i] - scale[i] * pivots[i]
    blended = np.einsum("vp,pij->vij", template.weights.astype(np.float64), matrix)
    v = np.einsum("vij,vj->vi", blended[..., :3], template.vertices) + blended[..., 3]
    v += _ears(template, v, rng.uniform(-2.5 * amount, 2.5 * amount))
    return v.astype(np.float32), moved.astype(np.float32)


def _ears(template: Template, v: np.ndarray, grow: float) -> np.ndarray:
    """Displacement [V,3] that lengthens or shortens the ears, where the template marks them."""
    out = np.zeros_like(v)
    for name in ("L_ear", "R_ear"):
        if name in template.keypoint_names:
            tip = template.keypoints[template.keypoint_names.index(name)]
            head = template.pivots[int(template.weights[tip].argmax())]
            away = template.vertices[tip] - head
            near = np.exp(-((np.linalg.norm(template.vertices - template.vertices[tip], axis=1) / 0.09) ** 2))
            out += 0.4 * grow * near[:, None] * away
    return out


def pose(individual: Individual, rng: np.random.Generator, swing: float = 1.0) -> np.ndarray:
    """Draw a pose and return the posed vertices [V,3] float32; the root part stays (the camera turns it).

    Legs swing within +-35 degrees times `swing` about the lateral axis, neck and head pitch, the tail lifts and
    wags; every joint also turns a little about the other axes.
    """
    t = individual.template
    deg = np.zeros((len(t.parts), 3))  # pitch (about x), yaw (y), roll (z)
    gait = rng.uniform(-35, 35) * swing  # a stride: diagonal legs move together
    for i, part in enumerate(t.parts):
        name, own = part.lower(), rng.normal(0, 1, 3)
        if t.parents[i] < 0:
            continue
        if "leg" in name:
            side = 1 if part.endswith(("LF", "RB")) else -1
            pitch = np.clip(side * gait * rng.uniform(0.5, 1) + 9 * swing * own[0], -35 * swing, 35 * swing)
            deg[i] = pitch, 3 * own[1], 3 * swing * own[2]
        elif "neck" in name:
            deg[i] = np.clip(4 + 16 * swing * own[0], -28, 45), 8 * swing * own[1], 3 * own[2]
        elif "head" in name:
            deg[i] = np.clip(-2 + 12 * swing * own[0], -30, 30), 12 * swing * own[1], 4 * own[2]
        elif "tail" in name:
            deg[i] = np.clip(5 + 22 * swing * own[0], -30, 75), 16 * swing * own[1], 0
        else:
            deg[i] = 6 * swing * own
    rad = np.deg2rad(deg)
    angle = np.linalg.norm(rad, axis=1)
    axes = np.where(angle[:, None] > 1e-9, rad, [1.0, 0.0, 0.0])
    transforms = part_transforms(
        torch.tensor(axes, dtype=torch.float32),
        torch.tensor(angle, dtype=torch.float32),
        torch.from_numpy(individual.pivots),
        t.parents,
    )
    posed = skin(torch.from_numpy(individual.bind), torch.from_numpy(t.weights), transforms)
    return posed.numpy()


def draw_coat(rng: np.random.Generator, palette: tuple = FUR) -> Coat:
    """Draw two colours from a palette, jittered, and a pattern."""
    base, second = (np.array(c) for c in palette[rng.integers(len(palette))])
    base = np.clip(base * rng.uniform(0.8, 1.15) + rng.normal(0, 0.02, 3), 0.04, 1)
    second = np.clip(second * rng.uniform(0.85, 1.1) + rng.normal(0, 0.02, 3), 0.04, 1)
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    frequency = {"spots": 17.0, "patches": 5.5}.get(pattern, 8.0) * rng.uniform(0.8, 1.3)
    waves = rng.normal(size=(8, 3))
    waves *= frequency / np.linalg.norm(waves, axis=1, keepdims=True) * rng.uniform(0.7, 1.3, (8, 1))
    phases = rng.uniform(0, 2 * np.pi, 8).astype(np.float32)
    return Coat(base, second, pattern, waves.astype(np.float32), phases, rng.uniform(-0.12, 0.12))


def fur(individual: Individual, points: np.ndarray) -> np.ndarray:
    """Albedo [N,3] float32 of surface points [N,3] given where they lie on the template (the undeformed bind mesh)."""
    t, coat = individual.template, individual.coat
    wave = np.sin(points @ coat.waves.T + coat.phases)  # [N,8]
    noise = wave.sum(1) * 0.35  # about unit variance
    y0, y1 = t.vertices[:, 1].min(), t.vertices[:, 1].max()
    height = (points[:, 1] - y0) / (y1 - y0)
    if coat.pattern == "belly":
        second = _step(0.40 + coat.level + 0.015 * noise - height, 0.03)
    elif coat.pattern == "spots":
        second = _step(noise - 0.75 - coat.level, 0.12)
    elif coat.pattern == "stripes":
        second = _step(np.sin(26 * points[:, 2] + 5 * points[:, 1] + 1.2 * noise) - 0.25 - coat.level, 0.15)
    elif coat.pattern == "socks":
        second = _step(0.20 + coat.level * 0.5 + 0.01 * noise - height, 0.02)
    elif coat.pattern == "patches":
        second = _step(noise - 0.3 - coat.level, 0.1)
    else:
        second = np.zeros(len(points), np.float32)
    base, other = coat.base.astype(np.float32), coat.second.astype(np.float32)
    colour = base + second[:, None].astype(np.float32) * (other - base)
    colour *= (1 + 0.06 * wave[:, 0] + 0.04 * wave[:, 1] * wave[:, 2])[:, None]
    return _face(t, points, colour)


def _face(t: Template, points: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Dark eyes, nose and feet around their keypoints and a pale ring around the eyes."""
    size = np.einsum("nc,nc->n", points, points)
    for name, radius, tint in (
        ("Nose", 0.060, (0.10, 0.08, 0.08)), ("L_eye", 0.055, (0.62, 0.56, 0.46)), ("R_eye", 0.055, (0.62, 0.56, 0.46)),
        ("L_eye", 0.042, (0.05, 0.04, 0.04)), ("R_eye", 0.042, (0.05, 0.04, 0.04)),
        ("L_F_paw", 0.085, (0.17, 0.14, 0.12)), ("R_F_paw", 0.085, (0.17, 0.14, 0.12)),
        ("L_B_paw", 0.085, (0.17, 0.14, 0.12)), ("R_B_paw", 0.085, (0.17, 0.14, 0.12)),
    ):  # fmt: skip
        if name in t.keypoint_names:
            at = t.vertices[t.keypoints[t.keypoint_names.index(name)]]
            gap = np.sqrt(np.maximum(size - 2 * (points @ at) + at @ at, 0))
            close = np.flatnonzero(gap < radius + 0.008)
            near = _step(radius - gap[close], 0.008)[:, None]
            colour[close] += near * (np.array(tint, np.float32) - colour[close])
    return colour


def _step(x: np.ndarray, width: float) -> np.ndarray:
    """0 below -width, 1 above width, straight between."""
    return np.clip(x / (2 * width) + 0.5, 0.0, 1.0)
