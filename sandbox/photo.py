"""The photo renderer: posed meshes over a backdrop, with shadows, occlusion and exact truth.

Everything is in photo pixels (x right, y down, pixel edges at whole numbers; z away from the viewer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import torch

from models.camera import quat_to_matrix
from models.raster import rasterize
from sandbox.background import Layer, over
from sandbox.individual import Individual, fur
from sandbox.surface import vertex_normals

SUPERSAMPLE = (1.5, 2.0)  # samples per pixel and axis, least and most
FINE_AREA = 30_000  # samples for an animal's box beyond which fewer per pixel are taken


@dataclass(frozen=True)
class Placed:
    """An animal in the scene: posed vertices [V,3] in the template frame, camera [7] in photo pixels."""

    individual: Individual
    vertices: np.ndarray
    camera: np.ndarray
    target: bool = True

    @cached_property
    def rotation(self) -> np.ndarray:
        """[3,3] float32, template axes to image axes."""
        return quat_to_matrix(torch.from_numpy(self.camera[3:]).double()).float().numpy()

    @cached_property
    def points(self) -> np.ndarray:
        """The vertices in the photo, [V,3] float32: x, y in pixels, z away from the viewer."""
        return self.project(self.vertices)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points [...,3] of the template frame in the photo, float32 (`models.camera.project`, in numpy for speed)."""
        shift = np.array([*self.camera[1:3], 0.0])
        return (self.camera[0] * (points @ self.rotation.T) + shift).astype(np.float32)

    def moved(self, x: float, y: float) -> Placed:
        """The same animal, shifted by pixels."""
        return replace(self, camera=self.camera + np.array([0, x, y, 0, 0, 0, 0]))


@dataclass(frozen=True)
class Light:
    """Unit direction [3] towards the light in the image frame, strengths, and colours [3] of sky and ground."""

    direction: np.ndarray
    sun: float
    ambient: float
    sky: np.ndarray
    ground: np.ndarray


