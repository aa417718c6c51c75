"""Meshes as small pictures, coloured by part, on a transparent ground."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import torch

from models import shading
from models.template import Template

# Mid-tones that stand out from white, from black and from each other.
PALETTE = np.array(
    [
        (150, 156, 170), (240, 180, 72), (222, 98, 84), (74, 140, 220), (128, 196, 240),
        (64, 166, 110), (158, 214, 118), (164, 116, 200), (224, 146, 190), (150, 122, 92),
    ],
    np.float32,
)  # fmt: skip


def part_colors(template: Template) -> np.ndarray:
    """[P, 3] RGB of the parts."""
    return PALETTE[np.arange(len(template.parts)) % len(PALETTE)]


def shade(vertices: np.ndarray, template: Template, size: int) -> np.ndarray:
    """Draw poses of the template, coloured by part: [B, size, size, 4] uint8 RGBA, transparent outside.

    Args:
        vertices: [B, V, 3] in the image frame (x right, y down, z away; [-1, 1] spans the picture).
        size: pixels of the square pictures.
    """
    colors = np.asarray(template.weights @ part_colors(template), np.float32)
    faces = np.asarray(template.faces, np.int64)
    poses = torch.from_numpy(np.asarray(vertices, np.float32))
    return shading.shade(poses, torch.from_numpy(faces), torch.from_numpy(colors), size).numpy()


def turned(vertices: np.ndarray, degrees: float) -> np.ndarray:
    """Poses [B, V, 3] of the image frame turned about the picture's vertical through their middle."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle = (vertices.min(1, keepdims=True) + vertices.max(1, keepdims=True)) / 2
    return (vertices - middle) @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) + middle


def turntable(template: Template, frames: int, size: int) -> np.ndarray:
    """The template turning about its vertical, seen a little from above: [frames, size, size, 4] uint8."""
    down = np.diag((1.0, -1.0, -1.0))  # the template's axes in the image frame: facing the viewer, upright
    c, s = math.cos(math.radians(14)), math.sin(math.radians(14))
    tilt = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])  # what is farther away stands higher
    poses = []
    for i in range(frames):
        angle = 2 * math.pi * i / frames
        turn = np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
        poses.append(template.vertices @ (tilt @ down @ turn).T)
    stacked = np.stack(poses)
    # One scale and one middle for all frames, or the animal would breathe.
    middle = np.array((0, (stacked[..., 1].min() + stacked[..., 1].max()) / 2, 0))
    reach = np.abs((stacked - middle)[..., :2]).max()
    return shade((stacked - middle) * (0.97 / reach), template, size)


def webp(pixels: np.ndarray, quality: int = 80) -> str:
    """A picture [H, W, 3 or 4] uint8, or an endless animation [F, H, W, 4], as a data URI."""
    from PIL import Image

    frames = [Image.fromarray(p) for p in (pixels if pixels.ndim == 4 else pixels[None])]
    sink = io.BytesIO()
    if len(frames) > 1:
        frames[0].save(
            sink, "WEBP", save_all=True, append_images=frames[1:], duration=90, loop=0, quality=quality, method=2,
            minimize_size=False,
        )  # fmt: skip
    else:
        frames[0].save(sink, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode()
