"""Skinned meshes in binary glTF 2.0: the little of the format that a rig needs, read and written.

https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tables import InputError, write_atomically

_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


@dataclass(frozen=True, eq=False)
class RigScene:
    """All skinned primitives of a file, concatenated in file order and not welded, in the bind-pose world frame.

    Attributes:
        vertices: [V, 3] float64.
        faces: [F, 3] int64.
        weights: [V, J] float64; rows sum to 1, or to 0 where the file gives a vertex no weight.
        joint_names: J names.
        joint_parents: J entries, -1 for a root; a parent may come after its child.
        joint_positions: [J, 3] float64 in the bind pose.
        colors: [V, 3] float32 in [0, 1], from vertex colours or else the material; grey if there is neither.
    """

    vertices: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    joint_names: tuple[str, ...]
    joint_parents: tuple[int, ...]
    joint_positions: np.ndarray
    colors: np.ndarray


def read_glb(path: str) -> RigScene:
    """Read the skinned meshes of a GLB file, with node transforms applied.

    Raises:
        InputError: no such file, not a GLB, nothing skinned in it, or a feature this reader does not know
            (external buffers, sparse or compressed accessors, anything but triangle lists).
    """
    if not os.path.isfile(path):
        raise InputError("rig", path, "no such file; give a skinned mesh in binary glTF (.glb)")
    with open(path, "rb") as f:
        data = f.read()
    if len(data) < 20 or struct.unpack_from("<2I", data) != (_MAGIC, 2):
        raise InputError("rig", path, "not a binary glTF 2.0 file; export the rig as .glb")
    try:
        return _scene(_Document(path, data))
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, struct.error, RecursionError) as error:
        raise InputError("rig", path, f"malformed glTF ({type(error).__name__}: {error}); export it again") from None


class _Document:
    """The JSON part, its binary part, and typed views into it."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path, self.binary, at = path, b"", 12
        self.json: dict[str, Any] = {}
        while at + 8 <= len(data):
            length, kind = struct.unpack_from("<2I", data, at)
            chunk = data[at + 8 : at + 8 + length]
            if len(chunk) < length:
                raise InputError("rig", path, "the file is cut off; copy or export it again")
            if kind == _JSON:
                self.json = json.loads(chunk)
            elif kind == _BIN and not self.binary:
                self.binary = chunk
            at += 8 + length
        self.nodes: list[dict[str, Any]] = self.json.get("nodes", [])
        self.parents = [-1] * len(self.nodes)
        for i, node in enumerate(self.nodes):
            for child in node.get("children", []):
                self.parents[child] = i
        self._worlds: dict[int, np.ndarray] = {}

    def array(self, index: int) -> np.ndarray:
        """An accessor [count, width]; normalised integers become floats."""
        accessor = self.json["accessors"][index]
        if "sparse" in accessor or "bufferView" not in accessor:
            raise InputError("rig", self.path, "sparse or compressed accessors are not read; export it uncompressed")
        view = self.json["bufferViews"][accessor["bufferView"]]
        if view["buffer"] != 0 or "uri" in self.json["buffers"][0]:
            raise InputError("rig", self.path, "it refers to another file; export it as one self-contained .glb")
        dtype, width = np.dtype(_TYPES[accessor["componentType"]]), _WIDTH[accessor["type"]]
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        stride = view.get("byteStride") or dtype.itemsize * width
        shape = (accessor["count"], width)
        rows = np.ndarray(shape, dtype, self.binary, start, (stride, dtype.itemsize))
        if accessor.get("normalized"):
            return np.maximum(rows / float(np.iinfo(dtype).max), -1.0)
        return rows.copy()

    def world(self, node: int) -> np.ndarray:
        """[4, 4] transform from a node's frame to the world."""
        if node not in self._worlds:
            above = np.eye(4) if self.parents[node] < 0 else self.world(self.parents[node])
            self._worlds[node] = above @ _local(self.nodes[node])
        return self._worlds[node]