@dataclass(frozen=True)
class Seen:
    """The truth about one animal in a photo.

    Attributes:
        mask: [H,W] bool, the pixels where it is what is seen.
        share: visible pixels over the pixels it would cover if nothing stood before it and the photo had no edge.
        keypoints: [K,3] x, y in photo pixels, v: 2 visible, 1 in the frame but hidden, 0 outside the frame.
        camera: [7] weak perspective in photo pixels.
    """

    mask: np.ndarray
    share: float
    keypoints: np.ndarray
    camera: np.ndarray
    target: bool

    @property
    def bbox(self) -> np.ndarray:
        """[x, y, w, h] float32, tight around the visible pixels; zeros if there is none."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        if not len(rows):
            return np.zeros(4, np.float32)
        x, y = columns[0], rows[0]
        return np.array([x, y, columns[-1] + 1 - x, rows[-1] + 1 - y], np.float32)


@dataclass(frozen=True)
class Photo:
    """A finished photo: uint8 RGB [H,W,3] before compression, its JPEG bytes, and what it shows."""

    image: np.ndarray
    data: bytes
    animals: tuple[Seen, ...]


@dataclass(frozen=True)
class _Drawn:
    layer: Layer
    keypoints: np.ndarray
    area: float


def render(
    backdrop: np.ndarray, animals: Sequence[Placed], fronts: Sequence[Sequence[Layer]], light: Light
) -> tuple[np.ndarray, tuple[Seen, ...]]:
    """Paint animals over a backdrop, the farthest first.

    Args:
        backdrop: [H,W,3] float32 RGB in 0..1.
        animals: in painting order; later ones stand before earlier ones.
        fronts: for each animal, the layers painted right after it (what stands before it).
        light: one light for all.

    Returns:
        the image [H,W,3] float32, and the truth in the order of `animals`.
    """
    h, w = backdrop.shape[:2]
    image, drawn = backdrop, []
    covers: list[np.ndarray] = []
    for placed, front in zip(animals, fronts, strict=True):
        image = image * (1 - _shadow(placed, light, h, w))[..., None]
        done = _draw(placed, light, h, w)
        drawn.append((done, len(covers)))
        for layer in (done.layer, *front):
            image = over(image, layer)
            covers.append(layer.alpha >= 0.5)
    seen = []
    for placed, (done, at) in zip(animals, drawn, strict=True):
        before = np.any(covers[at + 1 :], 0) if len(covers) > at + 1 else np.zeros((h, w), bool)
        mask = covers[at] & ~before
        keypoints = done.keypoints.copy()
        inside = (keypoints[:, :2] >= 0).all(1) & (keypoints[:, 0] < w) & (keypoints[:, 1] < h)
        xy = np.floor(keypoints[inside, :2]).astype(int)
        keypoints[inside, 2] -= (keypoints[inside, 2] == 2) & before[xy[:, 1], xy[:, 0]]
        keypoints[~inside, 2] = 0
        camera = placed.camera.astype(np.float32)
        seen.append(Seen(mask, float(mask.sum() / max(done.area, 1)), keypoints, camera, placed.target))
    return np.clip(image, 0, 1.2), tuple(seen)


def _draw(placed: Placed, light: Light, h: int, w: int) -> _Drawn:
    """The animal's colours, its coverage and its keypoints [K,3], v 2 or 1 by its own body alone."""
    t = placed.individual.template
    points = placed.points
    corner = points[t.faces]  # [F,3,3]
    ab, ac = corner[:, 1, :2] - corner[:, 0, :2], corner[:, 2, :2] - corner[:, 0, :2]
    front = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0] < 0  # outward faces turn clockwise where y runs down
    keypoints = _hidden_by_itself(points, t.keypoints, t.faces[front], 0.015 * float(placed.camera[0]))
    image, alpha = np.zeros((h, w, 3), np.float32), np.zeros((h, w), np.float32)
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    x0, y0 = (int(v) for v in np.maximum(np.floor(low) - 1, 0))
    x1, y1 = (int(v) for v in np.minimum(np.ceil(high) + 1, (w, h)))
    whole = (low >= 0).all() and high[0] <= w and high[1] <= h
    area = 0.0 if whole else _silhouette_area(points, t.faces[front])
    if x1 <= x0 or y1 <= y0:
        return _Drawn(Layer(image, alpha), keypoints, area)
    faces = t.faces[front]
    size = np.array([x1 - x0, y1 - y0])
    if not whole:
        at = points[faces][..., :2]
        faces = faces[((at.max(1) >= (x0, y0)) & (at.min(1) <= (x1, y1))).all(1)]
    fine = float(np.clip(np.sqrt(FINE_AREA / size.prod()), *SUPERSAMPLE))
    framed = points.copy()
    framed[:, :2] = (points[:, :2] - (x0, y0)) / size * 2 - 1
    with torch.no_grad():
        shot = rasterize(
            torch.from_numpy(framed)[None], torch.from_numpy(faces), (int(fine * size[1]), int(fine * size[0]))
        )
        mask, face, bary = shot.mask[0].numpy(), shot.face_id[0].numpy(), shot.barycentric[0].numpy()
    corners = faces[face[mask]]  # [N,3]
    weight = bary[mask]  # [N,3]
    normals = vertex_normals(placed.vertices, t.faces).astype(np.float32)
    colour = np.zeros((*mask.shape, 3), np.float32)
    colour[mask] = _shade(
        fur(placed.individual, _blend(t.vertices, corners, weight)),
        _blend(normals, corners, weight),
        placed.rotation,
        light,
    )
    cover = mask.astype(np.float32)
    small = (int(size[0]), int(size[1]))
    cover_small = cv2.resize(cover, small, interpolation=cv2.INTER_AREA)
    colour_small = cv2.resize(colour, small, interpolation=cv2.INTER_AREA)
    image[y0:y1, x0:x1] = colour_small / np.maximum(cover_small, 1e-6)[..., None]
    alpha[y0:y1, x0:x1] = cover_small
    return _Drawn(Layer(image, alpha), keypoints, area or float((alpha >= 0.5).sum()))


