"""Templates of animals3d: a folder as its authors wrote it, pickles that try to run code, and what does not fit."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from models.animals3d import AXES, read_animals3d
from models.articulation import part_transforms, skin
from models.plain_pickle import read_plain_pickle
from models.template import Template
from tables import QUADRUPED, InputError

# Part, centre in the reference's axes (up +Z, nose -Y, left +X), rc, children. As the pickle lists them, which is not
# root first; the body is number 0, as the reference's zeroing of rc expects.
PARTS = [
    ("body", (0, 0, 1.0), (0.1, 0.2, 1.0), [2, 3, 4]), ("head", (0, -2.2, 2.0), (0, -1.8, 1.8), []),
    ("neck", (0, -1.4, 1.5), (0, -1.0, 1.2), [1]), ("LF_leg", (0.4, -0.8, 0.2), (0.4, -0.8, 0.8), []),
    ("RF_leg", (-0.4, -0.8, 0.2), (-0.4, -0.8, 0.8), []),
]  # fmt: skip
MIRROR = {"LF_leg": "RF_leg", "RF_leg": "LF_leg"}


def reference_folder(root: Path, protocol: int = 2, active: dict[str, str] | None = None) -> Path:
    """`cachedir/3D_models/horse` and its part file: a box of vertices for each part, soft at one vertex."""
    rng = np.random.default_rng(0)
    folder = root / "cachedir" / "3D_models" / "horse"
    folder.mkdir(parents=True)
    each = 8
    verts = np.concatenate([np.array(c) + 0.3 * rng.uniform(-1, 1, (each, 3)) for _, c, _, _ in PARTS])
    faces = np.array([(i, i + 1, i + 2) for i in range(len(verts) - 2)])
    savemat(folder / "mean_shape.mat", {"verts": verts, "faces": faces.astype(np.int32), "uv_map": np.zeros((3, 3, 2))})
    (folder / "kp2vertex.txt").write_text("".join(f"{n} {2 * i}\n" for i, n in enumerate(QUADRUPED.names)))
    (folder / "mirror_transforms.txt").write_text("".join(f"{n} {MIRROR.get(n, n)}\n" for n, *_ in PARTS))
    alpha = np.repeat(np.eye(len(PARTS)), each, 0)
    alpha[9] = [0, 0.25, 0.75, 0, 0]
    nodes: list[dict[str, Any]] = [
        {"id": i, "name": n, "children": children, "rc": np.array(rc), "is_main": i == 0, "verts": {i, i + 1}}
        for i, (n, _, rc, children) in enumerate(PARTS)
    ]
    with open(folder / "parts.pkl", "wb") as f:
        pickle.dump({"alpha": alpha, "nodes": nodes}, f, protocol)
    files = root / "cachedir" / "part_files"
    files.mkdir()
    rows = (f"{n} {(active or {}).get(n, 'True')} 1 0 0\n" for n, *_ in PARTS)
    (files / "horse.txt").write_text("".join(rows))
    return folder


def scaled(points: np.ndarray, verts: np.ndarray) -> np.ndarray:
    """`--scale_mesh`: diameter 2, then the mean vertex at 0."""
    scale = 2 / max(np.linalg.norm(verts[:, None] - verts, axis=-1).ravel())
    return points * scale - (verts * scale).mean(0)


def stored(folder: Path) -> np.ndarray:
    from scipy.io import loadmat

    return loadmat(folder / "mean_shape.mat")["verts"]


@pytest.mark.parametrize("protocol", range(5))
def test_a_folder_becomes_a_template_in_our_axes(tmp_path: Path, protocol: int) -> None:
    folder = reference_folder(tmp_path, protocol)
    t, order, rigid_root = read_animals3d(str(folder))
    assert not rigid_root
    assert t == Template.from_animals3d(str(folder))
    assert t.parts == ("body", "neck", "LF_leg", "RF_leg", "head")
    assert order == (0, 2, 3, 4, 1)
    assert t.parents == (-1, 0, 0, 0, 1)
    assert t.part_mirror == (0, 1, 3, 2, 4)
    assert t.keypoints.tolist() == list(range(0, 32, 2))
    verts = stored(folder)
    x, y, z = scaled(verts, verts).T
    np.testing.assert_allclose(t.vertices, np.stack([x, z, -y], 1), atol=1e-6)  # up is Y, the nose at +Z, left stays
    rc = scaled(np.array([PARTS[p][2] for p in order]), verts)
    np.testing.assert_allclose(t.pivots[1:], np.stack([rc[1:, 0], rc[1:, 2], -rc[1:, 1]], 1), atol=1e-6)
    np.testing.assert_allclose(t.pivots[0], 0, atol=1e-6)
    np.testing.assert_allclose(t.weights[9], [0, 0.75, 0, 0, 0.25])
    t.save(str(tmp_path / "horse.template"))
    assert Template.load(str(tmp_path / "horse.template")) == t
    nose, paw = (t.vertices[t.weights[:, t.parts.index(p)] > 0.5].mean(0) for p in ("head", "LF_leg"))
    assert nose[2] > paw[2]
    assert nose[1] > paw[1]
    assert paw[0] > 0


def test_the_reference_leaves_its_pivots_where_they_were(tmp_path: Path) -> None:
    folder = str(reference_folder(tmp_path))
    ours, theirs = Template.from_animals3d(folder), Template.from_animals3d(folder, compat="animals3d")
    np.testing.assert_array_equal(ours.vertices, theirs.vertices)
    np.testing.assert_allclose(theirs.pivots[4] @ AXES, PARTS[1][2], atol=1e-6)
    np.testing.assert_array_equal(theirs.pivots[0], 0)
    assert not np.allclose(ours.pivots[1:], theirs.pivots[1:], atol=0.05)
    with pytest.raises(InputError, match="compat=smal"):
        Template.from_animals3d(folder, compat="smal")


def test_an_inactive_part_moves_with_its_parent(tmp_path: Path) -> None:
    whole = Template.from_animals3d(str(reference_folder(tmp_path / "a")))
    fewer = Template.from_animals3d(str(reference_folder(tmp_path / "b", active={"neck": "False", "body": "False"})))
    assert fewer.parts == ("body", "head", "LF_leg", "RF_leg")
    assert fewer.parents == (-1, 0, 0, 0)
    assert fewer.part_mirror == (0, 1, 3, 2)
    assert read_animals3d(str(tmp_path / "b" / "cachedir" / "3D_models" / "horse")).rigid_root

    def pose(t: Template, angles: dict[str, float]) -> np.ndarray:
        turns = torch.tensor([angles.get(p, 0.0) for p in t.parts])
        moves = part_transforms(torch.tensor([[1.0, 0, 0]] * len(turns)), turns, torch.tensor(t.pivots), t.parents)
        return skin(torch.tensor(t.vertices), torch.tensor(t.weights), moves).numpy()

    bent = {"body": 0.2, "head": 0.7, "LF_leg": -0.4}
    np.testing.assert_allclose(pose(fewer, bent), pose(whole, bent), atol=1e-6)


def test_without_a_part_file_all_parts_are_active(tmp_path: Path) -> None:
    folder = reference_folder(tmp_path, active={"neck": "False"})
    (tmp_path / "cachedir" / "part_files" / "horse.txt").unlink()
    assert len(Template.from_animals3d(str(folder)).parts) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mean_shape.mat", b"no matlab", "mean_shape.mat: not as animals3d has it"),
        ("mean_shape.mat", None, "mean_shape.mat: no such file"),
        ("kp2vertex.txt", b"Nose 3\n", "kp2vertex.txt: not as animals3d has it.*l_eye"),
        ("kp2vertex.txt", "".join(f"{n} 999\n" for n in QUADRUPED.names).encode(), "keypoints: vertex index outside"),
        ("mirror_transforms.txt", b"body body\n", "mirror_transforms.txt.*head"),
        ("parts.pkl", b"", "parts.pkl"),
        ("parts.pkl", pickle.dumps({"alpha": np.eye(5)}), "parts.pkl.*nodes"),
        ("parts.pkl", pickle.dumps([1, 2]), "parts.pkl"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    folder = reference_folder(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Template.from_animals3d(str(folder))
    assert "\n" not in str(caught.value)


# -- pickles --------------------------------------------------------------------------------------------------------


class Evil:
    """Pickles as a call of the function it is given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    file = tmp_path / "parts.pkl"
    calls = [
        Evil(os.system, f"touch {trace}"), Evil(eval, f"open({str(trace)!r}, 'w')"), Evil(open, str(trace), "w"),
        Evil(getattr, os, "sep"), Evil(np.zeros, 3), Evil(np.ndarray, (2,)), Evil(pickle.loads, b"N."), Evil,
        Evil(np.load, str(trace)), Evil(type, "T", (), {}),
    ]  # fmt: skip
    for call in calls:
        for protocol in range(2, 5):
            try:
                file.write_bytes(pickle.dumps({"alpha": call}, protocol))
            except (pickle.PicklingError, TypeError):
                continue
            with pytest.raises(ValueError, match=r"pickle|ndarray"):
                read_plain_pickle(str(file))
    assert not trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy.core.multiarray\n_reconstruct\n(S'a'\ntRN}b.",  # a state that is none
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I5\ntcnumpy\ndtype\n(S'f8'\ntRI0\nS'12345678'\ntb.",  # too few
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\ntRI0\nS'12345678'\ntb.",  # objects
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I1\ntcnumpy\ndtype\n(S'f8'\ntRI0\nI99999999\ntb.",  # a number
        b"cnumpy.core.multiarray\n_reconstruct\n}(S'__setstate__'\nI1\nu}(S'__init__'\nI1\nu\x86b.",  # of the class
        b"cnumpy\ndtype\n(S'f8'\ntRS'x'\nb.",
        b"c__builtin__\nset\n.",
        b"\x82\x01.",
        b"Pname\n.",
        b"(lp0\ng0\na.",  # a list in itself
    ],
)
def test_pickles_made_by_hand_are_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "parts.pkl"
    file.write_bytes(data)
    with pytest.raises(ValueError):
        read_plain_pickle(str(file))