def _local(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        return np.reshape(np.asarray(node["matrix"], np.float64), (4, 4)).T
    x, y, z, w = np.asarray(node.get("rotation", (0, 0, 0, 1)), np.float64)
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    local = np.eye(4)
    local[:3, :3] = turn * np.asarray(node.get("scale", (1, 1, 1)), np.float64)
    local[:3, 3] = node.get("translation", (0, 0, 0))
    return local


def _scene(doc: _Document) -> RigScene:
    joints: list[int] = []
    binds: dict[int, np.ndarray] = {}
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[int]]] = []
    for mesh_index, mesh in enumerate(doc.json.get("meshes", [])):
        for node_index, node in enumerate(doc.nodes):
            if node.get("mesh") != mesh_index or "skin" not in node:
                continue
            skin = doc.json["skins"][node["skin"]]
            inverse = _inverse_binds(doc, skin)
            bind = _bind_to_world(doc, skin, inverse, node_index)
            for joint, matrix in zip(skin["joints"], inverse, strict=True):
                if joint not in binds:
                    joints.append(joint)
                    binds[joint] = (bind @ np.linalg.inv(matrix))[:3, 3]
            for primitive in mesh["primitives"]:
                if "JOINTS_0" in primitive["attributes"]:
                    pieces.append((*_primitive(doc, primitive, bind, len(skin["joints"])), skin["joints"]))
    if not pieces:
        raise InputError("rig", doc.path, "no skinned mesh in it; export the mesh together with its armature")
    column = {joint: i for i, joint in enumerate(joints)}
    weights, faces, start = [], [], 0
    for vertices, triangles, own, _, names in pieces:
        wide = np.zeros((len(vertices), len(joints)))
        np.add.at(wide.T, [column[j] for j in names], own.T)
        weights.append(wide)
        faces.append(triangles + start)
        start += len(vertices)
    return RigScene(
        vertices=np.concatenate([p[0] for p in pieces]),
        faces=np.concatenate(faces),
        weights=np.concatenate(weights),
        joint_names=tuple(doc.nodes[j].get("name", f"joint_{j}") for j in joints),
        joint_parents=tuple(_joint_parent(doc, j, column) for j in joints),
        joint_positions=np.stack([binds[j] for j in joints]),
        colors=np.concatenate([p[3] for p in pieces]).astype(np.float32),
    )


def _inverse_binds(doc: _Document, skin: dict[str, Any]) -> np.ndarray:
    if "inverseBindMatrices" not in skin:
        return np.broadcast_to(np.eye(4), (len(skin["joints"]), 4, 4))
    flat = doc.array(skin["inverseBindMatrices"]).astype(np.float64)
    return flat.reshape(-1, 4, 4).transpose(0, 2, 1)


def _bind_to_world(doc: _Document, skin: dict[str, Any], inverse: np.ndarray, node: int) -> np.ndarray:
    """What carries bind-pose mesh coordinates to the world.

    glTF places a skinned mesh by its joints (joint world x inverse bind), not by its own node. Where the nodes rest
    in the bind pose all joints agree on that transform; where they rest in another pose, the mesh's node stands in.
    """
    carried = np.stack([doc.world(j) for j in skin["joints"]]) @ inverse
    agreed = np.median(carried, axis=0)
    size = np.abs(agreed).max()
    return agreed if np.abs(carried - agreed).max() < 1e-2 * size else doc.world(node)