def _blend(values: np.ndarray, corners: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Vertex values [V,C] at surface points with corners [N,3] and barycentric weights [N,3]: [N,C]."""
    out = values[corners[:, 0]] * weight[:, :1]
    for k in (1, 2):
        out += values[corners[:, k]] * weight[:, k, None]
    return out


def _shade(albedo: np.ndarray, normal: np.ndarray, rotation: np.ndarray, light: Light) -> np.ndarray:
    """Lambert with a soft edge, a hemisphere of sky and ground, a dim highlight and fuzz at the rim: [N,3]."""
    normal = normal / np.sqrt(np.maximum(np.einsum("nc,nc->n", normal, normal), 1e-9))[:, None]
    n = normal @ rotation.T
    to_light = light.direction.astype(np.float32)
    diffuse = np.clip((n @ to_light + 0.15) / 1.15, 0, 1)
    up = (0.5 + 0.5 * normal[:, 1])[:, None]
    hemisphere = light.ground + up * (light.sky - light.ground)
    half = to_light + np.array([0, 0, -1], np.float32)
    shine = np.clip(n @ (half / np.linalg.norm(half)), 0, 1) ** 24
    rim = np.clip(1 + n[:, 2], 0, 1) ** 3
    lit = albedo * (light.ambient * hemisphere + light.sun * diffuse[:, None])
    return (lit + (0.10 * light.sun * shine + 0.06 * rim)[:, None]).astype(np.float32)


def _hidden_by_itself(points: np.ndarray, marks: np.ndarray, faces: np.ndarray, slack: float) -> np.ndarray:
    """Keypoints [K,3] x, y, v: 2, or 1 where a facing triangle lies more than `slack` before the vertex."""
    p = points[marks].astype(np.float64)  # [K,3]
    a, b, c = (points[faces[:, k]].astype(np.float64) for k in range(3))  # [F,3]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    area = np.where(np.abs(area) < 1e-12, -1e-12, area)

    def edge(s: np.ndarray, e: np.ndarray) -> np.ndarray:  # [K,F]
        return ((e[:, 0] - s[:, 0]) * (p[:, 1:2] - s[:, 1]) - (e[:, 1] - s[:, 1]) * (p[:, :1] - s[:, 0])) / area

    wa, wb, wc = edge(b, c), edge(c, a), edge(a, b)
    depth = wa * a[:, 2] + wb * b[:, 2] + wc * c[:, 2]
    before = (wa >= 0) & (wb >= 0) & (wc >= 0) & (depth < p[:, 2:] - slack)
    mark = np.asarray(marks)[:, None]  # its own triangles do not hide it
    before &= (faces[:, 0] != mark) & (faces[:, 1] != mark) & (faces[:, 2] != mark)
    v = np.where(before.any(1), 1.0, 2.0)
    return np.concatenate([p[:, :2], v[:, None]], 1).astype(np.float32)


def _silhouette_area(points: np.ndarray, faces: np.ndarray) -> float:
    """Pixels the whole animal covers, photo edges aside, counted on a canvas of its own 96 px wide."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    scale = 96 / max(float((high - low).max()), 1e-6)
    canvas = np.zeros((98, 98), np.uint8)
    for corners in ((points[:, :2] - low)[faces] * scale * 16).astype(np.int32):
        cv2.fillConvexPoly(canvas, corners, 1, cv2.LINE_8, 4)
    return float(canvas.sum()) / scale**2


def _shadow(placed: Placed, light: Light, h: int, w: int) -> np.ndarray:
    """Darkening [H,W] of the ground: each part's hull thrown along the light, softened, and contact at the feet."""
    t = placed.individual.template
    v, rotation = placed.vertices, placed.rotation
    floor = v[:, 1].min()
    to_light = rotation.T @ light.direction
    dark = np.zeros((h, w), np.float32)
    height = (v[:, 1] - floor)[:, None]
    owner = t.weights.argmax(1)
    tilt = float((rotation @ np.array([0, 1, 0]))[2])  # up leans to the viewer (negative) when seen from above
    passes = [(np.array([0.0, 1.0, 0.0]), 0.05, 0.45, height[:, 0] < 0.12)]
    if to_light[1] > 0.25 and tilt < -0.02:
        passes.append(
            (to_light / to_light[1], 0.03 + 0.05 / max(light.sun, 0.2), 0.45 * light.sun + 0.1, height[:, 0] >= 0)
        )
    for direction, softness, strength, use in passes:
        canvas = np.zeros((h, w), np.float32)
        ground = v - height * direction
        xy = placed.project(ground)[:, :2]
        for part in range(len(t.parts)):
            spot = xy[use & (owner == part)]
            if len(spot) > 2:
                hull = cv2.convexHull(np.clip(spot, -2000, 2000).astype(np.float32))
                cv2.fillConvexPoly(canvas, (hull * 16).astype(np.int32), 1.0, cv2.LINE_8, 4)
        soft = cv2.GaussianBlur(canvas, (0, 0), max(softness * 0.6 * float(placed.camera[0]), 0.6))
        dark = np.maximum(dark, np.float32(min(strength, 0.75)) * soft)
    return dark
