import json

import numpy as np
import pytest
import torch
from rig_keypoints import RIGS, geometric_keypoints, rig_path

from models.articulation import part_transforms, skin
from models.gltf import read_glb, write_glb
from models.mesh_repair import face_outward, useful_faces, weld
from models.rig_parts import PARTS
from models.template import Template
from models.template_picture import save_template_picture, template_picture
from tables import QUADRUPED, InputError

# A wooden horse: one box per part, (part, low corner, high corner), Y up, nose to +Z, left +X.
BOXES = [
    ("body", (-0.3, 1.0, -0.9), (0.3, 1.6, 0.9)), ("neck", (-0.12, 1.5, 0.75), (0.12, 2.1, 1.05)),
    ("head", (-0.15, 2.0, 0.8), (0.15, 2.3, 1.6)), ("tail", (-0.05, 0.9, -1.1), (0.05, 1.5, -0.92)),
    ("leg_LF", (0.1, 0.0, 0.6), (0.3, 1.1, 0.8)), ("leg_RF", (-0.3, 0.0, 0.6), (-0.1, 1.1, 0.8)),
    ("leg_LB", (0.1, 0.0, -0.8), (0.3, 1.1, -0.6)), ("leg_RB", (-0.3, 0.0, -0.8), (-0.1, 1.1, -0.6)),
]  # fmt: skip
CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
BOX_FACES = np.array(
    [(0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1), (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4),
     (1, 5, 7), (1, 7, 3)]
)  # fmt: skip
POINTS = {
    "L_eye": ("head", (1, 1, 1)), "R_eye": ("head", (0, 1, 1)), "L_ear": ("head", (1, 1, 0)),
    "R_ear": ("head", (0, 1, 0)), "Nose": ("head", (1, 0, 1)), "Throat": ("neck", (1, 0, 1)),
    "Tail": ("body", (0, 1, 0)), "Withers": ("body", (0, 1, 1)),
} | {
    f"{leg[-2]}_{leg[-1]}_{name}": (leg, (1, height, 1))
    for leg in ("leg_LF", "leg_RF", "leg_LB", "leg_RB") for name, height in (("elbow", 1), ("paw", 0))
}  # fmt: skip
PIVOTS = {
    "body": (0, 1.3, 0), "neck": (0, 1.5, 0.9), "head": (0, 2.1, 0.9), "tail": (0, 1.5, -0.9),
    "leg_LF": (0.2, 1.1, 0.7), "leg_RF": (-0.2, 1.1, 0.7), "leg_LB": (0.2, 1.1, -0.7), "leg_RB": (-0.2, 1.1, -0.7),
}  # fmt: skip


def wooden(tmp_path, joints=None, owner=None, turn=None, skip=(), seams=False, name="horse.glb"):
    """Write the wooden horse; returns its path and keypoints.

    joints: {name: (parent name or None, position)}, by default one joint per part.
    owner: (part, corner) -> joint name, by default the part's name.
    """
    boxes = [b for b in BOXES if b[0] not in skip]
    default = {p: (None if p == "body" else "neck" if p == "head" else "body", PIVOTS[p]) for p in PARTS}
    joints = joints or {p: j for p, j in default.items() if p not in skip}
    names, turn = list(joints), np.eye(3) if turn is None else turn
    vertices, faces, part_of = [], [], []
    for part, low, high in boxes:
        faces.append(BOX_FACES + len(vertices))
        vertices.extend(np.where(c, high, low) for c in CORNERS)
        part_of.extend((part, tuple(c)) for c in CORNERS)
    vertices, faces = np.array(vertices), np.concatenate(faces)
    weights = np.zeros((len(vertices), len(names)))
    for v, (part, corner) in enumerate(part_of):
        weights[v, names.index(owner(part, corner) if owner else part)] = 1
    keypoints = {k: part_of.index(at) for k, at in POINTS.items()}
    if seams:  # every triangle has vertices of its own, as flat-shaded exports have
        keypoints = {k: int(np.flatnonzero(faces.ravel() == v)[-1]) for k, v in keypoints.items()}
        vertices, weights = vertices[faces.ravel()], weights[faces.ravel()]
        faces = np.arange(len(vertices)).reshape(-1, 3)
    parents = [names.index(p) if p else -1 for p, _ in joints.values()]
    positions = np.array([at for _, at in joints.values()], float)
    write_glb(str(tmp_path / name), vertices @ turn.T, faces, weights, names, parents, positions @ turn.T)
    return str(tmp_path / name), keypoints


