"""Our vectorised torch against the oracle, written from our notes on the reference, without its code: all to 1e-5."""

from __future__ import annotations

import math

import cv2
import numpy as np
import oracle
import pytest
import torch

from models import mask_losses as ours
from models.acsm import ACSM
from models.animals3d_heads import Animals3dHeads, euler_to_quat
from models.articulation import part_transforms, skin
from models.camera import mirror_camera, project, quat_multiply
from models.crops import MEAN, SEEN, STD, STORED, affine, apply_affine, invert_affine, sample, to_frame, window
from models.keypoint_transfer import SurfaceMaps, transfer
from models.losses import keypoint_loss
from models.metrics import auc_06_10, camera_error_deg, miou, pck
from models.raster import rasterize
from models.sphere import from_uv, sphere_map, surface_points, to_uv
from sandbox.animal import animal

# Our template's axes (Y up) -> the reference's (Z up): docs/method.md, "3D network".
FROM_OURS = oracle.turn_about([1, 0, 0], math.pi / 2)

B, H, K, P = 2, 3, 5, 6
PARENTS = (-1, 0, 1, 2, 0, 0)
SIZE = 10


def same(got, wanted, atol=1e-5):
    np.testing.assert_allclose(np.asarray(torch.as_tensor(got).detach()), wanted, atol=atol, rtol=0)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def cameras(rng, *shape):
    q = rng.normal(size=(*shape, 4))
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    return np.concatenate([rng.uniform(0.6, 1.4, (*shape, 1)), rng.normal(0, 0.2, (*shape, 2)), q], -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_camera(rng, dtype):
    camera, points = cameras(rng, B, H), rng.normal(size=(7, 3)) * 0.5
    got = project(torch.tensor(camera, dtype=dtype), torch.tensor(points, dtype=dtype))
    for b in range(B):
        for h in range(H):
            # We leave out the renderer's offset of 5.
            same(got[b, h], oracle.project(camera[b, h], points) - [0, 0, 5])
    same(mirror_camera(torch.tensor(camera)), oracle.reflect(camera))


@pytest.mark.parametrize("root_first", [False, True])
def test_articulation(rng, root_first):
    vertices, pivots, axes = rng.normal(size=(9, 3)), rng.normal(size=(P, 3)), rng.normal(size=(P, 3))
    weights = rng.random((9, P))
    weights /= weights.sum(1, keepdims=True)
    angles = rng.uniform(-2, 2, (B, H, P))
    tensors = [torch.tensor(x) for x in (axes, angles, pivots)]
    got = skin(torch.tensor(vertices), torch.tensor(weights), part_transforms(*tensors, PARENTS, root_first))
    for b in range(B):
        for h in range(H):
            same(got[b, h], oracle.articulate(vertices, weights, pivots, PARENTS, axes, angles[b, h], root_first))


def test_the_reference_order_is_another_one():
    """By hand: a head vertex under 0.3 rad about y at the root and 0.4 rad about x at the neck.

    The order is that of animals3d geom_utils.py:259-307.
    """
    pivots, parents = torch.tensor([[0.0, 0, 0], [0, 0.1, 0.35], [0, 0.35, 0.55]]), (-1, 0, 1)
    axes, angles = torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 0, 0]]), torch.tensor([0.3, 0.4, 0.0])
    vertex, weight = torch.tensor([[0.0, 0.35, 0.85]]), torch.tensor([[0.0, 0.0, 1.0]])
    right, wrong = (skin(vertex, weight, part_transforms(axes, angles, pivots, parents, r))[0] for r in (False, True))
    same(right, [0.268298, 0.135556, 0.867336])
    same(wrong, [0.251192, 0.150340, 0.872918])
    # Nothing differs while the root is still.
    still = torch.tensor([0.0, 0.4, 0.2])
    same(part_transforms(axes, still, pivots, parents, True), part_transforms(axes, still, pivots, parents))


def test_the_multiplex_of_animals3d(rng):
    torch.manual_seed(0)
    net = ACSM(animal(), H, width=8, image_size=64, features=16, compat="animals3d")
    assert net.heads is not None
    features = rng.normal(size=(B, H, 16))
    shares = torch.tensor(np.tanh(features[..., :3]))
    got = quat_multiply(euler_to_quat(shares), net.heads.starts.double().expand(B, H, 4))
    for b in range(B):
        for h in range(H):
            same(got[b, h], oracle.multiply(oracle.multiplex(features[b, h], h), FROM_OURS))
    before = net.eval()(torch.ones(1, 3, 64, 64))
    with torch.no_grad():
        net.heads.rotation.weight.add_(1.0)  # the layer that nobody asks
    assert torch.equal(net(torch.ones(1, 3, 64, 64)).camera, before.camera)
    same(before.prob.sum(1), [1.0])


