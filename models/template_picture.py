"""A picture to check a template by: parts in colours, keypoints by name, and every part bent at its pivot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.articulation import part_transforms, skin
from models.raster import Raster, rasterize
from models.template import Template
from tables import write_atomically

PANEL = (660, 560)  # width, height of a view
LEGEND = 64
BEND_DEG = 25.0
_MARGIN, _HEAD, _FOOT = 118, 52, 26  # room for labels at both sides, for the title, and below
_SMOOTH = 2  # pixels drawn per pixel shown, on each axis
_WHITE, _INK, _SOFT = (255, 255, 255), (40, 40, 48), (140, 140, 150)
_COLORS = np.array(
    [
        (158, 158, 166), (242, 178, 64), (214, 88, 72), (72, 132, 206), (120, 186, 232),
        (66, 152, 96), (146, 206, 122), (150, 104, 180), (212, 140, 186), (120, 96, 72),
    ],
    np.float32,
)  # fmt: skip

# Rows: image x, image y (down) and depth (away) in the template frame.
_VIEWS = {
    "left": ((0, 0, -1), (0, -1, 0), (-1, 0, 0)),
    "right": ((0, 0, 1), (0, -1, 0), (1, 0, 0)),
    "front": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "top": ((0, 0, -1), (1, 0, 0), (0, -1, 0)),
    "three quarters": ((0.77, 0, -0.64), (0.22, -0.94, 0.265), (-0.6, -0.345, -0.72)),
}


def template_picture(template: Template) -> np.ndarray:
    """Six views and a legend, [H, W, 3] uint8 RGB.

    Left and right side (keypoints by name), front, top, three quarters, and a pose in which every part but the root
    is bent by `BEND_DEG` about the animal's left-right axis at its pivot.
    """
    names = template.keypoint_names
    right = [k for k, name in enumerate(names) if name.startswith("R_")]
    left = [k for k in range(len(names)) if k not in right]
    panels = [
        _panel(template, "left side", "left", template.vertices, labels=left, pivots=True),
        _panel(template, "right side", "right", template.vertices, labels=right),
        _panel(template, "front", "front", template.vertices),
        _panel(template, "top", "top", template.vertices),
        _panel(template, "three quarters", "three quarters", template.vertices),
        _panel(template, f"each part bent by {BEND_DEG:.0f} degrees", "left", _bent(template), dots=False),
    ]
    rows = [np.concatenate(panels[i : i + 3], 1) for i in (0, 3)]
    return np.concatenate((*rows, _legend(template, rows[0].shape[1])), 0)


def save_template_picture(template: Template, path: str) -> None:
    """Write `template_picture` as PNG, whole or not at all."""
    import cv2

    ok, data = cv2.imencode(".png", cv2.cvtColor(template_picture(template), cv2.COLOR_RGB2BGR))
    if not ok:
        raise OSError(f"{path}: could not encode the picture")
    write_atomically(path, data.tobytes())


def _bent(template: Template) -> np.ndarray:
    """Vertices [V, 3] with front legs forward, back legs backward, neck, head and tail down."""
    axes = torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(template.parts), 1)
    backward = [(p.endswith("F") and p.startswith("leg")) or p == "tail" for p in template.parts]
    signs = [0.0 if parent < 0 else -1.0 if b else 1.0 for parent, b in zip(template.parents, backward, strict=True)]
    angles = torch.tensor(signs) * np.deg2rad(BEND_DEG)
    moves = part_transforms(axes, angles, torch.tensor(template.pivots), template.parents)
    return skin(torch.tensor(template.vertices), torch.tensor(template.weights), moves).numpy()


def _part_colors(count: int) -> np.ndarray:
    return _COLORS[np.arange(count) % len(_COLORS)]


def _panel(
    template: Template,
    title: str,
    view: str,
    vertices: np.ndarray,
    labels: Sequence[int] = (),
    pivots: bool = False,
    dots: bool = True,
) -> np.ndarray:
    import cv2

    width, height = PANEL
    axes = np.asarray(_VIEWS[view], np.float64)
    seen = vertices @ axes.T
    low, high = seen[:, :2].min(0), seen[:, :2].max(0)
    room = np.array((width - 2 * (_MARGIN if labels else _FOOT), height - _HEAD - _FOOT))
    scale = float((room / np.maximum(high - low, 1e-9)).min())
    centre = np.array((width / 2, _HEAD + room[1] / 2))
    pixels = (seen[:, :2] - (low + high) / 2) * scale + centre
    image = _draw(template, vertices, pixels, seen[:, 2], axes)
    _text(image, title, (16, 30), 0.62, _INK)
    if pivots:
        at = ((template.pivots @ axes.T)[:, :2] - (low + high) / 2) * scale + centre
        for x, y in np.rint(at).astype(int):
            cv2.drawMarker(image, (int(x), int(y)), _WHITE, cv2.MARKER_CROSS, 17, 4)
            cv2.drawMarker(image, (int(x), int(y)), _INK, cv2.MARKER_CROSS, 15, 2)
    for k in template.keypoints[_in_sight(template, pixels, seen[:, 2])] if dots and not labels else ():
        cv2.circle(image, (round(float(pixels[k, 0])), round(float(pixels[k, 1]))), 4, _INK, -1, cv2.LINE_AA)
    _label(image, [template.keypoint_names[k] for k in labels], pixels[template.keypoints[list(labels)]])
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), (226, 226, 230), 1)
    return image


def _raster(template: Template, pixels: np.ndarray, depth: np.ndarray, finer: int) -> Raster:
    width, height = PANEL
    frame = np.concatenate((pixels / (width / 2, height / 2) - 1, depth[:, None]), 1).astype(np.float32)
    return rasterize(torch.tensor(frame)[None], torch.tensor(template.faces), (height * finer, width * finer))


def _in_sight(template: Template, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """[K] bool: keypoints that nothing hides, but for a little."""
    surface = np.pad(_raster(template, pixels, depth, 1).depth[0].numpy(), 3, constant_values=np.inf)
    column, row = np.floor(pixels[template.keypoints]).astype(int).T
    # Deepest within 3 pixels: a keypoint on the outline is seen.
    around = np.stack([surface[row + dy, column + dx] for dy in range(7) for dx in range(7)]).max(0)
    return depth[template.keypoints] < around + 0.03


def _draw(
    template: Template, vertices: np.ndarray, pixels: np.ndarray, depth: np.ndarray, axes: np.ndarray
) -> np.ndarray:
    """The shaded mesh on white, [height, width, 3] uint8; faces seen from behind are dark red."""
    import cv2

    raster = _raster(template, pixels, depth, _SMOOTH)
    mask, face = raster.mask[0].numpy(), raster.face_id[raster.mask].numpy()
    a, b, c = (vertices[template.faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    # Corner normals, so that the shading shows form and not triangles.
    smooth = np.zeros_like(vertices)
    np.add.at(smooth, template.faces, normal[:, None].repeat(3, 1))
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-12)
    light = smooth @ (np.array((-0.35, -0.6, -0.72)) @ axes)
    corner = np.concatenate((template.weights @ _part_colors(len(template.parts)), light[:, None]), 1)
    seen = np.einsum("pc,pcx->px", raster.barycentric[raster.mask].numpy(), corner[template.faces[face]])
    color = seen[:, :3] * (0.62 + 0.42 * seen[:, 3:])
    color[(normal @ axes[2])[face] > 0] = (110, 20, 20)
    image = np.full((*mask.shape, 3), 255, np.uint8)
    image[mask] = np.clip(color, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.resize(image, PANEL, interpolation=cv2.INTER_AREA))


def _label(image: np.ndarray, names: list[str], points: np.ndarray) -> None:
    """Names in two columns beside the animal, each with a line to its point."""
    import cv2

    width, height = PANEL
    if not names:
        return
    middle = float(np.median(points[:, 0]))
    for on_left in (True, False):
        members = [i for i in range(len(names)) if (points[i, 0] < middle) == on_left]
        members.sort(key=lambda i: points[i, 1])
        at = _spaced([float(points[i, 1]) for i in members], 22.0, _HEAD + 8.0, height - 14.0)
        for i, y in zip(members, at, strict=True):
            (text, _), _ = cv2.getTextSize(names[i], cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
            x = 12 if on_left else width - 12 - text
            end = (x + text + 5, round(y)) if on_left else (x - 5, round(y))
            point = (round(float(points[i, 0])), round(float(points[i, 1])))
            cv2.line(image, end, point, _SOFT, 1, cv2.LINE_AA)
            cv2.circle(image, point, 5, _WHITE, -1, cv2.LINE_AA)
            cv2.circle(image, point, 4, _INK, -1, cv2.LINE_AA)
            _text(image, names[i], (x, round(y) + 5), 0.5, _INK)


def _spaced(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Increasing positions near the wanted ones, at least `gap` apart, within the limits."""
    out: list[float] = []
    for y in wanted:
        out.append(max(y, low if not out else out[-1] + gap))
    for i in range(len(out) - 1, -1, -1):
        out[i] = min(out[i], high if i == len(out) - 1 else out[i + 1] - gap)
    return out


def _legend(template: Template, width: int) -> np.ndarray:
    import cv2

    image = np.full((LEGEND, width, 3), 255, np.uint8)
    x = 16
    for name, color in zip(template.parts, _part_colors(len(template.parts)).tolist(), strict=True):
        cv2.rectangle(image, (x, 22), (x + 20, 42), color, -1)
        x = _text(image, name, (x + 28, 38), 0.55, _INK) + 28
    sizes = f"{len(template.vertices)} vertices, {len(template.faces)} faces, {len(template.keypoints)} keypoints"
    _text(image, f"crosses: pivots     {sizes}     {template.digest}", (x + 20, 38), 0.5, _SOFT)
    return image


def _text(image: np.ndarray, text: str, at: tuple[int, int], size: float, color: tuple[int, int, int]) -> int:
    """Draw text with its baseline at `at`; returns the x where it ends."""
    import cv2

    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)
    return at[0] + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0]