def test_own_rig_gives_exactly_its_parts(tmp_path):
    path, keypoints = wooden(tmp_path)
    t = Template.from_rig(path, keypoints)
    assert t.parts == PARTS
    assert t.parents == (-1, 0, 1, 0, 0, 0, 0, 0)
    assert t.part_mirror == (0, 1, 2, 4, 3, 6, 5, 7)
    assert t.keypoint_names == QUADRUPED.names
    scene = read_glb(path)
    np.testing.assert_allclose(t.weights, scene.weights, atol=1e-6)
    # Only moved and scaled: pivots go with the mesh.
    scale = np.ptp(t.vertices[:, 1]) / np.ptp(scene.vertices[:, 1])
    shift = t.vertices[0] - scale * scene.vertices[0]
    np.testing.assert_allclose(t.vertices, scale * scene.vertices + shift, atol=1e-5)
    np.testing.assert_allclose(t.pivots, scale * scene.joint_positions + shift, atol=1e-5)
    np.testing.assert_allclose(t.vertices.mean(0), 0, atol=1e-6)
    distances = np.linalg.norm(t.vertices[:, None] - t.vertices, axis=-1)
    assert distances.max() == pytest.approx(2, abs=1e-5)
    for k, name in enumerate(t.keypoint_names):
        np.testing.assert_allclose(
            t.vertices[t.keypoints[k]], scale * scene.vertices[keypoints[name]] + shift, atol=1e-5
        )


def test_seams_are_welded_and_keypoints_follow(tmp_path):
    whole = Template.from_rig(*wooden(tmp_path))
    seamed = Template.from_rig(*wooden(tmp_path, seams=True, name="seams.glb"))
    assert len(seamed.vertices) == len(whole.vertices) == 64
    assert len(seamed.faces) == len(whole.faces) == 96
    np.testing.assert_allclose(seamed.vertices[seamed.keypoints], whole.vertices[whole.keypoints], atol=1e-5)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_rig_that_lies_otherwise_is_turned(tmp_path, axis, quarter):
    upright = Template.from_rig(*wooden(tmp_path))
    turn = np.eye(3)
    for _ in range(quarter):
        turn = np.round(np.cross(np.eye(3), axis) + np.outer(axis, axis)) @ turn
    turned = Template.from_rig(*wooden(tmp_path, turn=turn, name="turned.glb"))
    np.testing.assert_allclose(turned.vertices, upright.vertices, atol=1e-5)
    np.testing.assert_allclose(turned.pivots, upright.pivots, atol=1e-5)


def test_small_turns_are_kept(tmp_path):
    a = np.deg2rad(25)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    upright, turned = (Template.from_rig(*wooden(tmp_path, turn=t, name="t.glb")) for t in (np.eye(3), turn))
    np.testing.assert_allclose(turned.vertices, upright.vertices @ turn.T, atol=1e-5)


def test_left_for_right_is_noticed(tmp_path):
    path, keypoints = wooden(tmp_path)
    swapped = {QUADRUPED.names[f]: keypoints[n] for n, f in zip(QUADRUPED.names, QUADRUPED.flip, strict=True)}
    with pytest.raises(InputError, match="left and right"):
        Template.from_rig(path, swapped)