def test_keypoint_loss(rng):
    predicted, target = rng.normal(size=(B, H, K, 2)), rng.normal(size=(B, K, 2))
    confidence, prob = rng.random((B, K)) * (rng.random((B, K)) > 0.3), rng.dirichlet(np.ones(H), B)
    got = keypoint_loss(*(torch.tensor(x) for x in (predicted, target, confidence, prob)))
    same(got, oracle.keypoint_loss(predicted, target, confidence, prob))


def test_sphere_and_surface(rng):
    points = rng.normal(size=(40, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    same(to_uv(torch.tensor(points)), [oracle.uv_of(p) for p in points])
    same(from_uv(to_uv(torch.tensor(points))), [oracle.direction_of(oracle.uv_of(p)) for p in points])
    sphere = sphere_map(animal())
    tensors = [torch.from_numpy(x.copy()) for x in sphere]
    corners, weights = surface_points(torch.tensor(points), tensors[0].double(), *tensors[1:])
    rows, columns = sphere.table.shape
    for i, p in enumerate(points):
        u, v = oracle.uv_of(p)
        face = sphere.faces[sphere.table[int(v * rows), int(u * columns)]]
        assert corners[i].tolist() == face.tolist()
        same(weights[i], oracle.barycentric(p, *sphere.directions[face].astype(float)))


def test_mask_losses(rng):
    mask = (rng.random((B, SIZE, SIZE)) > 0.4).astype(float)
    projected = rng.uniform(-0.9, 0.9, (B, H, SIZE, SIZE, 3))
    depth = rng.uniform(-0.5, 0.5, (B, H, SIZE, SIZE))
    depth[rng.random(depth.shape) > 0.8] = np.inf
    far = np.where(np.isfinite(depth), depth, 100.0)
    vertices, contour = rng.normal(size=(B, H, 20, 2)), rng.normal(size=(B, 30, 2))
    drawn, logits = rng.random((B, H, SIZE, SIZE)), rng.normal(size=(B, SIZE, SIZE))
    distance = np.stack([oracle.distance_to(m) for m in mask])
    camera, prob = cameras(rng, B, H), rng.dirichlet(np.ones(H), B)
    t = torch.tensor
    got = {
        "cycle": ours.cycle_loss(t(projected[..., :2]), t(mask)),
        "visibility": ours.visibility_loss(t(projected), t(depth), t(mask)),
        "coverage": ours.coverage_loss(t(vertices), t(contour)),
        "consistency": ours.consistency_loss(t(drawn), t(distance)),
    }
    for b in range(B):
        for h in range(H):
            same(got["cycle"][b, h], oracle.cycle(projected[b, h, ..., :2], mask[b]))
            same(got["visibility"][b, h], oracle.visibility(projected[b, h], far[b, h], mask[b]))
            same(got["coverage"][b, h], oracle.coverage(vertices[b, h], contour[b]))
            same(got["consistency"][b, h], oracle.consistency(drawn[b, h], distance[b]))
        same(ours.segmentation_loss(t(logits), t(mask))[b], oracle.cross_entropy(logits[b], mask[b]))
        same(ours.entropy_loss(t(prob))[b], oracle.entropy(prob[b]))
        same(ours.rotation_loss(t(camera[..., 3:]))[b], oracle.rotation_diversity(camera[b, :, 3:]))
    assert ours.rotation_loss(t(camera[:, :1, 3:])).tolist() == [0.0] * B


def test_metrics(rng):
    target = rng.uniform(0, 100, (9, K, 2))
    predicted, visible = target + rng.normal(0, 6, target.shape), (rng.random((9, K)) > 0.3).astype(float)
    size = rng.uniform(50, 120, 9)
    limits = (0.06, 0.07, 0.08, 0.09, 0.10)
    wanted = [oracle.pck(predicted, target, visible, size, t) for t in limits]
    same(pck(predicted, target, visible, size, limits), wanted)
    assert auc_06_10(predicted, target, visible, size) == pytest.approx(np.mean(wanted), abs=1e-5)
    q, g, valid = rng.normal(size=(9, 4)), rng.normal(size=(9, 4)), rng.random(9) > 0.3
    assert camera_error_deg(q, g, valid) == pytest.approx(oracle.camera_error(q, g, valid), abs=1e-5)
    a, b = rng.random((2, 4, 8, 8)) > 0.5
    assert miou(a, b) == pytest.approx(oracle.miou(a, b), abs=1e-5)


def test_keypoint_transfer(rng):
    points, mask = rng.normal(size=(3, SIZE, SIZE, 3)), rng.random((3, SIZE, SIZE)) > 0.5
    keypoints = rng.uniform(-1, 1, (K, 2))
    maps = SurfaceMaps(torch.tensor(points), torch.tensor(mask))
    got = transfer(torch.tensor(keypoints).float(), maps, 1, torch.tensor([2, 0]))
    for row, target in enumerate((2, 0)):
        for k in range(K):
            wanted = oracle.transfer(keypoints, k, points[1], mask[1], points[target], mask[target])
            same(got[row, k], wanted)


def test_crops(rng):
    """Our windows are the reference's squares before it rounds them: 5 % of the longer side, all around."""
    for box in ([10.0, 20, 60, 40], [3.5, 7.25, 20, 90]):
        x0, y0, side = oracle.square(box, 0.05)
        same(window(box, SEEN), [x0, y0, side])
        points = rng.uniform(0, 100, (K, 2))
        same(to_frame(points[None], window(np.array([box]), SEEN))[0], oracle.normalise(points, (x0, y0, side)))
    grey = rng.integers(0, 256, (30, 30)).astype(np.uint8)
    crops = torch.from_numpy(np.repeat(grey[None, ..., None], 3, -1))
    # Outside the stored crop is the mean colour, which is 0 after normalisation.
    zoom, shift = 1.3, np.array([0.2, -0.1])
    matrix = affine(1, zoom, 0.0, torch.tensor(shift, dtype=torch.float32))
    seen = sample(crops, matrix, 12)[0, 0]
    side = 30 * SEEN / STORED * zoom
    centre = 15 + shift * 15 * SEEN / STORED
    wanted = oracle.look(grey - 255 * MEAN[0], (*(centre - side / 2), side), 12) / (255 * STD[0])
    same(seen, wanted, atol=2e-5)
    points = torch.tensor(rng.uniform(-1, 1, (1, K, 2)), dtype=torch.float32)
    pixels = (apply_affine(matrix, points)[0].double().numpy() + 1) * 15
    same(oracle.normalise(pixels, (*(centre - side / 2), side)), points[0], atol=1e-5)
    same(apply_affine(invert_affine(matrix), apply_affine(matrix, points)), points)


def test_distances_and_depths_are_what_the_losses_take_them_for(rng):
    """cv2's distance transform and our rasteriser against the plain definitions."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[3:6, 4:9] = 1
    same(cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), oracle.distance_to(mask))
    triangle = torch.tensor([[[-0.8, -0.7, 0.1], [0.9, -0.3, 0.5], [0.0, 0.8, -0.4]]], dtype=torch.float64)
    drawn = rasterize(triangle, torch.tensor([[0, 1, 2]]), SIZE)
    a, b, c = triangle[0].numpy()
    flat = [np.append(p[:2], 0.0) for p in (a, b, c)]
    inside = 0
    for row, column in np.argwhere(drawn.mask[0].numpy()):
        share = oracle.barycentric(np.append(oracle.grid(SIZE, SIZE)[row, column], 0.0), *flat)
        same(drawn.depth[0, row, column], share @ [a[2], b[2], c[2]])
        inside += 1
    assert inside > 20
    assert math.isinf(float(drawn.depth[0, 0, 0]))


@pytest.mark.parametrize("hypotheses", [1, 3])
def test_the_heads_of_animals3d(hypotheses):
    """Grouped layers against animals3d's heads (camera.py) written out: one camera, part and layer at a time."""
    torch.manual_seed(1)
    net = Animals3dHeads(6, hypotheses, P).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * 0.7)
    features = torch.randn(B, 6, dtype=torch.float64)
    camera, prob, angles = net(features)
    w = {name: value.detach().numpy() for name, value in net.named_parameters()}

    def linear(name, group, x):
        return w[f"{name}.weight"][group] @ x + w[f"{name}.bias"][group]

    def stack(name, group, x):
        for layer in (0, 2):
            x = linear(f"{name}.{layer}", group, x)
            x = np.where(x > 0, x, 0.1 * x)
        return x

    for b in range(B):
        f = stack("fc", 0, features[b].numpy())
        logits = []
        for h in range(hypotheses):
            c = stack("camera_fc", h, f)
            q = linear("rotation", h, c)
            q = q / np.linalg.norm(q) if hypotheses == 1 else oracle.multiply(oracle.multiplex(c, h), FROM_OURS)
            wanted = [1 + 0.05 * linear("scale", h, c)[0], *linear("shift", h, c), *q]
            same(camera[b, h], wanted)
            logits.append(linear("prob", h, c)[0])
            for p in range(P):
                v = linear("angle", h * P + p, stack("part_fc", h * P + p, stack("parts_fc", h, f)))
                same(angles[b, h, p], math.atan2(v[1], v[0]))
        same(prob[b], np.exp(logits) / np.exp(logits).sum())
