"""The pictures in a round's folder: charts, and a contact sheet of the best, both sides of the cut and the worst."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from models.photo import decode_photo
from pipelines.pose_picture import THREE, TWO, draw_pose
from pipelines.report_crops import SURE, VIEW, in_crop
from pipelines.report_diagnostics import reliability_figure, risk_figure, views_figure
from pipelines.report_figures import as_png
from pipelines.report_rounds import groups
from pipelines.run_record import rows_of
from tables import Dataset, Lake

EACH = 6  # crops a row
CELL, GAP, TEXT, TITLE = 176, 12, 58, 30  # pixels: a crop's side, between crops, below it, above a row
KEPT, LOST = (44, 138, 75), (179, 55, 47)


def write_pictures(
    lake: Lake, folder: str, found: Mapping[str, Any], chosen: pa.Table, pseudo: Dataset, instances: Dataset
) -> None:
    """The round's `viewpoints.png` and `contact_sheet.png`, and `risk_coverage.png`, `reliability.png` if it is judged.

    Args:
        folder: of the round, in the lake.
        chosen: all rows of its selection, by rank.
    """
    figures = {"viewpoints": views_figure(found)}
    if "aurc" in found:
        figures |= {"risk_coverage": risk_figure(found), "reliability": reliability_figure(found)}
    for name, figure in figures.items():
        lake.files.write(f"{folder}/{name}.png", as_png(figure))
    sink = io.BytesIO()
    contact_sheet(chosen, pseudo, instances).save(sink, "PNG")
    lake.files.write(f"{folder}/contact_sheet.png", sink.getvalue())


def contact_sheet(chosen: pa.Table, pseudo: Dataset, instances: Dataset) -> Image.Image:
    """The sheet; `chosen` are all rows of a selection, by rank."""
    shown = groups(chosen, EACH)
    ids = {r["instance_id"] for _, _, found in shown for r in found}
    made = rows_of(pseudo, ids, ["keypoints", "keypoints_3d"])
    cut = rows_of(instances, ids, ["crop", "window"])
    height = len(shown) * (TITLE + CELL + TEXT) + GAP
    sheet = Image.new("RGB", (EACH * (CELL + GAP) + GAP, max(height, TITLE)), "white")
    draw, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(16), ImageFont.load_default(11.5)
    for line, (title, kind, found) in enumerate(shown):
        top = line * (TITLE + CELL + TEXT) + GAP // 2
        draw.text((GAP, top + 5), title.replace("<small>", "(").replace("</small>", ")"), "black", large)
        for i, row in enumerate(found):
            left, upper = GAP + i * (CELL + GAP), top + TITLE
            name = row["instance_id"]
            sheet.paste(_crop(cut.get(name), made.get(name)), (left, upper))
            frame = (left - 1, upper - 1, left + CELL, upper + CELL)
            draw.rectangle(frame, outline=KEPT if kind == "kept" else LOST, width=2)
            score = "no score" if row["score"] is None or not np.isfinite(row["score"]) else f"{row['score']:.4g}"
            text = "\n".join(textwrap.wrap(f"{score}: {row['reason']}", 32)[:3])
            draw.multiline_text((left, upper + CELL + 4), text, "black", small, spacing=2)
    return sheet


def _crop(cut: dict[str, Any] | None, made: dict[str, Any] | None) -> Image.Image:
    photo = decode_photo(cut["crop"]) if cut and cut["crop"] else None
    if cut is None or photo is None:
        return Image.new("RGB", (CELL, CELL), (124, 116, 104))
    scale = 100 / VIEW[1]  # the part that the report shows
    side = round(CELL * scale)
    shift = VIEW[0] * CELL / VIEW[1]
    image = Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS)
    image = image.crop((round(shift), round(shift), round(shift) + CELL, round(shift) + CELL))
    draw = ImageDraw.Draw(image)
    for column, width, color in (("keypoints_3d", 2, THREE), ("keypoints", 3, TWO)):
        if made is not None and made[column] is not None:
            joints = np.asarray(made[column], np.float64).reshape(-1, width)
            sure: Any = np.isfinite(joints).all(1)
            if width == 3:
                sure = sure & (joints[:, 2] >= SURE)
            at = (in_crop(joints[:, :2], cut["window"]) - VIEW[0]) * CELL / VIEW[1]
            draw_pose(draw, np.clip(at, -CELL, 2 * CELL), sure, color)
    return image