def test_feet_outside_the_chain_ears_on_the_neck_and_control_bones(tmp_path):
    joints = {"control": (None, (0, 0, 0)), "hips": ("control", PIVOTS["body"]), "chest": ("hips", (0, 1.4, 0.5))}
    joints |= {"neck": ("chest", PIVOTS["neck"]), "skull": ("neck", PIVOTS["head"]), "ears": ("neck", (0, 2.2, 0.8))}
    joints |= {"t1": ("hips", PIVOTS["tail"]), "t2": ("t1", (0, 1.2, -1.0))}
    for leg in ("LF", "RF", "LB", "RB"):
        joints[f"a{leg}"] = ("chest" if leg[1] == "F" else "hips", PIVOTS[f"leg_{leg}"])
        joints[f"foot{leg}"] = ("control", (*PIVOTS[f"leg_{leg}"][:1], 0.1, PIVOTS[f"leg_{leg}"][2]))

    def owner(part, corner):
        if part.startswith("leg"):
            return ("a" if corner[1] else "foot") + part[-2:]
        if part == "body":
            return "chest" if corner[2] else "hips"
        if part == "tail":
            return "t1" if corner[1] else "t2"
        return ("ears" if corner == (corner[0], 1, 0) else "skull") if part == "head" else "neck"

    t = Template.from_rig(*wooden(tmp_path, joints, owner))
    plain = Template.from_rig(*wooden(tmp_path, name="plain.glb"))
    assert t.parts == PARTS
    np.testing.assert_allclose(t.weights, plain.weights, atol=1e-6)
    np.testing.assert_allclose(t.pivots, plain.pivots, atol=1e-5)


@pytest.mark.parametrize("ground", [None, "control"])
def test_a_foot_whose_leg_no_keypoint_moves(tmp_path, ground):
    """The elbow is on the body: the leg's bones are found because their skin borders on the foot's."""
    joints = {"control": (None, (0, 0, 0))}
    joints |= {p: ("control" if p == "body" else "neck" if p == "head" else "body", PIVOTS[p]) for p in PARTS}
    joints |= {f"foot{p[-2:]}": (ground, (PIVOTS[p][0], 0.1, PIVOTS[p][2])) for p in PARTS if p.startswith("leg")}

    def owner(part, corner):
        if not part.startswith("leg") or corner == (1, 1, 1):
            return part if not part.startswith("leg") else "body"
        return part if corner[1] else f"foot{part[-2:]}"

    t = Template.from_rig(*wooden(tmp_path, joints, owner))
    assert t.parts == PARTS
    leg = t.weights[32:40, t.parts.index("leg_LF")]
    assert leg.sum() == pytest.approx(7)


def test_a_rig_without_tail_or_neck_has_fewer_parts(tmp_path):
    t = Template.from_rig(*wooden(tmp_path, skip=("tail",)))
    assert t.parts == PARTS[:-1]
    joints = {p: (None if p == "body" else "body", PIVOTS[p]) for p in PARTS if p != "neck"}
    t = Template.from_rig(*wooden(tmp_path, joints, lambda p, c: "body" if p == "neck" else p))
    assert t.parts == tuple(p for p in PARTS if p != "neck")
    assert t.parents == (-1, 0, 0, 0, 0, 0, 0)
    assert t.part_mirror == (0, 1, 3, 2, 5, 4, 6)


def test_named_joints_override(tmp_path):
    path, keypoints = wooden(tmp_path)
    t = Template.from_rig(path, keypoints, parts={"head": "neck"})
    assert "neck" not in t.parts
    assert t.weights[:, t.parts.index("head")].sum() == 16
    with pytest.raises(InputError, match="no such part"):
        Template.from_rig(path, keypoints, parts={"wing": "neck"})
    with pytest.raises(InputError, match="no such joint"):
        Template.from_rig(path, keypoints, parts={"head": "Skull"})


def test_legs_on_one_joint_cannot_be_told_apart(tmp_path):
    joints = {p: (None if p == "body" else "body", (0, 1, 0)) for p in ("body", "head", "legs")}
    path, keypoints = wooden(tmp_path, joints, lambda p, c: "legs" if "leg" in p else p if p in joints else "body")
    with pytest.raises(InputError, match="paw"):
        Template.from_rig(path, keypoints)


