"""What is written for a photo: `<name>.png` with the animals drawn in, `<name>-<n>.glb` of each, and `<name>.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from models.crops import to_photo
from pipelines.detectors import identity
from pipelines.pose_picture import overlay
from pipelines.posed_mesh import write_posed
from pipelines.trained_on import provenance
from tables import QUADRUPED, write_atomically

if TYPE_CHECKING:
    from pipelines.photo_reader import Animal, PhotoReader, Seen


def networks(acsm: str, pose: str | None, kind: str, detector: str, reader: PhotoReader) -> dict[str, Any]:
    """Which networks answered, by role, as plain JSON: file, digest, and what each was trained on."""
    made: dict[str, Any] = {"3D net": provenance(acsm, reader.acsm.notes)}
    if reader.pose is not None:
        made["2D net"] = provenance(str(pose), reader.pose.notes)
    if kind == "own":
        made["detector"] = {"kind": kind, **provenance(detector, reader.net.net.notes)}  # type: ignore[attr-defined]
    else:
        made["detector"] = {"kind": kind, "model": detector, **identity(kind, detector), "trained_on": None}
    return made


def names_of(paths: Sequence[str]) -> list[str]:
    """A file name for each photo: its own without the ending, and a number where another photo has it already."""
    taken: dict[str, None] = {}
    for path in paths:
        stem = name = os.path.splitext(os.path.basename(path))[0]
        number = 2
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
        taken[name] = None
    return list(taken)


def write_photo(folder: str, name: str, seen: Seen, net: Any, made_by: Mapping[str, Any]) -> None:
    """Write the files of one photo, each whole or not at all, the JSON last: what it names is there."""
    described: dict[str, Any] = {"photo": seen.path, "status": seen.status, "error": seen.error or None}
    if seen.image is not None:
        described |= {"width": seen.image.shape[1], "height": seen.image.shape[0]}
    if seen.image is not None and seen.animals:
        drawn = overlay(seen.image, seen.animals, net.template)
        png = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1]
        write_atomically(os.path.join(folder, f"{name}.png"), png.tobytes())
        described["picture"] = f"{name}.png"
    described["animals"] = []
    for number, animal in enumerate(seen.animals, 1):
        mesh = f"{name}-{number}.glb"
        write_posed(os.path.join(folder, mesh), net, animal.angles, animal.camera, animal.hypothesis)
        described["animals"].append({**to_json(animal, net.template.parts), "mesh": mesh})
    described["networks"] = dict(made_by)
    write_atomically(os.path.join(folder, f"{name}.json"), (json.dumps(described, indent=1) + "\n").encode())


def to_json(animal: Animal, parts: Sequence[str]) -> dict[str, Any]:
    """An animal as plain JSON, in photo pixels.

    `camera` maps the posed template X to the photo: x, y = scale (R X)_xy + shift. `window` [x0, y0, side] is what the
    3D net saw; a point of the GLB lies at x0 + (x + 1) side / 2, y0 + (1 - y) side / 2.
    """
    side = animal.window[2]
    shift = to_photo(animal.camera[None, None, 1:3].numpy(), animal.window[None])[0, 0]
    joints = QUADRUPED.names if len(animal.keypoints_3d) == len(QUADRUPED) else range(len(animal.keypoints_3d))
    return {
        "bbox": _list(animal.bbox, 2), "score": round(animal.score, 4), "class": animal.name,
        "keypoints": None if animal.keypoints is None else {
            str(j): [*_list(k[:2], 2), round(float(k[2]), 4)] for j, k in zip(joints, animal.keypoints, strict=True)
        },
        "keypoints_3d": {str(j): _list(k, 2) for j, k in zip(joints, animal.keypoints_3d, strict=True)},
        "camera": {
            "scale": round(float(animal.camera[0]) * side / 2, 4), "shift": _list(shift, 4),
            "quaternion_wxyz": _list(animal.camera[3:].numpy(), 6), "probability": round(animal.prob, 4),
        },
        "angles_rad": {part: round(float(a), 5) for part, a in zip(parts, animal.angles, strict=True)},
        "window": _list(animal.window, 4),
    }  # fmt: skip


def _list(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(v), digits) for v in values]
