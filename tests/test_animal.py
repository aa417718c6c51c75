"""The procedural animals: closed, symmetric, weighted, named, and the same again from their own rig."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.template import Template
from sandbox.animal import SPECIES, animal, write_rig
from sandbox.individual import born, fur, pose, vary
from sandbox.surface import graded, mirrored, surface_nets
from tables import QUADRUPED


def directed_edges(template: Template) -> np.ndarray:
    f = template.faces.astype(np.int64)
    e = np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]])
    return e[:, 0] * len(template.vertices) + e[:, 1]


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("name", SPECIES)
def test_mesh_is_watertight_and_of_genus_zero(name: str) -> None:
    t = animal(name)
    edges, n = directed_edges(t), len(t.vertices)
    assert len(np.unique(edges)) == len(edges)  # no edge twice in the same direction
    assert set(edges.tolist()) == set((edges % n * n + edges // n).tolist())  # each has its opposite
    assert n - len(edges) // 2 + len(t.faces) == 2
    assert volume(t.vertices, t.faces) > 0
    assert 600 <= n <= 1300


@pytest.mark.parametrize("name", SPECIES)
def test_mirror_maps_the_vertex_set_to_itself(name: str) -> None:
    t = animal(name)
    here = {tuple(v) for v in (t.vertices + 0.0).tolist()}
    there = {tuple(v) for v in (t.vertices * np.array([-1, 1, 1], np.float32) + 0.0).tolist()}
    assert here == there
    assert len(here) == len(t.vertices)


def test_template_is_normalised() -> None:
    v = animal().vertices.astype(np.float64)
    diameter = max(np.linalg.norm(v - p, axis=1).max() for p in v)
    assert diameter == pytest.approx(2, abs=1e-5)
    assert np.abs(v.mean(0)).max() < 1e-6


@pytest.mark.parametrize("name", SPECIES)
def test_weights_sum_to_one_and_follow_the_mirror(name: str) -> None:
    t = animal(name)
    assert np.abs(t.weights.sum(1) - 1).max() < 1e-6
    assert ((t.weights > 0).sum(1) <= 4).all()
    assert (t.weights.argmax(1)[:, None] == np.arange(len(t.parts))).any(0).all()  # every part owns vertices
    at = {tuple(v): i for i, v in enumerate((t.vertices + 0.0).tolist())}
    mirror = [at[tuple(v)] for v in (t.vertices * np.array([-1, 1, 1], np.float32) + 0.0).tolist()]
    assert np.abs(t.weights[mirror][:, t.part_mirror] - t.weights).max() < 1e-6
    assert np.abs(t.pivots[list(t.part_mirror)] * [-1, 1, 1] - t.pivots).max() < 1e-6


def test_quadruped_has_its_parts_and_keypoints() -> None:
    t = animal()
    assert t.parts == ("body", "neck", "head", "leg_LF", "leg_RF", "leg_LB", "leg_RB", "tail")
    assert t.parents == (-1, 0, 1, 0, 0, 0, 0, 0)
    assert t.keypoint_names == QUADRUPED.names
    points = t.vertices[t.keypoints]
    assert np.array_equal(points[list(QUADRUPED.flip)] * np.array([-1, 1, 1], np.float32) + 0.0, points + 0.0)
    where = dict(zip(QUADRUPED.names, points, strict=True))
    assert all(where[n][0] > 0 for n in QUADRUPED.names if n.startswith("L_"))
    assert where["Nose"][2] > where["Withers"][2] > where["Tail"][2]
    assert where["L_ear"][1] > where["L_eye"][1] > where["L_F_elbow"][1] > where["L_F_paw"][1]
    owners = [t.parts[p] for p in t.weights[t.keypoints].argmax(1)]
    assert owners[:5] == ["head"] * 5
    assert owners[12:] == ["leg_LF", "leg_RF", "leg_LB", "leg_RB"]


def test_rig_gives_the_template_back(tmp_path) -> None:
    pytest.importorskip("models.rig")
    t = animal()
    write_rig(t, str(tmp_path / "animal.glb"), str(tmp_path / "keypoints.json"))
    marks = json.loads((tmp_path / "keypoints.json").read_text())
    assert marks["Nose"] == t.keypoints[QUADRUPED.names.index("Nose")]
    back = Template.from_rig(str(tmp_path / "animal.glb"), str(tmp_path / "keypoints.json"))
    assert back.parts == t.parts
    assert back.parents == t.parents
    assert back.part_mirror == t.part_mirror
    assert np.array_equal(back.faces, t.faces)
    assert np.array_equal(back.keypoints, t.keypoints)
    for name in ("vertices", "weights", "pivots"):
        assert np.abs(getattr(back, name) - getattr(t, name)).max() < 1e-5, name


def test_individuals_differ_smoothly_and_keep_their_symmetry() -> None:
    t = animal()
    bind, pivots = vary(t, np.random.default_rng(3))
    assert 0.005 < np.abs(bind - t.vertices).max() < 0.4
    assert volume(bind, t.faces) > 0
    assert np.abs(pivots[list(t.part_mirror)] * [-1, 1, 1] - pivots).max() < 1e-6
    again, _ = vary(t, np.random.default_rng(3))
    assert np.array_equal(bind, again)
    still, same = vary(t, np.random.default_rng(3), amount=0.0)
    assert np.abs(still - t.vertices).max() < 1e-6
    assert np.abs(same - t.pivots).max() < 1e-6


def test_pose_leaves_the_body_and_swings_the_legs() -> None:
    t = animal()
    who = born(t, np.random.default_rng(5))
    posed = pose(who, np.random.default_rng(6))
    rigid = t.weights[:, t.parts.index("body")] == 1
    assert np.abs(posed[rigid] - who.bind[rigid]).max() < 1e-5
    paw = t.keypoints[QUADRUPED.names.index("L_F_paw")]
    assert np.linalg.norm(posed[paw] - who.bind[paw]) > 0.02
    assert volume(posed, t.faces) > 0


def test_coat_is_a_colour_everywhere() -> None:
    t = animal()
    for seed in range(12):
        colours = fur(born(t, np.random.default_rng(seed)), t.vertices)
        assert colours.shape == t.vertices.shape
        assert colours.min() >= 0
        assert colours.max() < 1.6


def test_surface_nets_make_a_sphere() -> None:
    axis = graded((-1.2, 0.15), (1.2, 0))
    v, f, mirror = surface_nets(lambda p: np.linalg.norm(p, axis=-1) - 1, mirrored(1.2, 0.15), axis, axis)
    assert np.abs(np.linalg.norm(v, axis=1) - 1).max() < 1e-4
    assert volume(v, f) == pytest.approx(4 / 3 * np.pi, rel=0.02)
    assert np.array_equal(mirror[mirror], np.arange(len(v)))


def test_a_surface_that_leaves_the_grid_is_refused() -> None:
    axis = graded((-0.5, 0.1), (0.5, 0))
    with pytest.raises(ValueError, match="leaves the grid"):
        surface_nets(lambda p: np.linalg.norm(p, axis=-1) - 1, mirrored(1.2, 0.1), axis, axis)