def test_keypoint_files(tmp_path):
    path, keypoints = wooden(tmp_path)
    file = tmp_path / "k.json"
    direct = Template.from_rig(path, keypoints)
    for content in (keypoints, {"keypoints": keypoints, "note": "clicked by hand"}, {**keypoints, "extra": "x"}):
        file.write_text(json.dumps(content))
        assert Template.from_rig(path, str(file)) == direct
    bad = {
        "lacks Nose, Tail": {k: v for k, v in keypoints.items() if k not in ("Nose", "Tail")},
        "Nose is vertex 64": keypoints | {"Nose": 64},
        "Nose is vertex -1": keypoints | {"Nose": -1},
        "Nose is 1.5": keypoints | {"Nose": 1.5},
        "Nose is 'tip'": keypoints | {"Nose": "tip"},
        "expected an object": [1, 2],
        "do not span": dict.fromkeys(keypoints, 3),
    }
    for message, content in bad.items():
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            Template.from_rig(path, str(file))
    file.write_text("{not json")
    with pytest.raises(InputError, match="not JSON"):
        Template.from_rig(path, str(file))
    with pytest.raises(InputError, match="no such file"):
        Template.from_rig(path, str(tmp_path / "none.json"))


def test_save_and_load(tmp_path):
    t = Template.from_rig(*wooden(tmp_path))
    t.save(str(tmp_path / "deep" / "a.template"))
    back = Template.load(str(tmp_path / "deep" / "a.template"))
    assert back == t
    assert back.digest == t.digest
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.template"]
    (tmp_path / "bad").write_bytes(b"no template")
    with pytest.raises(InputError, match="unreadable"):
        Template.load(str(tmp_path / "bad"))
    with pytest.raises(InputError, match="no such file"):
        Template.load(str(tmp_path / "none"))
    changed = Template(**{**vars_of(t), "pivots": t.pivots + 0.1})
    assert changed != t
    assert changed.digest != t.digest


def vars_of(t: Template) -> dict:
    return {n: getattr(t, n) for n in Template.__dataclass_fields__}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parents", (1, *[0] * 7)),
        ("part_mirror", (0,) * 8),
        ("keypoints", np.full(16, 99)),
        ("pivots", np.zeros((7, 3))),
    ],
)
def test_nonsense_is_named(tmp_path, name, value):
    t = Template.from_rig(*wooden(tmp_path))
    with pytest.raises(ValueError, match=name):
        Template(**{**vars_of(t), name: value})


def test_weld_does_not_depend_on_a_grid():
    g = np.random.default_rng(0)
    points = g.normal(size=(300, 3))
    doubled = np.concatenate((points, points + 1e-9 * g.normal(size=points.shape)))
    np.testing.assert_array_equal(weld(doubled, 1e-6), np.tile(np.arange(300), 2))


def test_winding_is_made_outward_and_useless_faces_go():
    vertices = CORNERS.astype(float)
    g = np.random.default_rng(1)
    mixed = BOX_FACES.copy()
    turn = g.random(12) < 0.5
    mixed[turn] = mixed[turn][:, ::-1]
    out = face_outward(vertices, mixed)
    a, b, c = (vertices[out[:, i]] for i in range(3))
    outward = np.einsum("ij,ij->i", np.cross(b - a, c - a), (a + b + c) / 3 - 0.5)
    assert (outward > 0).all()
    sheet = np.array([(0, 1, 3), (0, 2, 3)])  # open: keeps the direction of most of its area
    np.testing.assert_array_equal(face_outward(vertices, sheet)[0], sheet[0])
    faces = np.concatenate((BOX_FACES, [(0, 0, 1), (3, 1, 0)]))
    np.testing.assert_array_equal(useful_faces(vertices, faces), BOX_FACES)


