"""Keypoints of a quadruped rig from its geometry alone: what a person would click, by rules.

`python tests/rig_keypoints.py Horse.glb keypoints.json` writes a file for `wildshape template`. Works on animals that
stand with Y up and the nose towards +Z.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from models.gltf import RigScene, read_glb

DATA = Path(os.environ.get("WILDSHAPE_TEST_DATA", Path(__file__).parents[1] / "../shared/data"))
RIGS = ("Horse", "Cow", "Donkey", "Husky", "Wolf")


def rig_path(name: str) -> Path:
    """The file of a real rig; skips the test where there is none."""
    import pytest

    path = DATA / "rigs" / f"{name}.glb"
    if not path.exists():
        pytest.skip(f"no rig at {path}: set WILDSHAPE_TEST_DATA to the folder that holds rigs/")
    return path


def geometric_keypoints(scene: RigScene) -> dict[str, int]:
    """The 16 keypoints as vertex indices: paws are the lowest vertices of each quadrant, the nose the foremost, ..."""
    v = scene.vertices
    low, high = v.min(0), v.max(0)
    height = high[1] - low[1]
    found: dict[str, int] = {}

    def best(name: str, score: np.ndarray, where: np.ndarray) -> np.ndarray:
        found[name] = int(np.where(where, score, -np.inf).argmax())
        return v[found[name]]

    feet = v[:, 1] < low[1] + 0.08 * height
    middle = (v[feet, 2].min() + v[feet, 2].max()) / 2
    paws = {}
    for side, sign in (("L", 1), ("R", -1)):
        for end, ahead in (("F", 1), ("B", -1)):
            quadrant = (v[:, 0] * sign > 0) & ((v[:, 2] - middle) * ahead > 0)
            paws[side + end] = best(f"{side}_{end}_paw", -v[:, 1] + 0.3 * v[:, 2], quadrant & feet)
    front, back = paws["LF"][2], paws["LB"][2]
    spine = np.abs(v[:, 0]) < 0.05 * height
    target = front - 0.2 * (front - back)
    withers = best("Withers", v[:, 1] - 3 * np.abs(v[:, 2] - target), spine)
    belly = v[spine & (np.abs(v[:, 2] - (front + back) / 2) < 0.2 * (front - back)), 1].min()
    for side, sign in (("L", 1), ("R", -1)):
        for end in "FB":
            paw = paws[side + end]
            near = (v[:, 0] * sign > 0) & (np.abs(v[:, 2] - paw[2]) < 0.2 * (front - back))
            level = np.abs(v[:, 1] - (belly - 0.1 * height)) < 0.05 * height
            best(f"{side}_{end}_elbow", np.abs(v[:, 0]), near & level)
    nose = best("Nose", v[:, 2], np.abs(v[:, 0]) < 0.1 * height)
    fore = v[:, 2] > withers[2] + 0.4 * (nose[2] - withers[2])
    for side, sign in (("L", 1), ("R", -1)):
        ear = best(f"{side}_ear", v[:, 1], (v[:, 0] * sign > 0.02 * height) & fore)
        eye = nose + 0.6 * (ear - nose)
        eye[0] = sign * 0.06 * height
        best(f"{side}_eye", -np.linalg.norm(v - eye, axis=1), (v[:, 0] * sign > 0) & fore)
    top = v[found["L_ear"]]
    under = np.abs(v[:, 2] - (top[2] - 0.05 * height)) < 0.06 * height
    best("Throat", -v[:, 1], spine & under & (v[:, 1] > belly + 0.1 * height))
    target = back - 0.05 * (front - back)
    best("Tail", v[:, 1] - 4 * np.abs(v[:, 2] - target), spine)
    return found


if __name__ == "__main__":
    rig, out = sys.argv[1:]
    Path(out).write_text(json.dumps({"rig": rig, "keypoints": geometric_keypoints(read_glb(rig))}, indent=1) + "\n")
