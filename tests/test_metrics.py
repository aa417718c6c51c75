import math

import numpy as np
import pytest
import torch

from models.metrics import auc_06_10, camera_error_deg, miou, pck


def _case():
    """Two instances, three keypoints: distances 5, 10, 20 of size 100 and 6, (hidden), 0 of size 100."""
    target = np.array([[[0, 0], [0, 0], [10, 10]], [[50, 50], [0, 0], [7, 7]]], np.float32)
    pred = np.array([[[3, 4], [10, 0], [10, 30]], [[56, 50], [999, 0], [7, 7]]], np.float32)
    return pred, target, np.array([[1, 2, 1], [1, 0, 1]]), np.array([100.0, 100.0])


def test_pck_by_hand_is_strict_and_pooled():
    pred, target, visible, size = _case()
    # Shares of size: .05 .10 .20 .06 .00. Strict: .10 is not below .10, .06 is not below .06.
    got = pck(pred, target, visible, size, [0.05, 0.06, 0.07, 0.1, 0.11, 0.21])
    np.testing.assert_allclose(got, [20, 40, 60, 60, 80, 100])
    assert got.dtype == np.float64


def test_auc_by_hand():
    pred, target, visible, size = _case()
    assert auc_06_10(pred, target, visible, size) == pytest.approx((40 + 60 + 60 + 60 + 60) / 5)


def test_size_scales_and_hidden_points_may_be_anything():
    pred, target, visible, size = _case()
    target[1, 1] = np.nan
    a = pck(pred, target, visible, size, [0.07])
    np.testing.assert_allclose(pck(pred * 3, target * 3, visible, size * 3, [0.07]), a)
    np.testing.assert_allclose(pck(torch.tensor(pred), torch.tensor(target), visible, size, [0.07]), a)
    size[1] = 10  # the second instance's 6 pixels are now .6 of its size
    np.testing.assert_allclose(pck(pred, target, visible, size, [0.07]), [40])


def test_pck_of_nothing_and_of_nonsense():
    pred, target, visible, size = _case()
    assert np.isnan(pck(pred, target, visible * 0, size, [0.1, 0.2])).all()
    assert math.isnan(auc_06_10(np.zeros((0, 3, 2)), np.zeros((0, 3, 2)), np.zeros((0, 3)), np.zeros(0)))
    pred[0, 0] = np.nan
    np.testing.assert_allclose(pck(pred, target, visible, size, [1.0]), [80])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"pred": np.zeros((2, 3, 3))}, "pred"),
        ({"target": np.zeros((2, 4, 2))}, "target"),
        ({"visible": np.zeros((2, 3, 1))}, "visible"),
        ({"size": np.zeros(3)}, "size"),
        ({"size": np.array([100.0, 0.0])}, r"size\[1\]"),
        ({"thresholds": 0.1}, "thresholds"),
    ],
)
def test_pck_names_what_does_not_fit(change, name):
    pred, target, visible, size = _case()
    given = {"pred": pred, "target": target, "visible": visible, "size": size, "thresholds": [0.1]} | change
    with pytest.raises(ValueError, match=name):
        pck(**given)


def _about(axis, degrees):
    half = math.radians(degrees) / 2
    return [math.cos(half), *(math.sin(half) * np.asarray(axis, float))]


def test_camera_error_by_hand():
    true = np.array([_about([1, 0, 0], 0), _about([0, 1, 0], 30), _about([0, 0, 1], 90)])
    pred = np.array([_about([1, 0, 0], 90), _about([0, 1, 0], -30), _about([1, 0, 0], 5)])
    assert camera_error_deg(pred, true, [1, 1, 0]) == pytest.approx(75)
    assert camera_error_deg(-2 * pred, true, [1, 0, 0]) == pytest.approx(90)
    assert camera_error_deg([_about([0, 0, 1], 180)], [[1, 0, 0, 0]], [True]) == pytest.approx(180)


def test_camera_error_has_no_floor_and_no_blind_spot():
    q = np.random.default_rng(0).normal(size=(200, 4))
    assert camera_error_deg(q, q, np.ones(200)) == 0.0
    assert camera_error_deg(-q.astype(np.float32), q.astype(np.float32), np.ones(200)) == 0.0
    assert camera_error_deg([_about([0, 1, 0], 1e-5)], [[1, 0, 0, 0]], [1]) == pytest.approx(1e-5)


def test_camera_error_equals_the_trace_formula():
    from models.camera import quat_to_matrix

    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, 4, generator=g, dtype=torch.float64) for _ in range(2))
    relative = quat_to_matrix(a).transpose(-1, -2) @ quat_to_matrix(b)
    cosine = (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    expected = torch.rad2deg(torch.arccos(cosine)).mean()
    assert camera_error_deg(a, b, torch.ones(50)) == pytest.approx(float(expected), abs=1e-6)


def test_camera_error_of_nothing_and_of_nonsense():
    one = [[1.0, 0, 0, 0]]
    assert math.isnan(camera_error_deg(one, one, [0]))
    assert math.isnan(camera_error_deg([[0.0, 0, 0, 0]], one, [1]))
    with pytest.raises(ValueError, match="q_true"):
        camera_error_deg(one, one * 2, [1])
    with pytest.raises(ValueError, match="q_pred"):
        camera_error_deg([1.0, 0, 0, 0], one, [1])


def test_miou_by_hand():
    pred = np.zeros((3, 2, 4), bool)
    true = np.zeros((3, 2, 4), bool)
    pred[0, 0, :] = True  # 4 against 2, both inside: 2 / 4
    true[0, 0, :2] = True
    true[1, 1, 1] = True  # missed: 0; the third is empty in both: 1
    assert miou(pred, true) == pytest.approx((0.5 + 0 + 1) / 3)
    assert miou(pred.astype(np.uint8) * 255, torch.tensor(true)) == miou(pred, true)
    assert math.isnan(miou(pred[:0], true[:0]))
    with pytest.raises(ValueError, match="true"):
        miou(pred, true[:, :1])