@pytest.mark.parametrize("name", RIGS)
def test_real_rigs(name, tmp_path):
    path = str(rig_path(name))
    scene = read_glb(path)
    keypoints = geometric_keypoints(scene)
    t = Template.from_rig(path, keypoints)
    assert t.parts == PARTS
    assert 600 < len(t.vertices) < 1300
    # Not turned: the bind pose already lies in the template frame.
    scale = np.ptp(t.vertices[:, 1]) / np.ptp(scene.vertices[:, 1])
    ratio = np.ptp(t.vertices, axis=0) / np.ptp(scene.vertices, axis=0)
    np.testing.assert_allclose(ratio, scale, rtol=1e-4)
    at = dict(zip(t.keypoint_names, t.vertices[t.keypoints], strict=True))
    assert at["Nose"][2] > at["Withers"][2] > at["Tail"][2]
    assert at["L_F_paw"][0] > 0 > at["R_F_paw"][0]
    assert min(at["Withers"][1], at["Tail"][1]) > max(at[p][1] for p in t.keypoint_names if "paw" in p)
    owner = {k: t.parts[t.weights[i].argmax()] for k, i in zip(t.keypoint_names, t.keypoints, strict=True)}
    for side, end in ("LF", "RF", "LB", "RB"):
        assert owner[f"{side}_{end}_paw"] == owner[f"{side}_{end}_elbow"] == f"leg_{side}{end}"
    assert {owner[k] for k in ("L_eye", "R_eye", "L_ear", "R_ear", "Nose")} == {"head"}
    share = t.weights.sum(0) / len(t.vertices)
    assert share.min() > 0.02
    for leg in range(3, 7, 2):  # left and right carry alike
        assert share[leg] == pytest.approx(share[leg + 1], rel=0.1)
    # Moving a leg moves it and leaves the nose and the other paws where they were.
    angles = torch.zeros(8)
    angles[3] = 0.4
    moves = part_transforms(torch.tensor([[1.0, 0, 0]]).repeat(8, 1), angles, torch.tensor(t.pivots), t.parents)
    posed = skin(torch.tensor(t.vertices), torch.tensor(t.weights), moves).numpy()
    moved = np.linalg.norm(posed - t.vertices, axis=1)[t.keypoints]
    assert moved[t.keypoint_names.index("L_F_paw")] > 0.15
    assert moved[[t.keypoint_names.index(k) for k in ("Nose", "Tail", "R_F_paw", "L_B_paw", "R_B_paw")]].max() < 1e-3
    a, b, c = (t.vertices[t.faces[:, i]] for i in range(3))
    assert np.einsum("ij,ij->i", a, np.cross(b, c)).sum() > 0


def test_the_stage_writes_both_files_or_says_why_not(tmp_path):
    pytest.importorskip("hydra")
    from pipelines.template import build

    rig, keypoints = wooden(tmp_path)
    file, out, picture = (str(tmp_path / name) for name in ("k.json", "new/a.template", "new/a.png"))
    (tmp_path / "k.json").write_text(json.dumps(keypoints))
    with pytest.raises(InputError, match="no such joint"):
        build(rig, file, out, {"neck": "nowhere"}, picture)
    assert not (tmp_path / "new").exists()
    for bad in (rig, file, picture):
        with pytest.raises(InputError, match="overwrite"):
            build(rig, file, bad, {}, picture)
    with pytest.raises(InputError, match="folder"):
        build(rig, file, out, {}, str(tmp_path))
    made = build(rig, file, out, {}, picture)
    assert Template.load(out) == made
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.png", "a.template"]


def test_picture_shows_all_of_it(tmp_path):
    t = Template.from_rig(*wooden(tmp_path))
    picture = template_picture(t)
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 3 * 660
    inner = picture[2:558, 2:658].astype(int)
    colored = np.ptp(inner, axis=-1) > 30  # text and lines are grey
    assert colored.sum() > 10_000
    assert not colored[[0, -1]].any()
    assert not colored[:, [0, -1]].any()
    save_template_picture(t, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
