"""The 2D networks and their losses, against names, counts and formulas written out again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.heatmap import Detector, PoseNet, box_iou, decode, decode_boxes, gaussian_targets
from models.losses import detector_loss, giou, heatmap_loss, keypoint_loss
from models.resnet import ResNet
from trainers.steps import draw_boxes

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def torchvision_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's resnet without `fc`, by its naming rule."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, inputs, kernel, kernel)

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{p}": () if p == "num_batches_tracked" else (channels,) for p in BN})

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(BLOCKS[depth], 1):
        planes = 64 * 2 ** (stage - 1)
        for i in range(count):
            name = f"layer{stage}.{i}"
            out = planes if depth < 50 else 4 * planes
            sizes = [(planes, inputs, 3), (planes, planes, 3)]
            if depth >= 50:
                sizes = [(planes, inputs, 1), (planes, planes, 3), (out, planes, 1)]
            for number, size in enumerate(sizes, 1):
                conv(f"{name}.conv{number}", *size)
                norm(f"{name}.bn{number}", size[0])
            if i == 0 and (stage > 1 or inputs != out):
                conv(f"{name}.downsample.0", out, inputs, 1)
                norm(f"{name}.downsample.1", out)
            inputs = out
    return shapes


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032)])
def test_resnet_has_torchvisions_names_shapes_and_size(depth: int, parameters: int) -> None:
    net = ResNet(depth)
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == torchvision_shapes(depth)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.channels == (512 if depth < 50 else 2048)


def test_resnet_strides_lie_where_torchvision_has_them() -> None:
    net = ResNet(50)
    # v1.5: the 3x3 convolution strides, not the first 1x1.
    assert net.layer2[0].conv1.stride == (1, 1)
    assert net.layer2[0].conv2.stride == (2, 2)
    assert net.layer1[0].conv2.stride == (1, 1)
    with pytest.raises(ValueError, match="depth=20"):
        ResNet(20)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (2, 4)])
def test_the_first_convolution_by_blocks_is_the_first_convolution(height: int, width: int) -> None:
    net = ResNet(18, width=16).double()
    photos = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    plain, blocks = net.conv1(photos), net._by_blocks(photos)
    torch.testing.assert_close(blocks, plain)
    up = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, (net.conv1.weight, photos), up) for y in (plain, blocks)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [64, 96, 160])
def test_networks_answer_at_a_quarter_of_the_resolution(size: int) -> None:
    images = torch.zeros(2, 3, size, size)
    with torch.inference_mode():
        assert PoseNet(7, width=8, channels=16).eval()(images).shape == (2, 7, size // 4, size // 4)
        assert Detector(width=8, channels=16).eval()(images).shape == (2, 5, size // 4, size // 4)
        wide = torch.zeros(1, 3, size, 2 * size)
        assert Detector(width=8, channels=16).eval()(wide).shape == (1, 5, size // 4, size // 2)


def test_published_pose_net_has_the_published_size() -> None:
    # SimpleBaselines with ResNet-18: trunk 11.18 M and head 4.20 M.
    count = sum(p.numel() for p in PoseNet(16, 18).parameters())
    head = 512 * 256 * 16 + 2 * 256 * 256 * 16 + 3 * 2 * 256 + 256 * 16 + 16
    assert count == 11_176_512 + head
    assert count / 1e6 == pytest.approx(15.38, abs=0.005)


def hand_gaussian(size: int, x: float, y: float, sigma: float) -> np.ndarray:
    """exp(-d^2 / 2 sigma^2) where pixel i of the map has its centre at i + 0.5; x, y in heatmap pixels."""
    out = np.zeros((size, size))
    for row in range(size):
        for col in range(size):
            out[row, col] = math.exp(-((col + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2) / (2 * sigma**2))
    return out


def test_gaussian_targets_follow_the_formula() -> None:
    size, sigma = 16, 1.3
    pixels = np.array([[[8.5, 4.5], [3.2, 11.9], [0.1, 15.7]]])
    frame = torch.tensor(pixels / size * 2 - 1, dtype=torch.float32)
    maps = gaussian_targets(frame, torch.tensor([[1.0, 0.4, 0.0]]), size, sigma).numpy()
    np.testing.assert_allclose(maps[0, 0], hand_gaussian(size, 8.5, 4.5, sigma), atol=1e-5)
    np.testing.assert_allclose(maps[0, 1], hand_gaussian(size, 3.2, 11.9, sigma), atol=1e-5)
    assert maps[0, 0].max() == pytest.approx(1)
    assert not maps[0, 2].any()


@pytest.mark.parametrize("sigma", [0.8, 1.0, 2.0])
def test_decode_finds_gaussians_at_any_sub_pixel_place(sigma: float) -> None:
    size = 16
    # Peaks whose cell has a neighbour on either side: 1 .. size-1 in heatmap pixels.
    places = np.random.default_rng(0).uniform(1.01, size - 1.01, (200, 2))
    maps = np.stack([hand_gaussian(size, x, y, sigma) for x, y in places])
    out = decode(torch.from_numpy(maps).float().view(40, 5, size, size)).view(-1, 3).numpy()
    found = (out[:, :2] + 1) / 2 * size
    assert np.abs(found - places).max() < 0.05
    np.testing.assert_allclose(out[:, 2], maps.reshape(len(maps), -1).max(1), atol=1e-5)


def test_decode_at_the_border_stays_within_half_a_cell() -> None:
    size = 16
    places = np.array([[0.2, 0.3], [15.9, 8.25], [7.6, 15.6], [0.5, 0.5], [0.9, 15.1]])
    maps = np.stack([hand_gaussian(size, x, y, 1.0) for x, y in places])
    out = decode(torch.from_numpy(maps).float()[None])[0].numpy()
    found = (out[:, :2] + 1) / 2 * size
    assert np.abs(found - places).max() <= 0.5
    # The axis along the border is still exact.
    assert found[1, 1] == pytest.approx(8.25, abs=0.05)
    assert found[2, 0] == pytest.approx(7.6, abs=0.05)


def test_decode_of_flat_and_of_negative_maps_is_finite_and_clipped() -> None:
    maps = torch.stack([torch.zeros(8, 12), torch.full((8, 12), -0.3), torch.full((8, 12), 7.0)])[None]
    out = decode(maps)
    assert torch.isfinite(out).all()
    assert out[0, :, 2].tolist() == [0.0, 0.0, 1.0]
    assert (out[..., :2].abs() <= 1).all()


def test_decode_of_a_wide_map_scales_each_axis_by_itself() -> None:
    maps = torch.zeros(1, 1, 4, 10)
    maps[0, 0, 1, 7] = 0.5
    x, y, confidence = decode(maps)[0, 0].tolist()
    assert (x, y) == pytest.approx(((7.5 / 10) * 2 - 1, (1.5 / 4) * 2 - 1))
    assert confidence == 0.5


def box_map(boxes: list[tuple[int, int, float, tuple[float, float, float, float]]], h: int = 12, w: int = 16):
    """A detector's output with peaks at (row, col) of a logit and distances left, top, right, bottom."""
    out = torch.full((1, 5, h, w), -8.0)
    for row, col, logit, sides in boxes:
        out[0, 0, row, col] = logit
        out[0, 1:, row, col] = torch.tensor(sides).log()
    return out


