"""Animals drawn over their photos: mesh, box, joints and bones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.crops import SEEN, STORED
from models.template import Template
from pipelines.report_crops import SURE
from pipelines.report_mesh import shade
from tables import QUADRUPED

if TYPE_CHECKING:
    from pipelines.photo_reader import Animal

Color = tuple[int, int, int]
TWO, THREE = (53, 208, 255), (255, 154, 46)  # the report's colours of the 2D label and the 3D reprojection
SIDES = (640, 1280)  # least and most pixels of a picture's longer side
MESH = 0.75  # how much of the mesh covers the photo
MOST = 1024  # pixels a side that a mesh is drawn at


def draw_pose(draw: ImageDraw.ImageDraw, at: np.ndarray, sure: np.ndarray, color: Color, width: int = 2) -> None:
    """Joints [K, 2] in pixels that are `sure` [K], and the bones between them, with a dark rim."""
    edges = QUADRUPED.edges if len(at) == len(QUADRUPED) else ()
    for wide, radius, ink in ((2 * width, width + 1.5, (0, 0, 0)), (width, width + 0.5, color)):
        for a, b in edges:
            if sure[a] and sure[b]:
                draw.line([*at[a], *at[b]], ink, wide)
        for x, y in at[sure]:
            draw.circle((x, y), radius, ink)


def overlay(photo: np.ndarray, animals: Sequence[Animal], template: Template) -> np.ndarray:
    """A photo [H, W, 3] with its animals, uint8 RGB; its longer side is brought between `SIDES` pixels.

    The joints are the 2D net's that it is sure of; without a 2D net they are the template's.
    """
    longer = max(photo.shape[:2])
    scale = min(max(longer, SIDES[0]), SIDES[1]) / longer
    size = tuple(max(1, round(side * scale)) for side in photo.shape[1::-1])
    out = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    for animal in sorted(animals, key=lambda a: a.bbox[1] + a.bbox[3]):  # what stands lower in a photo is nearer
        _lay_mesh(out, animal, template, scale)
    image = Image.fromarray(out)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(size) / 48)
    for animal in animals:
        width = int(
            np.clip(round(max(animal.bbox[2:]) * scale / 160), 1, 3)
        )  # else a small one vanishes under its bones
        if animal.keypoints is not None:
            draw_pose(draw, animal.keypoints[:, :2] * scale, animal.keypoints[:, 2] >= SURE, TWO, width)
        else:
            draw_pose(draw, animal.keypoints_3d * scale, np.ones(len(animal.keypoints_3d), bool), THREE, width)
    for number, animal in enumerate(animals, 1):
        x, y, w, h = (float(v) for v in animal.bbox * scale)
        draw.rectangle((x, y, x + w, y + h), outline="white", width=2)
        corner, text = (x, max(0.0, y - max(size) / 34)), f" {number}  {animal.name} {animal.score:.2f} "
        left, top, right, bottom = draw.textbbox(corner, text, font)
        draw.rectangle((left, top - 2, right, bottom + 3), fill="white")
        draw.text(corner, text, "black", font)
    return np.asarray(image)


def _lay_mesh(out: np.ndarray, animal: Animal, template: Template, scale: float) -> None:
    """Blend the mesh into the picture [H, W, 3] in place; limbs may reach out of the window the network saw."""
    wider = STORED / SEEN
    x0, y0, side = animal.window * scale
    pixels = max(1, round(side * wider))
    left, top = round(x0 - side * (wider - 1) / 2), round(y0 - side * (wider - 1) / 2)
    mesh = shade(animal.vertices[None] / wider, template, min(pixels, MOST))[0]
    if mesh.shape[0] != pixels:
        mesh = cv2.resize(mesh, (pixels, pixels), interpolation=cv2.INTER_LINEAR)
    rows, columns = slice(max(0, top), max(0, top + pixels)), slice(max(0, left), max(0, left + pixels))
    under = out[rows, columns]
    mesh = mesh[rows.start - top :, columns.start - left :][: under.shape[0], : under.shape[1]].astype(np.float32)
    share = mesh[..., 3:] / 255 * MESH
    under[:] = np.round(under * (1 - share) + mesh[..., :3] * share).astype(np.uint8)
