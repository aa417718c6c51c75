"""From a rigged animal to a template: weld, orient, group the joints into parts, normalise."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping
from itertools import permutations, product
from typing import Any

import numpy as np

from models.gltf import RigScene, read_glb
from models.mesh_repair import face_outward, mean_by, useful_faces, weld
from models.rig_parts import PARTS, PartsNotFound, Skin, group_joints
from models.template import Template, normalise
from tables import QUADRUPED, InputError

_MIRROR = {"leg_LF": "leg_RF", "leg_RF": "leg_LF", "leg_LB": "leg_RB", "leg_RB": "leg_LB"}


def template_from_rig(
    path: str, keypoints: str | Mapping[str, Any], parts: Mapping[str, str] | None = None
) -> Template:
    """Build a template from a skinned GLB file.

    The bind-pose world orientation is kept, so that cameras keep their meaning, unless the keypoints show that the
    animal lies along other axes; then it is turned by multiples of 90 degrees to Y up, nose to +Z, left to +X.

    Args:
        path: GLB file with one skinned animal.
        keypoints: vertex index of each of the 16 keypoints, flat or under the key `keypoints`, or a JSON file of
            that. Indices run over all skinned primitives concatenated in file order, unwelded.
        parts: root joint by part name, where the grouping should not decide by itself (see `group_joints`).

    Raises:
        InputError: a file is missing or unreadable, keypoints are missing, out of range or left for right, a part
            or joint name is unknown, or the legs cannot be told apart.
    """
    index = read_keypoints(keypoints)
    scene = read_glb(path)
    argument = keypoints if isinstance(keypoints, str) else "keypoints"
    for name, vertex in index.items():
        if not 0 <= vertex < len(scene.vertices):
            raise InputError("keypoints", argument, f"{name} is vertex {vertex}, the rig has {len(scene.vertices)}")
    fixed = _named_joints(scene, parts or {})
    turn = _turn_upright(scene.vertices, index, argument)
    vertices, faces, weights, index = _welded(scene, index)
    vertices, joints = vertices @ turn.T, scene.joint_positions @ turn.T
    if not len(faces):
        raise InputError("rig", path, "its skinned mesh has no faces; export the mesh together with its armature")
    edges = np.unique(np.sort(np.concatenate((faces[:, :2], faces[:, 1:], faces[:, ::2])), 1), axis=0)
    skin = Skin(vertices, edges, weights, scene.joint_parents, joints, index)
    try:
        groups, pivot_joints = group_joints(skin, fixed)
    except PartsNotFound as error:
        fix = "check the keypoints, or name root joints as parts={part: joint}"
        raise InputError("rig", path, f"{error}; {fix}") from None
    names = tuple(groups)
    shares = np.stack([weights[:, members].sum(1) for members in groups.values()], 1)
    shares[:, 0] += 1 - shares.sum(1)  # a vertex without weights follows the body
    vertices, pivots = normalise(vertices, joints[[pivot_joints[p] for p in names]])
    return Template(
        vertices=vertices,
        faces=face_outward(vertices, faces),
        weights=shares,
        pivots=pivots,
        parents=tuple(_parent(p, names) for p in names),
        parts=names,
        keypoints=np.array([index[k] for k in QUADRUPED.names]),
        keypoint_names=QUADRUPED.names,
        part_mirror=tuple(names.index(_MIRROR[p]) if _MIRROR.get(p) in names else i for i, p in enumerate(names)),
    )


def read_keypoints(keypoints: str | Mapping[str, Any]) -> dict[str, int]:
    """Vertex index by name, in the order of `tables.QUADRUPED`.

    Raises:
        InputError: no such file, bad JSON, a name is missing, or an index is not a whole number.
    """
    source = keypoints if isinstance(keypoints, str) else "keypoints"
    if isinstance(keypoints, str):
        if not os.path.isfile(keypoints):
            raise InputError("keypoints", source, "no such file; give JSON that maps joint name to vertex index")
        try:
            with open(keypoints, encoding="utf-8") as f:
                keypoints = json.load(f)
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError("keypoints", source, f"not JSON ({error})") from None
    table = keypoints.get("keypoints", keypoints) if isinstance(keypoints, Mapping) else None
    if not isinstance(table, Mapping):
        raise InputError("keypoints", source, "expected an object that maps joint name to vertex index")
    missing = [name for name in QUADRUPED.names if name not in table]
    if missing:
        raise InputError("keypoints", source, f"lacks {', '.join(missing)}")
    found = {}
    for name in QUADRUPED.names:
        try:
            found[name] = operator.index(table[name])
        except TypeError:
            raise InputError("keypoints", source, f"{name} is {table[name]!r}, expected a vertex index") from None
    return found


def _named_joints(scene: RigScene, parts: Mapping[str, str]) -> dict[str, int]:
    for part, joint in parts.items():
        if part not in PARTS:
            raise InputError("parts", part, f"no such part; use {', '.join(PARTS)}")
        if joint not in scene.joint_names:
            raise InputError(f"parts.{part}", joint, f"no such joint; the rig has {', '.join(scene.joint_names)}")
    return {part: scene.joint_names.index(joint) for part, joint in parts.items()}


def _welded(scene: RigScene, index: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """Vertices, faces, weights and keypoints of the mesh without its seams."""
    to = weld(scene.vertices, 1e-6 * float(np.ptp(scene.vertices, axis=0).max()))
    vertices, weights = mean_by(to, scene.vertices), mean_by(to, scene.weights)
    faces = useful_faces(vertices, to[scene.faces])
    kept = np.unique(np.concatenate((faces.ravel(), to[list(index.values())])))
    place = np.full(len(vertices), -1)
    place[kept] = np.arange(len(kept))
    keypoints = {name: int(place[to[vertex]]) for name, vertex in index.items()}
    return vertices[kept], place[faces], weights[kept], keypoints


def _turn_upright(vertices: np.ndarray, index: Mapping[str, int], source: str) -> np.ndarray:
    """[3, 3] rotation by multiples of 90 degrees to Y up, nose to +Z, left to +X; the identity where it lies so.

    Raises:
        InputError: the keypoints do not span a body, or left and right are exchanged.
    """
    at = {name: vertices[vertex] for name, vertex in index.items()}

    def mean(*names: str) -> np.ndarray:
        return np.mean([at[n] for n in names], axis=0)

    left_names = [n for n in index if n.startswith("L_")]
    left = mean(*left_names) - mean(*("R" + n[1:] for n in left_names))
    up = mean("Withers", "Tail") - mean("L_F_paw", "R_F_paw", "L_B_paw", "R_B_paw")
    forward = mean("L_F_paw", "R_F_paw", "L_F_elbow", "R_F_elbow") - mean(
        "L_B_paw", "R_B_paw", "L_B_elbow", "R_B_elbow"
    )
    axes = np.stack((left, up, forward))
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    axes = np.divide(axes, lengths, out=np.zeros_like(axes), where=lengths > 0)
    volume = np.linalg.det(axes)
    if volume < -0.2:
        raise InputError("keypoints", source, "left and right look exchanged: L_ is the animal's own left")
    if volume < 0.2:
        raise InputError("keypoints", source, "left-right, paws-withers and back-front do not span a body")
    # Rows of a rotation are the template's axes seen from the rig: choose the signed permutation closest to them.
    options = [
        np.diag(signs) @ np.eye(3)[list(order)]
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]
    return max((o for o in options if np.linalg.det(o) > 0), key=lambda o: float((o * axes).sum()))


def _parent(part: str, names: tuple[str, ...]) -> int:
    if part == "body":
        return -1
    return names.index("neck") if part == "head" and "neck" in names else names.index("body")
