"""The articulated template: a mesh in parts with pivots and keypoints, as one safe file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from tables import Files, InputError, read_file, write_atomically

FORMAT = "wildshape-template-1"
_ARRAYS = {
    "vertices": np.float32,
    "faces": np.int32,
    "weights": np.float32,
    "pivots": np.float32,
    "keypoints": np.int64,
}
_LISTS = ("parents", "parts", "keypoint_names", "part_mirror")


@dataclass(frozen=True, eq=False)
class Template:
    """V vertices, F faces, P parts, K keypoints, in the template frame.

    Y is up, the nose points to +Z, the animal's left is +X (right-handed, the glTF frame). Normalised: the largest
    distance between two vertices is 2 and the mean vertex is at 0.

    Attributes:
        vertices: [V, 3] float32.
        faces: [F, 3] int32, outward by the right-hand rule.
        weights: [V, P] float32, rows sum to 1.
        pivots: [P, 3] float32, the point each part turns about in the bind pose.
        parents: P entries, -1 for the root; parents[p] < p.
        parts: P names.
        keypoints: [K] int64 vertex indices.
        keypoint_names: K names.
        part_mirror: part p of the mirrored animal is part part_mirror[p].
    """

    vertices: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    pivots: np.ndarray
    parents: tuple[int, ...]
    parts: tuple[str, ...]
    keypoints: np.ndarray
    keypoint_names: tuple[str, ...]
    part_mirror: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, dtype in _ARRAYS.items():
            object.__setattr__(self, name, np.array(getattr(self, name), dtype, order="C"))
        for name in _LISTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check()

    def _check(self) -> None:
        v, p = len(self.vertices), len(self.parts)
        shapes = {
            "vertices": (v, 3), "faces": (len(self.faces), 3), "weights": (v, p), "pivots": (p, 3),
            "keypoints": (len(self.keypoint_names),), "parents": (p,), "part_mirror": (p,),
        }  # fmt: skip
        for name, shape in shapes.items():
            found = np.shape(getattr(self, name))
            if found != shape:
                raise ValueError(f"{name}: shape {found}, expected {shape}")
        for name in ("faces", "keypoints"):
            index = getattr(self, name)
            if index.size and (index.min() < 0 or index.max() >= v):
                raise ValueError(f"{name}: vertex index outside 0..{v - 1}")
        if not all(np.isfinite(getattr(self, n)).all() for n in ("vertices", "weights", "pivots")):
            raise ValueError("vertices, weights, pivots: not finite")
        if np.abs(self.weights.sum(1) - 1).max(initial=0) > 1e-3:
            raise ValueError("weights: rows must sum to 1")
        if any(not -1 <= parent < part for part, parent in enumerate(self.parents)):
            raise ValueError(f"parents={self.parents}: parents[p] must be -1 or smaller than p")
        if sorted(self.part_mirror) != list(range(p)):
            raise ValueError(f"part_mirror={self.part_mirror}: not a permutation of the parts")

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the content: equal templates have equal digests on every machine."""
        h = hashlib.sha256(json.dumps(self._meta(), sort_keys=True).encode())
        for name, dtype in sorted(_ARRAYS.items()):
            h.update(np.ascontiguousarray(getattr(self, name), np.dtype(dtype).newbyteorder("<")).tobytes())
        return h.hexdigest()[:16]

    def _meta(self) -> dict[str, Any]:
        return {name: list(getattr(self, name)) for name in _LISTS}

    def to_bytes(self) -> bytes:
        """The content of a template's file: safetensors."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        return save(arrays, {"format": FORMAT, "template": json.dumps(self._meta())})

    def save(self, path: str) -> None:
        """Write a local file, whole or not at all."""
        write_atomically(path, self.to_bytes())

    def keep(self, files: Files) -> str:
        """Write it into a lake, where workers on all nodes find it; return its path or URI there."""
        name = f"templates/{self.digest}.template"
        if not files.exists(name):
            files.write(name, self.to_bytes())
        return f"{files.uri}/{name}"

    @staticmethod
    def load(path: str) -> Template:
        """Read a file of `save`: a path or a URI.

        Raises:
            InputError: no such file, or not a template.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        data = read_file("template", str(path), "no such file; make one with `wildshape template`")
        fix = "give a file written by `wildshape template`"
        try:
            size = int.from_bytes(data[:8], "little")
            meta = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
            if meta.get("format") != FORMAT:
                raise InputError("template", path, f"not a template; {fix}")
            arrays: dict[str, Any] = load(data)
            return Template(**{name: arrays[name] for name in _ARRAYS}, **json.loads(meta["template"]))
        except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("template", path, f"unreadable ({error}); {fix}") from None

    @staticmethod
    def from_rig(path: str, keypoints: str | Mapping[str, Any], parts: Mapping[str, str] | None = None) -> Template:
        """Build a template from a skinned GLB file; see `models.rig.template_from_rig`."""
        from models.rig import template_from_rig

        return template_from_rig(path, keypoints, parts)

    @staticmethod
    def from_animals3d(folder: str, compat: str | None = None) -> Template:
        """Read a template folder of animals3d or A-CSM; see `models.animals3d.read_animals3d`."""
        from models.animals3d import read_animals3d

        return read_animals3d(folder, compat).template

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def __hash__(self) -> int:
        return hash(self.digest)


def normalise(vertices: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scale and shift vertices [V, 3] to diameter 2 and mean 0, and move other points [..., 3] along with them.

    Raises:
        ValueError: all vertices coincide.
    """
    v = np.asarray(vertices, np.float64)
    diameter = max(np.sqrt(((v - p) ** 2).sum(1).max()) for p in v)
    if not diameter > 0:
        raise ValueError("vertices: all at one point")
    scale, centre = 2 / diameter, v.mean(0)
    return tuple((np.asarray(x, np.float64) - centre) * scale for x in (v, *others))