def test_decode_boxes_reads_a_hand_made_map() -> None:
    output = box_map(
        [
            (5, 4, 3.0, (10, 8, 6, 12)),
            (5, 5, 2.0, (10, 8, 6, 12)),  # a neighbour of the peak: not a peak itself
            (5, 7, 1.0, (22, 8, 2, 12)),  # IoU with the first 0.75: dropped
            (2, 13, 0.0, (8, 8, 8, 8)),
            (10, 1, -3.0, (4, 4, 4, 4)),  # below the score
        ]
    )
    ((boxes, scores),) = decode_boxes(output, score=0.3, most=8)
    # Cell (row 5, col 4) has its middle at x = 18, y = 22 input pixels.
    np.testing.assert_allclose(boxes.numpy(), [[8, 14, 16, 20], [46, 2, 16, 16]], atol=1e-4)
    np.testing.assert_allclose(scores.numpy(), [1 / (1 + math.exp(-3)), 0.5], atol=1e-6)
    ((boxes, _),) = decode_boxes(output, score=0.3, most=8, overlap=0.9)
    assert len(boxes) == 3
    ((boxes, _),) = decode_boxes(output, score=0.3, most=1)
    assert len(boxes) == 1
    ((boxes, scores),) = decode_boxes(output, score=0.99, most=8)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_decode_boxes_keeps_photos_apart() -> None:
    output = torch.cat([box_map([(1, 1, 2.0, (4, 4, 4, 4))]), box_map([]), box_map([(9, 9, 1.0, (8, 4, 8, 4))])])
    found = decode_boxes(output, 0.3, 5)
    assert [len(b) for b, _ in found] == [1, 0, 1]
    np.testing.assert_allclose(found[2][0].numpy(), [[30, 34, 16, 8]], atol=1e-4)


def test_box_iou_and_giou_on_whole_numbers() -> None:
    a = torch.tensor([[0.0, 0, 4, 4], [10, 10, 2, 2]])
    b = torch.tensor([[2.0, 0, 4, 4], [0, 0, 4, 4], [20, 20, 1, 1]])
    np.testing.assert_allclose(box_iou(a, b).numpy(), [[8 / 24, 1, 0], [0, 0, 0]], atol=1e-6)

    first = torch.tensor([[0.0, 0, 4, 4], [0, 0, 1, 1], [1, 1, 3, 3]])
    second = torch.tensor([[2.0, 0, 6, 4], [3, 0, 4, 1], [1, 1, 3, 3]])
    # hull 24, union 24; hull 4, union 2 and nothing in common; equal boxes
    np.testing.assert_allclose(giou(first, second).numpy(), [8 / 24, -0.5, 1], atol=1e-6)


