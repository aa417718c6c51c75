"""Backdrops, painted or cut from photos, and things that stand in the way, painted with cheap noise.

Images are float32 RGB [H,W,3] in 0..1; alphas are float32 [H,W] in 0..1; lengths are in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from models.photo import decode_photo
from tables import InputError

Colour = tuple[float, float, float]
GREENS: tuple[Colour, ...] = ((0.20, 0.34, 0.11), (0.32, 0.44, 0.16), (0.44, 0.48, 0.20), (0.14, 0.26, 0.13))
EARTHS: tuple[Colour, ...] = ((0.50, 0.40, 0.27), (0.62, 0.52, 0.36), (0.36, 0.29, 0.21), (0.45, 0.43, 0.40))
SANDS: tuple[Colour, ...] = ((0.80, 0.70, 0.52), (0.72, 0.60, 0.44), (0.84, 0.78, 0.66))
PAVINGS: tuple[Colour, ...] = ((0.55, 0.54, 0.52), (0.44, 0.42, 0.40), (0.60, 0.50, 0.42))
WALLS: tuple[Colour, ...] = (
    (0.72, 0.66, 0.56), (0.55, 0.60, 0.62), (0.60, 0.36, 0.27), (0.82, 0.80, 0.74), (0.46, 0.52, 0.44),
)  # fmt: skip
SCENES = ("meadow", "forest", "beach", "rocks", "wall", "room", "fence", "snow", "bokeh")


@dataclass(frozen=True)
class Layer:
    """A painted thing over the whole photo."""

    image: np.ndarray
    alpha: np.ndarray


def noise(rng: np.random.Generator, h: int, w: int, cell: float, octaves: int = 3) -> np.ndarray:
    """[h,w] float32 noise of about mean 0 and deviation 1; the coarsest octave has cells of `cell` pixels."""
    out = np.zeros((h, w), np.float32)
    for k in range(octaves):
        size = max(cell / 2**k, 1.0)
        grid = rng.standard_normal((int(h / size) + 3, int(w / size) + 3), np.float32)
        out += 0.55**k * cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC if size > 1 else cv2.INTER_NEAREST)
    return out


def pick(rng: np.random.Generator, colours: tuple[Colour, ...], jitter: float = 0.04) -> np.ndarray:
    """One of the colours, a little changed: [3] float32."""
    c = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.8, 1.15) + rng.normal(0, jitter, 3)
    return np.clip(c, 0.02, 1).astype(np.float32)


def paint(rng: np.random.Generator, kind: str, h: int, w: int, horizon: float) -> np.ndarray:
    """A backdrop of one of `SCENES`, the ground meeting the far at row `horizon` (may lie outside the photo)."""
    far = _far(rng, kind, h, w, horizon)
    if kind == "bokeh":
        return np.clip(cv2.GaussianBlur(far, (0, 0), 0.03 * w), 0, 1)
    ground = _ground(rng, kind, h, w, horizon)
    edge = 0.012 * h * noise(rng, 1, w, 0.15 * w, 3)[0] if kind not in ("wall", "room") else np.zeros(w, np.float32)
    below = np.clip(np.arange(h, dtype=np.float32)[:, None] - horizon - edge[None], 0, 1)
    image = far + below[..., None] * (ground - far)
    if kind in ("meadow", "rocks", "snow", "forest", "beach"):
        for _ in range(rng.integers(0, 4)):
            make = rock if kind in ("rocks", "beach") or rng.random() < 0.25 else bush
            size = h * rng.uniform(0.06, 0.22)
            layer = make(rng, h, w, rng.uniform(0, w), horizon + rng.uniform(0, 0.12) * h, size)
            image = over(image, layer)
    if kind == "fence" or (kind == "meadow" and rng.random() < 0.25):
        image = over(image, fence(rng, h, w, horizon + 0.10 * h, h * rng.uniform(0.16, 0.3)))
    blur = rng.uniform(0, 0.011) * w
    return np.clip(cv2.GaussianBlur(image, (0, 0), blur) if blur > 0.4 else image, 0, 1)


def cut(rng: np.random.Generator, folder: str, h: int, w: int) -> np.ndarray:
    """A backdrop cut from one of the photos of a folder: any part of at least half its sides, by chance mirrored.

    Raises:
        InputError: the file is not a photo.
    """
    files = photos_of(folder)
    path = files[rng.integers(len(files))]
    photo = decode_photo(Path(path).read_bytes())
    if photo is None:
        raise InputError("sandbox.backgrounds", path, "is no photo that can be read; remove it from the folder")
    scale = min(photo.shape[0] / h, photo.shape[1] / w) * rng.uniform(0.5, 1)
    tall, wide = max(1, int(scale * h)), max(1, int(scale * w))
    y, x = rng.integers(photo.shape[0] - tall + 1), rng.integers(photo.shape[1] - wide + 1)
    part = photo[y : y + tall, x : x + wide][:, :: 1 if rng.random() < 0.5 else -1]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(part), (w, h), interpolation=method).astype(np.float32) / 255


def photos_of(folder: str) -> tuple[str, ...]:
    """Paths of the JPEG, PNG and WebP files of a folder, sorted by name."""
    endings = (".jpg", ".jpeg", ".png", ".webp")
    return tuple(sorted(str(p) for p in Path(folder).iterdir() if p.suffix.lower() in endings))


def over(image: np.ndarray, layer: Layer) -> np.ndarray:
    """The layer painted over an image."""
    return image + layer.alpha[..., None] * (layer.image - image)


def _far(rng: np.random.Generator, kind: str, h: int, w: int, horizon: float) -> np.ndarray:
    rows = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    if kind in ("wall", "room"):
        image = np.broadcast_to(pick(rng, WALLS), (h, w, 3)) * (1 + 0.05 * noise(rng, h, w, 0.3 * w, 5))[..., None]
        if kind == "wall" and rng.random() < 0.6:
            image = image * (1 - rng.uniform(0.12, 0.35) * _bricks(rng, h, w))[..., None]
        if kind == "room":
            image = _furniture(rng, image.astype(np.float32), horizon)
        return image.astype(np.float32)
    if kind in ("forest", "bokeh"):
        base = pick(rng, GREENS if rng.random() < 0.75 else EARTHS)
        light = noise(rng, h, w, 0.16 * w, 4)
        image = base * (0.9 + 0.28 * light)[..., None] + 0.10 * np.maximum(noise(rng, h, w, 0.08 * w, 2), 0)[..., None]
        if kind == "forest":
            for _ in range(rng.integers(2, 7)):
                image = over(image, _trunk(rng, h, w, horizon))
        return image.astype(np.float32)
    top = np.array([0.32, 0.52, 0.80]) + rng.normal(0, 0.05, 3)
    if rng.random() < 0.45 or kind == "snow":  # overcast
        top = rng.uniform(0.62, 0.85) + np.array([-0.02, 0.0, 0.02])
    sky = top + rows * (np.array([0.86, 0.90, 0.94]) - top)
    clouds = np.clip(noise(rng, h, w, 0.4 * w, 5) - 0.5, 0, 1)[..., None] * rng.uniform(0, 0.5)
    image = (sky + clouds * (0.97 - sky)).astype(np.float32)
    if kind == "beach":
        sea = np.clip((np.arange(h, dtype=np.float32) - (horizon - 0.13 * h)) / 2, 0, 1)[:, None, None]
        water = pick(rng, ((0.20, 0.42, 0.52), (0.30, 0.45, 0.50)))
        return image + sea * (water * (1 + 0.10 * noise(rng, h, w // 6 + 1, 4, 2).repeat(6, 1)[:, :w, None]) - image)
    for depth in range(rng.integers(1, 4)):  # hills or a far line of trees, nearer and darker
        line = horizon - h * (0.16 - 0.05 * depth) * rng.uniform(0.4, 1.5)
        rough = h * rng.uniform(0.01, 0.05) * noise(rng, 1, w, w * rng.uniform(0.1, 0.6), 5)[0]
        hill = np.clip(np.arange(h, dtype=np.float32)[:, None] - line - rough[None], 0, 1)[..., None]
        tint = pick(rng, GREENS if kind != "snow" else PAVINGS) * 0.6 + (0.26 - 0.08 * depth) * np.array(
            [0.8, 0.95, 1.1]
        )
        image = image + hill * (tint * (1 + 0.10 * noise(rng, h, w, 0.04 * w, 2))[..., None] - image)
    return image.astype(np.float32)


def _ground(rng: np.random.Generator, kind: str, h: int, w: int, horizon: float) -> np.ndarray:
    """A tile of texture laid on a plane that runs to the horizon."""
    n = 256
    palette = {"beach": SANDS, "rocks": EARTHS + SANDS, "wall": PAVINGS, "snow": ((0.88, 0.90, 0.94),), "room": EARTHS}
    base = pick(rng, palette.get(kind, GREENS), 0.025)
    grain = noise(rng, n, n, 40, 2) * 0.5 + noise(rng, n, n, 3, 2) * rng.uniform(0.3, 0.8)
    tile = base * (1 + (0.05 if kind == "snow" else 0.15) * grain)[..., None]
    if kind in ("meadow", "fence", "forest"):  # bare or dry spots among the grass
        dry = np.clip(noise(rng, n, n, 60, 3) - rng.uniform(0.2, 1.5), 0, 1)[..., None] * 0.8
        tile = tile + dry * (pick(rng, EARTHS) * (1 + 0.12 * grain)[..., None] - tile)
    if kind in ("wall", "room") and rng.random() < 0.7:  # slabs or boards
        across, along = (32, 32) if kind == "wall" else (18, 128)
        seams = ((np.arange(n) % across) < 2)[None, :] | ((np.arange(n) % along) < 2)[:, None]
        tile = tile * (1 - 0.3 * seams)[..., None]
    y = np.arange(h, dtype=np.float32)[:, None] - np.float32(horizon)
    depth = np.float32(0.55 * h) / np.maximum(y, 0.02 * h)
    x = (np.arange(w, dtype=np.float32)[None] - w * rng.uniform(0.3, 0.7)) / h
    u = np.broadcast_to(depth * x * 130, (h, w)) + rng.uniform(0, n)
    v = np.broadcast_to(depth * 150, (h, w)) + rng.uniform(0, n)
    laid = cv2.remap(tile.astype(np.float32), np.mod(u, n - 1), np.mod(v, n - 1), cv2.INTER_LINEAR)
    haze = np.clip((depth - 2) / 30, 0, 0.5)[..., None]
    shade = 1 + 0.10 * noise(rng, h, w, 0.35 * w, 2)[..., None]
    return (laid * shade * (1 - haze) + haze * base * 1.1).astype(np.float32)


def _bricks(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    size = h * rng.uniform(0.04, 0.08)
    row = np.arange(h, dtype=np.float32)[:, None] / size
    column = np.arange(w, dtype=np.float32)[None] / (2.3 * size) + 0.5 * (np.floor(row) % 2)
    return ((row % 1 < 0.14) | (column % 1 < 0.07)).astype(np.float32)


def _furniture(rng: np.random.Generator, image: np.ndarray, horizon: float) -> np.ndarray:
    h, w = image.shape[:2]
    for _ in range(rng.integers(1, 4)):
        x, width = rng.uniform(-0.1, 0.9) * w, rng.uniform(0.12, 0.4) * w
        y0 = horizon - rng.uniform(0.15, 0.8) * h
        y1 = horizon + 0.01 * h if rng.random() < 0.6 else y0 + 0.25 * h
        colour = pick(rng, WALLS + EARTHS, 0.08)
        cv2.rectangle(image, (int(x), int(y0)), (int(x + width), int(y1)), tuple(map(float, colour * 0.6)), -1)
        inset = int(0.02 * w)
        corner = (int(x) + inset, int(y0) + inset)
        cv2.rectangle(image, corner, (int(x + width) - inset, int(y1) - inset), tuple(map(float, colour)), -1)
    return image


def _trunk(rng: np.random.Generator, h: int, w: int, horizon: float) -> Layer:
    x, half = rng.uniform(0, w), w * rng.uniform(0.012, 0.05)
    lean = rng.uniform(-0.12, 0.12)
    rows = np.arange(h, dtype=np.float32)[:, None]
    offset = (np.arange(w, dtype=np.float32)[None] - x - lean * (rows - horizon)) / half
    alpha = np.clip((1 - np.abs(offset)) * half, 0, 1) * (rows < horizon + 0.06 * h)
    bark = 0.75 + 0.25 * np.sqrt(np.clip(1 - offset**2, 0, 1)) - 0.2 * offset
    grain = 1 + 0.12 * noise(rng, h, w, 0.03 * w, 2)
    return Layer(pick(rng, EARTHS) * 0.7 * (bark * grain)[..., None], alpha)


def bush(rng: np.random.Generator, h: int, w: int, x: float, foot: float, size: float) -> Layer:
    """A leafy clump `size` high, standing at column x on row `foot`."""
    yy, xx = np.mgrid[:h, :w].astype(np.float32)
    wide = size * rng.uniform(0.6, 1.3)
    dx, dy = (xx - x) / wide, (yy - foot + 0.45 * size) / (0.55 * size)
    leaf = max(size * 0.07, 1.5)
    ragged = 0.22 * noise(rng, h, w, 4 * leaf, 2) + 0.12 * noise(rng, h, w, leaf, 1)
    alpha = np.clip((1 - np.sqrt(dx * dx + dy * dy) + ragged) * size * 0.12, 0, 1) * (yy < foot + 0.02 * size)
    light = 0.85 - 0.25 * dy - 0.15 * dx + 0.28 * noise(rng, h, w, leaf * 1.5, 2)
    dry = rng.random() < 0.25
    return Layer(pick(rng, EARTHS if dry else GREENS) * np.clip(light, 0.25, 2)[..., None], alpha)


def rock(rng: np.random.Generator, h: int, w: int, x: float, foot: float, size: float) -> Layer:
    """A boulder `size` high."""
    turns = np.sort(rng.uniform(0, 2 * np.pi, 11))
    radius = rng.uniform(0.75, 1.1, 11)
    points = np.stack(
        [x + size * 0.9 * radius * np.cos(turns), foot - size * 0.4 + size * 0.6 * radius * np.sin(turns)], 1
    )
    alpha = np.zeros((h, w), np.float32)
    hull = cv2.convexHull(points.astype(np.float32))
    cv2.fillConvexPoly(alpha, (hull * 16).astype(np.int32), 1.0, cv2.LINE_8, 4)
    yy, xx = np.mgrid[:h, :w].astype(np.float32)
    light = (
        0.85 - 0.45 * (yy - foot + 0.5 * size) / size - 0.15 * (xx - x) / size + 0.1 * noise(rng, h, w, size * 0.3, 4)
    )
    tint = pick(rng, PAVINGS + EARTHS)
    return Layer(tint * np.clip(light, 0.2, 1.6)[..., None], cv2.GaussianBlur(alpha, (0, 0), 0.6))


def post(rng: np.random.Generator, h: int, w: int, x: float, foot: float, size: float) -> Layer:
    """An upright post `size` high; from above the photo's edge if it is higher than that."""
    half, lean = size * rng.uniform(0.035, 0.07), rng.uniform(-0.05, 0.05)
    rows = np.arange(h, dtype=np.float32)[:, None]
    offset = (np.arange(w, dtype=np.float32)[None] - x - lean * (rows - foot)) / half
    alpha = np.clip((1 - np.abs(offset)) * half, 0, 1)
    alpha = alpha * np.clip(rows - foot + size, 0, 1) * np.clip(foot - rows, 0, 1)
    light = 0.7 + 0.35 * np.sqrt(np.clip(1 - offset**2, 0, 1)) - 0.2 * offset
    grain = 1 + 0.08 * cv2.resize(noise(rng, max(h // 12, 2), w, 2, 1), (w, h))
    return Layer(pick(rng, EARTHS + PAVINGS, 0.02) * (light * grain)[..., None], alpha)


def fence(rng: np.random.Generator, h: int, w: int, foot: float, size: float) -> Layer:
    """Posts and rails across the photo."""
    alpha, light = np.zeros((h, w), np.float32), np.ones((h, w), np.float32)
    tilt, step = rng.uniform(-0.04, 0.04) * h, w * rng.uniform(0.16, 0.35)
    thick = max(int(size * rng.uniform(0.05, 0.1)), 1)
    for level in np.linspace(0.25, 0.85, rng.integers(2, 4)):
        y = foot - level * size
        cv2.line(alpha, (0, int(y - tilt)), (w, int(y + tilt)), 1.0, thick, cv2.LINE_8)
    for x in np.arange(rng.uniform(-step, 0), w, step):
        top, bottom = (int(x), int(foot - size)), (int(x), int(foot))
        cv2.line(alpha, top, bottom, 1.0, thick + 1, cv2.LINE_8)
        cv2.line(light, (int(x + thick * 0.6), top[1]), (int(x + thick * 0.6), bottom[1]), 0.7, thick // 2 + 1)
    tint = pick(rng, (*EARTHS, (0.85, 0.84, 0.80)))
    grain = 1 + 0.12 * noise(rng, h, w, 0.02 * w, 2)
    return Layer(tint * (light * grain)[..., None], cv2.GaussianBlur(alpha, (0, 0), 0.5))


def tuft(rng: np.random.Generator, h: int, w: int, x: float, foot: float, size: float) -> Layer:
    """Blades of grass `size` high around column x."""
    alpha, shade = np.zeros((h, w), np.float32), np.ones((h, w), np.float32)
    tint = pick(rng, GREENS + EARTHS[:2])
    for _ in range(rng.integers(14, 34)):
        x0 = x + rng.normal(0, 0.6) * size
        tip = (x0 + rng.normal(0, 0.3) * size, foot - size * rng.uniform(0.4, 1.1))
        half = max(0.03 * size, 0.6)
        blade = (np.array([(x0 - half, foot), (x0 + half, foot), tip]) * 16).astype(np.int32)
        cv2.fillConvexPoly(alpha, blade, 1.0, cv2.LINE_8, 4)
        cv2.fillConvexPoly(shade, blade, rng.uniform(0.7, 1.35), cv2.LINE_8, 4)
    return Layer(tint * shade[..., None], cv2.GaussianBlur(alpha, (0, 0), 0.45))


OCCLUDERS = {"bush": bush, "rock": rock, "post": post, "tuft": tuft}
