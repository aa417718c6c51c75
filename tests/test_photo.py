"""The renderer's truth: masks, boxes, keypoint visibility, the camera convention, and its repeatability."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.camera import project
from sandbox.animal import animal
from sandbox.background import SCENES, Layer, cut, paint
from sandbox.individual import Individual, draw_coat
from sandbox.photo import Light, Placed, render
from sandbox.scene import LABELLED, WEB, take, take_labelled, view
from tables import QUADRUPED, InputError

NAMES = QUADRUPED.names
LIGHT = Light(
    np.array([0, -0.9, -0.4], np.float32), 0.5, 0.7, np.ones(3, np.float32), np.full(3, 0.4, np.float32)
)  # fmt: skip


def placed(azimuth: float, elevation: float = 0.0, s: float = 60.0, at: tuple[float, float] = (80, 70)) -> Placed:
    t = animal()
    who = Individual(t, t.vertices, t.pivots, draw_coat(np.random.default_rng(0)))
    q = view(np.deg2rad(azimuth), np.deg2rad(elevation), 0.0)
    return Placed(who, t.vertices, np.array([s, *at, *q]))


def shoot(*animals: Placed, fronts=None, size=(140, 160)):
    backdrop = np.full((*size, 3), 0.5, np.float32)
    return render(backdrop, animals, fronts or [[] for _ in animals], LIGHT)


def test_face_on_the_left_is_to_the_right_and_up_is_up() -> None:
    _, (seen,) = shoot(placed(0))
    k = dict(zip(NAMES, seen.keypoints, strict=True))
    assert k["L_eye"][0] > k["R_eye"][0]  # it looks at us: its left is on our right
    assert k["L_ear"][1] < k["L_F_paw"][1]
    assert k["Nose"][2] == 2
    assert k["L_eye"][2] == 2
    assert k["Tail"][2] == 1


def test_from_its_left_the_right_side_is_hidden() -> None:
    for azimuth, near, far in ((-90, "L", "R"), (90, "R", "L")):
        _, (seen,) = shoot(placed(azimuth))
        k = dict(zip(NAMES, seen.keypoints, strict=True))
        for joint in ("eye", "F_elbow", "B_elbow"):
            assert (k[f"{near}_{joint}"][2], k[f"{far}_{joint}"][2]) == (2, 1), (azimuth, joint)


def test_from_above_the_withers_show_and_the_throat_does_not() -> None:
    _, (seen,) = shoot(placed(-60, 50))
    k = dict(zip(NAMES, seen.keypoints, strict=True))
    assert k["Withers"][2] == 2
    assert k["Tail"][2] == 2
    assert k["Throat"][2] == 1


def test_keypoints_follow_the_camera_in_photo_pixels() -> None:
    p = placed(-70, 20)
    _, (seen,) = shoot(p)
    camera = torch.from_numpy(seen.camera)
    expected = project(camera, torch.from_numpy(p.vertices))[p.individual.template.keypoints, :2].numpy()
    assert np.abs(seen.keypoints[:, :2] - expected).max() < 1e-3


def test_mask_and_box_are_those_of_the_projected_mesh() -> None:
    p = placed(-90)
    _, (seen,) = shoot(p)
    xy = project(torch.from_numpy(seen.camera), torch.from_numpy(p.vertices))[:, :2].numpy()
    x, y, w, h = seen.bbox
    assert np.abs(np.array([x, y, x + w, y + h]) - [*xy.min(0), *xy.max(0)]).max() < 1.5
    columns = np.floor(seen.keypoints[:, :2]).astype(int)
    body = [NAMES.index(n) for n in ("Withers", "Tail", "L_F_elbow", "L_B_elbow", "L_eye")]
    around = [seen.mask[y - 1 : y + 2, x - 1 : x + 2].any() for x, y in columns[body]]
    assert all(around)
    assert seen.share == pytest.approx(1)


def test_a_nearer_animal_hides_a_farther_one() -> None:
    far, near = placed(-90, at=(80, 70)), placed(-90, at=(95, 72))
    _, (a, b) = shoot(far, near)
    assert not (a.mask & b.mask).any()
    assert b.share == pytest.approx(1)
    assert a.share < 0.7
    hidden = (a.keypoints[:, 2] == 1).sum()
    _, (alone,) = shoot(far)
    assert hidden > (alone.keypoints[:, 2] == 1).sum()


def test_an_occluder_hides_and_the_border_cuts() -> None:
    wall = np.zeros((140, 160), np.float32)
    wall[:, 80:] = 1
    front = Layer(np.zeros((140, 160, 3), np.float32), wall)
    _, (seen,) = shoot(placed(-90), fronts=[[front]])
    assert not seen.mask[:, 80:].any()
    assert seen.mask.any()
    assert (seen.keypoints[seen.keypoints[:, 0] >= 80, 2] == 1).all()
    _, (cut,) = shoot(placed(-90, at=(20, 70)))
    outside = cut.keypoints[:, 0] < 0
    assert outside.any()
    assert (cut.keypoints[outside, 2] == 0).all()
    assert (cut.keypoints[~outside, 2] > 0).all()
    assert 0.2 < cut.share < 0.9


def test_an_animal_out_of_the_photo_is_not_seen() -> None:
    image, (seen,) = shoot(placed(-90, at=(900, 70)))
    assert not seen.mask.any()
    assert seen.bbox.tolist() == [0, 0, 0, 0]
    assert seen.share == 0
    assert np.isfinite(image).all()


@pytest.mark.parametrize("kind", SCENES)
@pytest.mark.parametrize("horizon", [-40.0, 50.0, 90.0])
def test_backdrops_are_pictures(kind: str, horizon: float) -> None:
    image = paint(np.random.default_rng(1), kind, 90, 120, horizon)
    assert image.shape == (90, 120, 3)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.01


def test_a_photo_repeats_from_its_seed() -> None:
    first, second = (take(animal(), WEB, np.random.default_rng([4, 2]), 160) for _ in range(2))
    assert first.data == second.data
    assert all(np.array_equal(a.keypoints, b.keypoints) for a, b in zip(first.animals, second.animals, strict=True))
    assert max(first.image.shape) == 160
    assert first.data[:2] == b"\xff\xd8"


def test_labelled_photos_are_fit_for_labels() -> None:
    for seed in range(5):
        photo = take_labelled(animal(), np.random.default_rng(seed), 160)
        targets = [s for s in photo.animals if s.target]
        assert targets
        assert all(s.share > 0.5 and (s.keypoints[:, 2] > 0).sum() >= 10 for s in targets)


def test_labelled_photos_as_varied_as_the_webs_are_still_fit() -> None:
    for seed in range(5):
        rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
        photo = take_labelled(animal(), rng, 160, as_web=1.0)
        assert all(s.share > 0.5 and (s.keypoints[:, 2] > 0).sum() >= 10 for s in photo.animals if s.target)
        again.random()  # the draw that says which it is
        assert any(take(animal(), WEB, again, 160).data == photo.data for _ in range(40))


def test_a_backdrop_is_any_part_of_a_photo_either_way_round(tmp_path: Path) -> None:
    ramp = np.empty((90, 160, 3), np.uint8)
    ramp[:] = (200, 40, 10)  # RGB
    ramp[..., 1] = np.linspace(20, 220, 160).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), ramp[..., ::-1])
    (tmp_path / "notes.txt").write_text("no photo")
    lows, ways = set(), set()
    for seed in range(12):
        image = cut(np.random.default_rng(seed), str(tmp_path), 60, 80)
        assert image.shape == (60, 80, 3)
        assert image.dtype == np.float32
        np.testing.assert_allclose(image[..., 0], 200 / 255, atol=1e-6)
        np.testing.assert_allclose(image[..., 2], 10 / 255, atol=1e-6)
        lows.add(round(float(image[..., 1].min()), 2))
        ways.add(bool(image[0, 0, 1] < image[0, -1, 1]))
    assert len(lows) > 4
    assert ways == {True, False}


def test_a_photo_may_be_taken_before_another(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), np.full((100, 100, 3), (0, 0, 250), np.uint8))  # BGR: all red
    photo = take(animal(), LABELLED, np.random.default_rng(1), 160, "nothing", str(tmp_path))
    assert (photo.image[..., 0].astype(int) > photo.image[..., 1].astype(int) + 60).mean() > 0.99
    assert take(animal(), LABELLED, np.random.default_rng(1), 160, backgrounds=str(tmp_path)).animals


def test_a_background_that_is_no_photo_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"sandbox.backgrounds=.*broken.jpg"):
        cut(np.random.default_rng(0), str(tmp_path), 60, 80)


def test_subjects_are_what_was_asked_for() -> None:
    strangers = take(animal(), WEB, np.random.default_rng(1), 120, "strangers")
    assert strangers.animals
    assert not any(s.target for s in strangers.animals)
    assert take(animal(), LABELLED, np.random.default_rng(1), 120, "nothing").animals == ()
