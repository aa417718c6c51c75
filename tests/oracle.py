"""The method once more: plain float64 NumPy with loops, sharing no code with models.

Written from our notes on the reference, without its code; the sources below are files of animals3d.
One image and one hypothesis at a time unless the formula needs more. Slow on purpose.
"""

from __future__ import annotations

import math

import numpy as np

# -- camera (geom_utils.py:223-236; camera.py:250-310) ---------------------------------------------------------------


def multiply(a, b):
    """Hamilton product of two wxyz quaternions."""
    aw, av, bw, bv = a[0], np.asarray(a[1:]), b[0], np.asarray(b[1:])
    return np.array([aw * bw - av @ bv, *(aw * bv + bw * av + np.cross(av, bv))])


def rotate(q, point):
    """q (0, X) q*."""
    conjugate = np.array([q[0], -q[1], -q[2], -q[3]])
    return multiply(multiply(q, np.array([0.0, *point])), conjugate)[1:]


def turn_about(axis, angle):
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    return np.array([math.cos(angle / 2), *(math.sin(angle / 2) * axis)])


def project(camera, points):
    """X' = s R(q) X; xy += t; z += 5."""
    s, tx, ty, *q = camera
    q = np.array(q) / np.linalg.norm(q)
    return np.array([s * rotate(q, p) + np.array([tx, ty, 5.0]) for p in points])


def reflect(camera):
    return np.asarray(camera) * [1, -1, 1, 1, 1, -1, -1]


def multiplex(features, number):
    """Camera `number` of the released multiplex: tanh of the first three features, az 30, el 60, cyclo 60 degrees."""
    az, el, cyclo = np.radians([30, 60, 60]) * np.tanh(features[:3])
    q = multiply(turn_about([0, 0, 1], cyclo), multiply(turn_about([1, 0, 0], el), turn_about([0, 1, 0], az)))
    start = turn_about([1, 0, 0], math.pi / 2)
    for _ in range(number):
        start = multiply(turn_about([0, 1, 0], math.pi / 4), start)
    return multiply(q, start)


# -- articulation (geom_utils.py:259-307) ----------------------------------------------------------------------------


def articulate(vertices, weights, pivots, parents, axes, angles, root_first=False):
    """Copies of the template, each turned about its own pivot and carried by its ancestors, then blended."""
    blended = np.zeros_like(vertices, dtype=float)
    for part in range(len(parents)):
        ancestors = []
        above = parents[part]
        while above >= 0:
            ancestors.append(above)
            above = parents[above]
        chain = [part, *(reversed(ancestors) if root_first else ancestors)]
        copy = np.array(vertices, float)
        for p in chain:
            q = turn_about(axes[p], angles[p])
            copy = np.array([rotate(q, v - pivots[p]) + pivots[p] for v in copy])
        blended += weights[:, part : part + 1] * copy
    return blended


# -- keypoint loss (network.py:369-379, 510-517) ---------------------------------------------------------------------


def keypoint_loss(predicted, target, confidence, prob):
    """predicted [B][H][K][2]; mean over images of the expectation over hypotheses."""
    total = 0.0
    for b in range(len(predicted)):
        for h in range(len(predicted[b])):
            errors = [
                confidence[b][k] * ((predicted[b][h][k] - target[b][k]) ** 2).sum() for k in range(len(target[b]))
            ]
            total += prob[b][h] * np.mean(errors) / (np.mean(confidence[b]) + 1e-4)
    return total / len(predicted)


# -- sphere and surface (geom_utils.py:124-162; uv_to_3d.py:45-126) --------------------------------------------------


def uv_of(point):
    r = np.linalg.norm(point)
    return np.array([0.5 + math.atan2(point[1], point[0]) / (2 * math.pi), 0.5 + math.asin(point[2] / r) / math.pi])


def direction_of(uv):
    phi, theta = 2 * math.pi * (uv[0] - 0.5), math.pi * (uv[1] - 0.5)
    return np.array([math.cos(theta) * math.cos(phi), math.cos(theta) * math.sin(phi), math.sin(theta)])


def barycentric(point, a, b, c):
    """Drop the point onto the plane of the face; shares of the three areas it makes, normalised by their sum."""
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal)
    p = point - ((point - a) @ normal) * normal

    def area(x, y):
        return np.linalg.norm(np.cross(x - p, y - p)) / 2

    areas = np.array([area(b, c), area(c, a), area(a, b)])
    return areas / areas.sum()


# -- mask losses (network.py:382-482, 525-534), one image and one hypothesis -----------------------------------------


def grid(h, w):
    """Pixel centres."""
    return np.array([[[(x + 0.5) / w * 2 - 1, (y + 0.5) / h * 2 - 1] for x in range(w)] for y in range(h)])


def bilinear(image, x, y, outside=0.0):
    """An image [h][w] at a place of the frame [-1, 1], between pixel centres."""
    h, w = image.shape
    px, py = (x + 1) / 2 * w - 0.5, (y + 1) / 2 * h - 0.5
    left, top = math.floor(px), math.floor(py)
    value = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            inside = 0 <= row < h and 0 <= column < w
            share = (1 - abs(px - column)) * (1 - abs(py - row))
            value += share * (image[row, column] if inside else outside)
    return value


