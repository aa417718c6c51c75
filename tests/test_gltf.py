import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from models.gltf import read_glb, write_glb
from tables import InputError

DATA = Path(os.environ.get("WILDSHAPE_TEST_DATA", Path(__file__).parents[1] / "../shared/data"))
RIGS = ("Horse", "Cow", "Donkey", "Husky", "Wolf")


def _rig(joints: int = 3, per_vertex: int | None = None):
    g = np.random.default_rng(0)
    vertices = g.normal(size=(20, 3))
    faces = g.integers(0, 20, (30, 3))
    weights = g.random((20, joints)) + 0.1
    if per_vertex:
        weights[np.argsort(-weights, 1).argsort(1) >= per_vertex] = 0
    weights /= weights.sum(1, keepdims=True)
    parents = [-1, *range(joints - 1)]
    return vertices, faces, weights, [f"j{i}" for i in range(joints)], parents, g.normal(size=(joints, 3))


def _json_of(path: Path) -> dict:
    data = path.read_bytes()
    return json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])


def _with_json(path: Path, change) -> Path:
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    out = path.with_name("changed.glb")
    rest = data[20 + length :]
    out.write_bytes(struct.pack("<5I", 0x46546C67, 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest)
    return out


@pytest.mark.parametrize(("joints", "per_vertex"), [(3, None), (8, 4), (9, None)])
def test_round_trip(tmp_path, joints, per_vertex):
    rig = _rig(joints, per_vertex)
    colors = np.random.default_rng(1).random((20, 3))
    write_glb(str(tmp_path / "a.glb"), *rig, colors=colors)
    scene = read_glb(str(tmp_path / "a.glb"))
    np.testing.assert_allclose(scene.vertices, rig[0], atol=1e-6)
    np.testing.assert_array_equal(scene.faces, rig[1])
    np.testing.assert_allclose(scene.weights, rig[2], atol=1e-6)
    assert scene.joint_names == tuple(rig[3])
    assert scene.joint_parents == tuple(rig[4])
    np.testing.assert_allclose(scene.joint_positions, rig[5], atol=1e-6)
    np.testing.assert_allclose(scene.colors, colors, atol=1e-6)


def test_node_transforms_are_applied(tmp_path):
    rig = _rig()
    write_glb(str(tmp_path / "a.glb"), *rig)
    half = float(np.sqrt(0.5))

    def turn_and_scale(document):  # -90 degrees about x, then 100 times as large: how these exporters stand Z up on Y
        document["nodes"][-1] |= {"rotation": [-half, 0, 0, half], "scale": [100, 100, 100], "translation": [0, 0, 5]}

    scene = read_glb(str(_with_json(tmp_path / "a.glb", turn_and_scale)))
    x, y, z = rig[0].T
    np.testing.assert_allclose(scene.vertices, np.stack((100 * x, 100 * z, -100 * y + 5), 1), rtol=1e-5, atol=1e-4)
    x, y, z = rig[5].T
    np.testing.assert_allclose(scene.joint_positions, np.stack((100 * x, 100 * z, -100 * y + 5), 1), atol=1e-4)


def test_the_mesh_node_stands_in_where_joints_rest_in_another_pose(tmp_path):
    rig = _rig()
    write_glb(str(tmp_path / "a.glb"), *rig)

    def pose(document):
        document["nodes"][2]["rotation"] = [0, 0, 1, 0]
        document["nodes"][3]["translation"] = [1, 2, 3]

    scene = read_glb(str(_with_json(tmp_path / "a.glb", pose)))
    np.testing.assert_allclose(scene.vertices, rig[0] + [1, 2, 3], atol=1e-6)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_glb(str(tmp_path / "none.glb"))
    text = tmp_path / "text.glb"
    text.write_text("not a mesh at all, however long it is")
    with pytest.raises(InputError, match="not a binary glTF"):
        read_glb(str(text))
    whole = tmp_path / "a.glb"
    write_glb(str(whole), *_rig())
    (tmp_path / "cut.glb").write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(InputError, match="cut off"):
        read_glb(str(tmp_path / "cut.glb"))
    with pytest.raises(InputError, match="no skinned mesh"):
        read_glb(str(_with_json(whole, lambda d: d["nodes"][3].pop("skin"))))
    with pytest.raises(InputError, match="malformed glTF"):
        read_glb(str(_with_json(whole, lambda d: d["accessors"].pop())))
    with pytest.raises(InputError, match="self-contained"):
        read_glb(str(_with_json(whole, lambda d: d["buffers"][0].update(uri="mesh.bin"))))


def test_written_files_are_valid(tmp_path):
    write_glb(str(tmp_path / "a.glb"), *_rig())
    document = _json_of(tmp_path / "a.glb")
    total = document["buffers"][0]["byteLength"]
    assert all(v["byteOffset"] % 4 == 0 and v["byteOffset"] + v["byteLength"] <= total for v in document["bufferViews"])
    position = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert len(position["min"]) == len(position["max"]) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.glb"]


@pytest.mark.parametrize("name", RIGS)
def test_real_rigs_stand_upright_in_the_world(name):
    path = DATA / "rigs" / f"{name}.glb"
    if not path.exists():
        pytest.skip(f"no rig at {path}: set WILDSHAPE_TEST_DATA")
    scene = read_glb(str(path))
    np.testing.assert_allclose(scene.weights.sum(1), 1, atol=1e-6)
    low, high = scene.vertices.min(0), scene.vertices.max(0)
    assert 0.5 < high[1] < 10  # metres, not the raw hundredths
    assert abs(low[1]) < 0.15 * high[1]  # feet on the ground
    assert abs(low[0] + high[0]) < 0.1 * (high[0] - low[0])  # symmetric about x = 0
    head = scene.joint_names.index("Head")
    assert scene.joint_positions[head][2] > np.median(scene.joint_positions[:, 2])  # looks towards +Z