def _primitive(
    doc: _Document, primitive: dict[str, Any], bind: np.ndarray, joints: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if primitive.get("mode", 4) != 4 or "KHR_draco_mesh_compression" in primitive.get("extensions", {}):
        raise InputError("rig", doc.path, "only plain triangle lists are read; export triangles, uncompressed")
    attributes = primitive["attributes"]
    local = doc.array(attributes["POSITION"]).astype(np.float64)
    vertices = local @ bind[:3, :3].T + bind[:3, 3]
    if "indices" in primitive:
        faces = doc.array(primitive["indices"]).astype(np.int64).reshape(-1, 3)
    else:
        faces = np.arange(len(vertices)).reshape(-1, 3)
    weights, rows = np.zeros((len(vertices), joints)), np.arange(len(vertices))[:, None]
    for i in range(len(attributes)):
        if f"JOINTS_{i}" in attributes:
            slots = doc.array(attributes[f"JOINTS_{i}"]).astype(np.int64)
            np.add.at(weights, (rows, slots), doc.array(attributes[f"WEIGHTS_{i}"]).astype(np.float64))
    total = weights.sum(1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    if "COLOR_0" in attributes:
        colors = doc.array(attributes["COLOR_0"])[:, :3].astype(np.float64)
    else:
        material = doc.json["materials"][primitive["material"]] if "material" in primitive else {}
        factor = material.get("pbrMetallicRoughness", {}).get("baseColorFactor", (0.6, 0.6, 0.6))
        colors = np.broadcast_to(np.asarray(factor[:3], np.float64), (len(vertices), 3))
    return vertices, faces, weights, colors


def _joint_parent(doc: _Document, joint: int, column: dict[int, int]) -> int:
    above = doc.parents[joint]
    while above >= 0 and above not in column:
        above = doc.parents[above]
    return column.get(above, -1)


def write_glb(
    path: str,
    vertices: np.ndarray,
    faces: np.ndarray,
    weights: np.ndarray,
    joint_names: Sequence[str],
    joint_parents: Sequence[int],
    joint_positions: np.ndarray,
    colors: np.ndarray | None = None,
) -> None:
    """Write one skinned mesh as a GLB file that `read_glb` and ordinary viewers read.

    Args:
        vertices: [V, 3] world coordinates in the bind pose.
        faces: [F, 3] vertex indices.
        weights: [V, J] skinning weights, rows sum to 1.
        joint_parents: J entries, -1 for a root.
        joint_positions: [J, 3] world coordinates in the bind pose.
        colors: [V, 3] in [0, 1], or None.

    Raises:
        ValueError: shapes do not fit each other.
    """
    vertices, weights = np.asarray(vertices, np.float32), np.asarray(weights, np.float64)
    positions, joints = np.asarray(joint_positions, np.float64), len(joint_names)
    if weights.shape != (len(vertices), joints) or positions.shape != (joints, 3) or len(joint_parents) != joints:
        raise ValueError(f"weights {weights.shape} and joint_positions {positions.shape} for {joints} joints")
    writer = _Writer()
    attributes = {"POSITION": writer.add(vertices, "VEC3", bounds=True)}
    order = np.argsort(-weights, axis=1, kind="stable")
    used = int((weights > 0).sum(1).max(initial=1))
    for i in range(0, max(used, 1), 4):
        slots = np.zeros((len(vertices), 4), np.int64)
        chosen = order[:, i : i + 4]
        slots[:, : chosen.shape[1]] = chosen
        values = np.zeros((len(vertices), 4), np.float32)
        values[:, : chosen.shape[1]] = np.take_along_axis(weights, chosen, 1)
        slots[values == 0] = 0
        attributes[f"JOINTS_{i // 4}"] = writer.add(slots.astype(np.uint16), "VEC4")
        attributes[f"WEIGHTS_{i // 4}"] = writer.add(values, "VEC4")
    if colors is not None:
        attributes["COLOR_0"] = writer.add(np.asarray(colors, np.float32), "VEC3")
    inverse = np.tile(np.eye(4, dtype=np.float32), (joints, 1, 1))
    inverse[:, 3, :3] = -positions  # column-major: the last row in memory is the translation
    nodes: list[dict[str, Any]] = []
    for j, (name, parent) in enumerate(zip(joint_names, joint_parents, strict=True)):
        offset = positions[j] - (positions[parent] if parent >= 0 else 0)
        children = [c for c, p in enumerate(joint_parents) if p == j]
        node = {"name": str(name), "translation": [float(x) for x in offset]}
        nodes.append({**node, "children": children} if children else node)
    roots = [j for j, p in enumerate(joint_parents) if p < 0]
    nodes.append({"name": "mesh", "mesh": 0, "skin": 0})
    nodes.append({"name": "rig", "children": [*roots, joints]})
    indices = writer.add(np.asarray(faces, np.uint32).reshape(-1, 1), "SCALAR")
    document = {
        "asset": {"version": "2.0", "generator": "wildshape"},
        "scene": 0,
        "scenes": [{"nodes": [joints + 1]}],
        "nodes": nodes,
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0, "mode": 4}]}],
        # Said outright, for what glTF assumes otherwise is metal, which is black where a viewer has nothing to mirror.
        "materials": [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9}}],
        "skins": [{"joints": list(range(joints)), "inverseBindMatrices": writer.add(inverse, "MAT4")}],
    }
    write_atomically(path, writer.pack(document))


class _Writer:
    """Accessors, one buffer view each, in one binary chunk."""

    def __init__(self) -> None:
        self.binary = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, array: np.ndarray, kind: str, bounds: bool = False) -> int:
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        code = next(c for c, t in _TYPES.items() if np.dtype(t) == array.dtype)
        self.views.append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)})
        accessor: dict[str, Any] = {"bufferView": len(self.views) - 1, "componentType": code, "type": kind}
        accessor["count"] = len(array)
        if bounds:
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        self.accessors.append(accessor)
        self.binary += data + b"\0" * (-len(data) % 4)
        return len(self.accessors) - 1

    def pack(self, document: dict[str, Any]) -> bytes:
        tables = {"buffers": [{"byteLength": len(self.binary)}], "bufferViews": self.views, "accessors": self.accessors}
        text = json.dumps(document | tables, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + len(self.binary)
        head = struct.pack("<5I", _MAGIC, 2, total, len(text), _JSON)
        return head + text + struct.pack("<2I", len(self.binary), _BIN) + bytes(self.binary)
