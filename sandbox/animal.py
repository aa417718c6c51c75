"""The sandbox's animals: articulated templates grown from round cones, and the quadruped as a rigged GLB.

Frame: Y up, the nose to +Z, the animal's left is +X; normalised as `Template` says. Lengths below are in the
designer's units (a shoulder about one unit high) and are normalised with the mesh.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from models.template import Template, normalise
from sandbox.surface import Bone, graded, mirrored, smooth_union, surface_nets
from tables import QUADRUPED, write_atomically

Point = tuple[float, float, float]
Knots = tuple[tuple[float, float], ...]

SOFTNESS = 0.05  # distance over which one part's weight hands over to the next


@dataclass(frozen=True)
class Species:
    """What an animal is grown from.

    Attributes:
        joints: part -> (parent or "", pivot), parents first.
        bones: the round cones, left ones (x > 0) and middle ones; right ones are their mirror images.
        grid: half width and spacing in x, then (start, spacing) knots of y and z.
        marks: keypoint -> point near its vertex, for the left and the middle.
    """

    name: str
    joints: dict[str, tuple[str, Point]]
    bones: tuple[Bone, ...]
    grid: tuple[tuple[float, float], Knots, Knots]
    marks: dict[str, Point]
    blend: float = 0.07


def _leg(part: str, *chain: tuple[float, float, float, float]) -> list[Bone]:
    """Bones through a chain of (x, y, z, radius)."""
    return [Bone(part, p[:3], q[:3], p[3], q[3]) for p, q in pairwise(chain)]


_LEGS = {
    "leg_LF": ("body", (0.18, 0.86, 0.45)),
    "leg_RF": ("body", (-0.18, 0.86, 0.45)),
    "leg_LB": ("body", (0.18, 0.88, -0.50)),
    "leg_RB": ("body", (-0.18, 0.88, -0.50)),
}

# Toes are thick enough for three cells of the grid: thinner legs would break the surface.
ANIMAL = Species(
    name="quadruped",
    joints={
        "body": ("", (0.0, 0.98, 0.0)),
        "neck": ("body", (0.0, 1.10, 0.56)),
        "head": ("neck", (0.0, 1.50, 0.92)),
        **_LEGS,
        "tail": ("body", (0.0, 1.10, -0.70)),
    },
    bones=(
        *_leg("body", (0, 0.97, -0.47, 0.265), (0, 1.01, -0.02, 0.235), (0, 0.96, 0.42, 0.285)),
        *_leg("neck", (0, 1.06, 0.52, 0.21), (0, 1.48, 0.90, 0.145)),
        *_leg("head", (0, 1.54, 0.96, 0.175), (0, 1.49, 1.14, 0.15), (0, 1.41, 1.42, 0.095)),
        *_leg("head", (0.10, 1.66, 0.93, 0.075), (0.185, 1.92, 0.89, 0.045)),
        *_leg("leg_LF", (0.17, 0.85, 0.45, 0.155), (0.18, 0.46, 0.42, 0.108), (0.18, 0.11, 0.44, 0.102)),
        *_leg("leg_LF", (0.18, 0.10, 0.44, 0.102), (0.18, 0.10, 0.52, 0.10)),
        *_leg("leg_LB", (0.17, 0.87, -0.50, 0.185), (0.18, 0.47, -0.60, 0.11), (0.18, 0.11, -0.53, 0.102)),
        *_leg("leg_LB", (0.18, 0.10, -0.53, 0.102), (0.18, 0.10, -0.45, 0.10)),
        *_leg("tail", (0, 1.10, -0.70, 0.085), (0, 0.84, -0.98, 0.085), (0, 0.55, -1.06, 0.085)),
    ),
    grid=(
        (0.42, 0.069),
        ((-0.1, 0.085), (0.2, 0.15), (0.65, 0.12), (1.22, 0.095), (1.62, 0.085), (2.1, 0)),
        ((-1.3, 0.09), (-0.78, 0.076), (-0.30, 0.15), (0.22, 0.076), (0.62, 0.10), (1.7, 0)),
    ),
    marks={
        "L_eye": (0.16, 1.60, 1.10), "L_ear": (0.19, 1.97, 0.88), "Nose": (0, 1.42, 1.54), "Throat": (0, 1.29, 1.00),
        "Tail": (0, 1.20, -0.72), "Withers": (0, 1.30, 0.40), "L_F_elbow": (0.34, 0.68, 0.44),
        "L_B_elbow": (0.34, 0.68, -0.56), "L_F_paw": (0.18, 0.07, 0.64), "L_B_paw": (0.18, 0.07, -0.34),
    },
)  # fmt: skip

# Distractors: photographed, never labelled.
BIRD = Species(
    name="bird",
    joints={
        "body": ("", (0.0, 0.95, 0.0)),
        "neck": ("body", (0.0, 1.10, 0.30)),
        "head": ("neck", (0.0, 1.85, 0.50)),
        "leg_LB": ("body", (0.15, 0.80, 0.0)),
        "leg_RB": ("body", (-0.15, 0.80, 0.0)),
        "tail": ("body", (0.0, 1.0, -0.40)),
    },
    bones=(
        *_leg("body", (0, 0.98, -0.25, 0.27), (0, 1.0, 0.15, 0.32)),
        *_leg("neck", (0, 1.10, 0.32, 0.17), (0, 1.45, 0.52, 0.11), (0, 1.85, 0.50, 0.11)),
        *_leg("head", (0, 1.92, 0.53, 0.17), (0, 1.93, 0.60, 0.15)),
        *_leg("head", (0, 1.90, 0.66, 0.09), (0, 1.84, 0.95, 0.07)),
        *_leg("leg_LB", (0.16, 0.80, 0.0, 0.14), (0.17, 0.45, 0.05, 0.09), (0.17, 0.09, 0.0, 0.09)),
        *_leg("leg_LB", (0.17, 0.08, 0.0, 0.09), (0.19, 0.08, 0.22, 0.09)),
        *_leg("tail", (0, 1.05, -0.42, 0.17), (0, 1.25, -0.80, 0.11)),
    ),
    grid=((0.48, 0.075), ((-0.1, 0.09), (0.6, 0.10), (2.2, 0)), ((-1.05, 0.09), (1.1, 0))),
    marks={},
)
BOX = Species(
    name="box",
    joints={
        "body": ("", (0.0, 0.85, 0.0)),
        "head": ("body", (0.0, 0.95, 0.75)),
        "leg_LF": ("body", (0.30, 0.55, 0.45)),
        "leg_RF": ("body", (-0.30, 0.55, 0.45)),
        "leg_LB": ("body", (0.30, 0.55, -0.50)),
        "leg_RB": ("body", (-0.30, 0.55, -0.50)),
    },
    bones=(
        *_leg("body", (0.16, 0.85, -0.50, 0.42), (0.16, 0.92, 0.35, 0.46)),
        *_leg("head", (0, 0.92, 0.80, 0.33), (0, 0.72, 1.20, 0.26)),
        *_leg("head", (0, 0.95, 1.30, 0.11), (0, 1.28, 1.45, 0.09)),
        *_leg("leg_LF", (0.30, 0.60, 0.45, 0.19), (0.30, 0.15, 0.45, 0.16)),
        *_leg("leg_LB", (0.30, 0.60, -0.50, 0.20), (0.30, 0.15, -0.50, 0.16)),
    ),
    grid=((0.80, 0.095), ((-0.15, 0.11), (1.55, 0)), ((-1.1, 0.11), (0.6, 0.10), (1.7, 0))),
    marks={},
    blend=0.10,
)
LONG = Species(
    name="long",
    joints={
        "body": ("", (0.0, 0.42, 0.0)),
        "head": ("body", (0.0, 0.48, 0.95)),
        "leg_LF": ("body", (0.22, 0.36, 0.62)),
        "leg_RF": ("body", (-0.22, 0.36, 0.62)),
        "leg_LB": ("body", (0.22, 0.36, -0.60)),
        "leg_RB": ("body", (-0.22, 0.36, -0.60)),
        "tail": ("body", (0.0, 0.42, -0.85)),
    },
    bones=(
        *_leg("body", (0, 0.42, -0.75, 0.20), (0, 0.44, 0.0, 0.26), (0, 0.44, 0.75, 0.20)),
        *_leg("head", (0, 0.50, 1.0, 0.17), (0, 0.42, 1.45, 0.09)),
        *_leg("leg_LF", (0.20, 0.36, 0.62, 0.12), (0.30, 0.10, 0.66, 0.10)),
        *_leg("leg_LB", (0.20, 0.36, -0.60, 0.12), (0.30, 0.10, -0.58, 0.10)),
        *_leg("tail", (0, 0.42, -0.85, 0.17), (0, 0.34, -1.35, 0.11), (0, 0.28, -1.85, 0.08)),
    ),
    grid=((0.48, 0.075), ((-0.1, 0.085), (0.85, 0)), ((-2.05, 0.10), (1.7, 0))),
    marks={},
)
SPECIES = {s.name: s for s in (ANIMAL, BIRD, BOX, LONG)}


def grow(species: Species) -> Template:
    """Polygonise, weigh and normalise a species; V vertices, P parts, K = 16 keypoints or none.

    The mesh is watertight, of genus 0 and exactly symmetric in x; at most four parts share a vertex (a GLB limit).
    """
    bones = [*species.bones, *(_mirror_bone(b) for b in species.bones if b.a[0] > 0)]
    parts = tuple(species.joints)

    def by_part(points: np.ndarray) -> np.ndarray:
        return np.stack([np.min([b.distance(points) for b in bones if b.part == p], 0) for p in parts], -1)

    def distance(points: np.ndarray) -> np.ndarray:
        return smooth_union([b.distance(points) for b in bones], species.blend)

    (half, spacing), ys, zs = species.grid
    vertices, faces, mirror = surface_nets(distance, mirrored(half, spacing), graded(*ys), graded(*zs))
    part_mirror = tuple(parts.index(_other_side(p)) for p in parts)
    weights = _weights(by_part(vertices))
    weights = 0.5 * (weights + weights[mirror][:, part_mirror])
    keypoints = _find_marks(species, vertices, mirror)
    pivots = np.array([pivot for _, pivot in species.joints.values()])
    vertices, pivots = normalise(vertices, pivots)
    return Template(
        vertices=_exactly_mirrored(vertices.astype(np.float32), mirror),
        faces=faces,
        weights=_exact_rows(weights.astype(np.float32)),
        pivots=pivots.astype(np.float32),
        parents=tuple(parts.index(parent) if parent else -1 for parent, _ in species.joints.values()),
        parts=parts,
        keypoints=keypoints,
        keypoint_names=QUADRUPED.names if len(keypoints) else (),
        part_mirror=part_mirror,
    )


@lru_cache(maxsize=8)
def animal(name: str = "quadruped") -> Template:
    """The grown template of a species of `SPECIES`, kept for the process."""
    return grow(SPECIES[name])


def write_rig(template: Template, glb: str, keypoints: str) -> None:
    """Write a template as a rigged GLB and its {joint: vertex index} JSON, from which `Template.from_rig` reads it."""
    from models.gltf import write_glb

    write_glb(
        glb, template.vertices, template.faces, template.weights, template.parts, template.parents, template.pivots
    )
    marks = dict(zip(template.keypoint_names, template.keypoints.tolist(), strict=True))
    write_atomically(keypoints, (json.dumps(marks, indent=1) + "\n").encode())


def _mirror_bone(b: Bone) -> Bone:
    return Bone(_other_side(b.part), (-b.a[0], *b.a[1:]), (-b.b[0], *b.b[1:]), b.ra, b.rb)


def _other_side(part: str) -> str:
    return part.replace("_L", "_R") if "_L" in part else part.replace("_R", "_L")


def _weights(distances: np.ndarray) -> np.ndarray:
    """[V,P] soft assignment by distance to each part: exp(-d / SOFTNESS), small and fifth shares dropped."""
    w = np.exp(-(distances - distances.min(1, keepdims=True)) / SOFTNESS)
    fourth = np.sort(w, 1)[:, -min(4, w.shape[1])][:, None]
    w = np.where((w < 0.03) | (w < fourth), 0.0, w)
    return w / w.sum(1, keepdims=True)


def _exact_rows(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum(1, keepdims=True)


def _exactly_mirrored(v: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Normalising shifts x by rounding only; put the mirror plane back at exactly 0."""
    flipped = v[mirror] * np.array([-1, 1, 1], np.float32)
    return (v + flipped) * np.float32(0.5)


def _find_marks(species: Species, vertices: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    found: dict[str, int] = {}
    for name, point in species.marks.items():
        gap = np.linalg.norm(vertices - point, axis=1)
        if point[0] == 0:
            gap = np.where(mirror == np.arange(len(mirror)), gap, np.inf)
        found[name] = int(gap.argmin())
        if name.startswith("L_"):
            found["R_" + name[2:]] = int(mirror[found[name]])
    return np.array([found[n] for n in QUADRUPED.names] if found else [], np.int64)
