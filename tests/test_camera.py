import math

import torch

from models.camera import axis_angle_to_quat, mirror_camera, project, quat_multiply, quat_to_matrix


def _quats(n: int, seed: int = 0) -> torch.Tensor:
    q = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return q / q.norm(dim=-1, keepdim=True)


def test_matrix_is_a_rotation_whatever_norm_and_sign():
    q = _quats(50)
    r = quat_to_matrix(q)
    eye = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(r @ r.transpose(-1, -2), eye)
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(quat_to_matrix(-3.0 * q), r)
    torch.testing.assert_close(quat_to_matrix(torch.zeros(4)), torch.eye(3))


def test_product_is_composition():
    a, b = _quats(20, 1), _quats(20, 2)
    torch.testing.assert_close(quat_to_matrix(quat_multiply(a, b)), quat_to_matrix(a) @ quat_to_matrix(b))


def test_axis_angle_turns_right_handed():
    q = axis_angle_to_quat(torch.tensor([0.0, 0.0, 5.0]), torch.tensor(math.pi / 2))
    turned = quat_to_matrix(q) @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    assert axis_angle_to_quat(torch.randn(8, 3), torch.zeros(2, 5, 8)).shape == (2, 5, 8, 4)


def test_half_turn_about_x_looks_at_an_upright_face():
    camera = torch.tensor([0.5, 0.1, -0.2, 0.0, 1.0, 0.0, 0.0])
    points = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    up, nose, left = project(camera, points)
    torch.testing.assert_close(up, torch.tensor([0.1, -0.7, 0.0]))
    torch.testing.assert_close(nose, torch.tensor([0.1, -0.2, -0.5]))  # nearer to the viewer
    torch.testing.assert_close(left, torch.tensor([0.6, -0.2, 0.0]))  # its left is on the viewer's right


def test_projection_broadcasts_over_batch_and_hypotheses():
    camera = torch.randn(4, 3, 7)
    points = torch.randn(4, 3, 10, 3)
    out = project(camera, points)
    assert out.shape == (4, 3, 10, 3)
    torch.testing.assert_close(out[2, 1], project(camera[2, 1], points[2, 1]))
    torch.testing.assert_close(project(camera, points[0, 0])[1, 2], project(camera[1, 2], points[0, 0]))


def test_mirror_camera_sees_the_mirror_image():
    q = _quats(30, 3)
    camera = torch.cat((torch.rand(30, 3, dtype=torch.float64) + 0.5, q), -1)
    points = torch.randn(30, 12, 3, dtype=torch.float64)
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(project(mirror_camera(camera), points * flip), project(camera, points) * flip)
    d = torch.diag(flip)
    torch.testing.assert_close(quat_to_matrix(mirror_camera(camera)[:, 3:]), d @ quat_to_matrix(q) @ d)
    torch.testing.assert_close(mirror_camera(mirror_camera(camera)), camera)