def painted(boxes: torch.Tensor, cells: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    target, owner, weight = (
        torch.zeros(1, 1, cells, cells),
        torch.zeros(1, 4, cells, cells),
        torch.zeros(1, cells, cells),
    )
    draw_boxes(target[0, 0], owner[0], weight[0], boxes)
    return target, owner, weight


def perfect(target: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """The output that says exactly what the maps say."""
    cells = target.shape[-1]
    middle = torch.arange(cells) * 4.0 + 2
    x, y = middle[None, None, :], middle[None, :, None]
    sides = torch.stack([x - owner[:, 0], y - owner[:, 1], owner[:, 2] - x, owner[:, 3] - y], 1)
    centre = torch.where(target == 1, 12.0, -12.0)
    return torch.cat([centre, sides.clamp_min(1e-3).log()], 1)


def test_detector_loss_is_near_zero_for_a_perfect_answer_only() -> None:
    boxes = torch.tensor([[6.0, 8, 40, 44], [44, 48, 60, 62]])
    target, owner, weight = painted(boxes)
    right = perfect(target, owner)
    assert float(sum(detector_loss(right, target, owner, weight))) < 0.02
    shifted = right.clone()
    shifted[:, 1:] += 0.5
    assert float(sum(detector_loss(shifted, target, owner, weight))) > 0.5
    missed = right.clone()
    missed[:, 0] = -12
    assert float(sum(detector_loss(missed, target, owner, weight))) > 5
    ((found, scores),) = decode_boxes(right, 0.5, 5)
    corners = torch.cat([found[:, :2], found[:, :2] + found[:, 2:]], 1)
    order = corners[:, 0].argsort()
    np.testing.assert_allclose(corners[order].numpy(), boxes.numpy(), atol=0.1)
    assert (scores > 0.99).all()


def test_drawn_boxes_have_one_peak_and_unit_weight_each() -> None:
    boxes = torch.tensor([[4.0, 4, 60, 60], [20, 24, 36, 36], [0, 0, 3, 3]])
    target, owner, weight = painted(boxes)
    assert int((target == 1).sum()) == 2  # the third is smaller than a cell
    small = (owner[0] == boxes[1][:, None, None]).all(0)
    assert float(weight[0][small].sum()) == pytest.approx(1, abs=1e-5)
    # The large box keeps what the small one on top of it left over.
    large = (owner[0] == boxes[0][:, None, None]).all(0)
    assert 0.2 < float(weight[0][large].sum()) < 1


def test_detector_loss_without_any_box_is_finite() -> None:
    target, owner, weight = painted(torch.zeros(0, 4))
    output = torch.zeros(1, 5, 16, 16, requires_grad=True)
    loss = sum(detector_loss(output, target, owner, weight))
    loss.backward()
    assert torch.isfinite(loss)
    # p = 1/2 everywhere: sum of p^2 * -log(1 - p) over 256 cells.
    assert float(loss.detach()) == pytest.approx(256 * 0.25 * math.log(2), rel=1e-5)


def test_heatmap_loss_is_method_4_2() -> None:
    rng = np.random.default_rng(1)
    predicted, target = rng.normal(size=(2, 3, 3, 4, 5)).astype(np.float32)
    weight = np.array([[1, 0, 0.5], [0, 1, 1], [0, 0, 1]], np.float32)
    total, visible = 0.0, 0
    for b in range(3):
        for j in range(3):
            total += 0.5 * weight[b, j] * float(((predicted[b, j] - target[b, j]) ** 2).sum())
            visible += weight[b, j] > 0
    loss = heatmap_loss(*(torch.from_numpy(x) for x in (predicted, target, weight)))
    assert float(loss) == pytest.approx(total / visible, rel=1e-5)
    nothing = heatmap_loss(torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(1, 2))
    assert float(nothing) == 0


def test_keypoint_loss_is_method_6_5() -> None:
    rng = np.random.default_rng(2)
    b, h, k = 3, 2, 4
    predicted = rng.normal(size=(b, h, k, 2)).astype(np.float32)
    target = rng.normal(size=(b, k, 2)).astype(np.float32)
    confidence = rng.uniform(size=(b, k)).astype(np.float32)
    confidence[2] = 0
    prob = rng.dirichlet((1, 1), b).astype(np.float32)
    images = []
    for i in range(b):
        total = 0.0
        for c in range(h):
            squared = [((predicted[i, c, j] - target[i, j]) ** 2).sum() for j in range(k)]
            weighted = np.mean([confidence[i, j] * squared[j] for j in range(k)])
            total += prob[i, c] * weighted / (confidence[i].mean() + 1e-4)
        images.append(total)
    loss = keypoint_loss(*(torch.from_numpy(x) for x in (predicted, target, confidence, prob)))
    assert float(loss) == pytest.approx(np.mean(images), rel=1e-5)
    # Per-image normalisation: halving an image's confidences leaves its loss as it was (but for the 1e-4).
    halved = keypoint_loss(*(torch.from_numpy(x) for x in (predicted, target, confidence / 2, prob)))
    assert float(halved) == pytest.approx(float(loss), rel=1e-3)