@pytest.mark.parametrize("protocol", range(5))
def test_plain_data_comes_back(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(protocol)
    value: dict[str, Any] = {
        "f4": rng.normal(size=(3, 4)).astype(np.float32), "columns": np.asfortranarray(rng.normal(size=(3, 4))),
        "big": np.arange(5, dtype=">i4"), "flags": np.array([True, False]), "empty": np.zeros((0, 3)),
        "scalar": np.float64(2.5), "objects": np.array([{"a": 1}, None], object),
        "nested": [(1, 2.5, "text"), {3, 4}, None, True],
    }  # fmt: skip
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(value, protocol))
    found = read_plain_pickle(str(file))
    for key in ("f4", "columns", "big", "flags", "empty"):
        np.testing.assert_array_equal(found[key], value[key])
        assert found[key].dtype == value[key].dtype
    assert found["scalar"] == 2.5
    assert found["objects"] == [{"a": 1}, None]
    assert found["nested"] == value["nested"]


def test_texts_and_arrays_of_python_2(tmp_path: Path) -> None:
    """Protocol 0 as Python 2 wrote it: the array's bytes are a text, escaped."""
    numbers = np.array([1.5, -2.0])
    text = "".join(f"\\x{b:02x}" for b in numbers.tobytes())
    file = tmp_path / "a.pkl"
    file.write_bytes(
        (
            "(dS'rc'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
            "(I1\n(I2\ntcnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
            f"I00\nS'{text}'\ntbsS'name'\nS'caf\\xe9'\ns."
        ).encode("latin1")
    )
    found = read_plain_pickle(str(file))
    np.testing.assert_array_equal(found["rc"], numbers)
    assert found["name"] == "caf\xe9"