def cycle(projected, mask):
    h, w = mask.shape
    error = [
        ((mask[y, x] * projected[y, x] - mask[y, x] * grid(h, w)[y, x]) ** 2).sum() for y in range(h) for x in range(w)
    ]
    return np.mean(error) / (mask.mean() + 1e-10)


def visibility(projected, depth, mask):
    h, w = mask.shape
    total = 0.0
    for y in range(h):
        for x in range(w):
            drawn = bilinear(depth, *projected[y, x, :2])
            total += max(projected[y, x, 2] - drawn, 0.0) ** 2 * mask[y, x]
    return total / (h * w)


def coverage(vertices, contour):
    squares = []
    for point in contour:
        squares += sorted(((vertices - point) ** 2).sum(1))[:4]
    return np.mean(squares)


def consistency(drawn, distance):
    return np.mean(drawn * distance)


def distance_to(mask):
    """Of every pixel to the nearest pixel of the mask, in pixels."""
    inside = np.argwhere(mask > 0)
    return np.array(
        [[np.sqrt(((inside - [y, x]) ** 2).sum(1).min()) for x in range(mask.shape[1])] for y in range(mask.shape[0])]
    )


def cross_entropy(logits, mask):
    p = 1 / (1 + np.exp(-logits))
    return -np.mean(mask * np.log(p) + (1 - mask) * np.log(1 - p))


def entropy(prob):
    return sum(p * math.log(p) for p in prob)


def rotation_diversity(quaternions):
    """Mean over hypotheses of pi less the angle to the nearest other one."""
    total = 0.0
    for i, q in enumerate(quaternions):
        angles = []
        for j, other in enumerate(quaternions):
            if i != j:
                w = multiply(q, other * [1, -1, -1, -1])[0]
                theta = 2 * math.acos(max(-1 + 1e-6, min(1 - 1e-6, w)))
                angles.append(min(theta, 2 * math.pi - theta))
        total += math.pi - min(angles)
    return total / len(quaternions)


# -- metrics (acsm/scripts/evaluate.py; transfer: kp_transfer.py of nileshkulkarni/acsm) -----------------------------


def pck(predicted, target, visible, size, threshold):
    hits = count = 0
    for i in range(len(predicted)):
        for k in range(len(predicted[i])):
            if visible[i][k] > 0:
                count += 1
                hits += np.linalg.norm(predicted[i][k] - target[i][k]) / size[i] < threshold
    return 100 * hits / count


def camera_error(predicted, target, valid):
    angles = []
    for q, g, v in zip(predicted, target, valid, strict=True):
        if v:
            q, g = q / np.linalg.norm(q), g / np.linalg.norm(g)
            w = max(-1 + 1e-6, min(1 - 1e-6, multiply(q, g * [1, -1, -1, -1])[0]))
            theta = 2 * math.acos(w)
            angles.append(math.degrees(min(theta, 2 * math.pi - theta)))
    return np.mean(angles)


def miou(predicted, target):
    return np.mean(
        [np.logical_and(p, t).sum() / np.logical_or(p, t).sum() for p, t in zip(predicted, target, strict=True)]
    )


def transfer(source, joint, source_map, source_mask, target_map, target_mask):
    """Where a joint of one image lies in another: the target's pixel whose surface point is nearest to the joint's.

    The joint's own surface point is that of the mask's pixel nearest to it. Maps are [h][w][3]; places are in the
    frame [-1, 1].
    """
    h, w = source_mask.shape
    middle = grid(h, w)
    pixels = [(y, x) for y in range(h) for x in range(w) if source_mask[y, x]]
    y, x = min(pixels, key=lambda p: ((middle[p] - source[joint]) ** 2).sum())
    point = source_map[y, x]
    pixels = [(y, x) for y in range(h) for x in range(w) if target_mask[y, x]]
    return middle[min(pixels, key=lambda p: ((target_map[p] - point) ** 2).sum())]


# -- crops (acsm/acsm/utils/image_utils.py:31-71, acsm/acsm/datasets/base.py:123-127; here in floats) ----------------


def square(box, padding):
    """Sides moved outward by a share of the box, then the short side grown to the long one: x0, y0, side."""
    x, y, w, h = box
    x0, y0, x1, y1 = x - padding * w, y - padding * h, x + w + padding * w, y + h + padding * h
    side = max(x1 - x0, y1 - y0)
    return (x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side


def normalise(points, window):
    """Crop pixels to [-1, 1]: 2 x / W - 1."""
    x0, y0, side = window
    return np.array([[2 * (x - x0) / side - 1, 2 * (y - y0) / side - 1] for x, y in points])


def look(photo, window, pixels):
    """A window of a grey photo [H][W] resampled bilinearly; outside is 0. Pixel i covers [i, i + 1)."""
    x0, y0, side = window
    height, width = photo.shape
    out = np.zeros((pixels, pixels))
    for r in range(pixels):
        for c in range(pixels):
            px, py = x0 + (c + 0.5) / pixels * side, y0 + (r + 0.5) / pixels * side
            out[r, c] = bilinear(photo, px / width * 2 - 1, py / height * 2 - 1)
    return out
