"""Labelled photos as the 3D net sees them: input, predicted shape, the shape turning, and a page of all. No Ray."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tables import InputError, Lake
from trainers.app import command

if TYPE_CHECKING:
    from pipelines.visualize_page import Shape

SPLITS = ("train", "val", "test")
PIXELS = 256


@command("visualize")
def main(cfg: Any) -> None:
    from rich.console import Console

    from pipelines.chosen_models import Chosen
    from pipelines.predict import check_out
    from trainers.jobs import set_threads

    check(cfg)
    folder = check_out(cfg.out)
    set_threads(int(cfg.resources.threads))
    chosen = Chosen(cfg)
    category = str(cfg.category) if cfg.acsm else chosen.record.category
    shown = visualize(Lake(cfg.lake), category, chosen.acsm, cfg.split, cfg.n, cfg.frames, folder)
    page = os.path.join(folder, "index.html")
    Console(soft_wrap=True, highlight=False).print(f"{shown:,} animals of the {cfg.split} split: {page}", markup=False)


def check(cfg: Any) -> None:
    """Raise InputError for a setting that makes no sense, before anything is read."""
    if cfg.split not in SPLITS:
        raise InputError("split", cfg.split, f"use one of {', '.join(SPLITS)}")
    for key, least, what in (("n", 1, "animals"), ("frames", 2, "pictures of a turn")):
        if type(cfg[key]) is not int or cfg[key] < least:
            raise InputError(key, cfg[key], f"must be a whole number of {what}, {least} or more")


def visualize(lake: Lake, category: str, model: str, split: str, n: int, frames: int, folder: str) -> int:
    """Write the pictures and `index.html`; return how many animals they show.

    Raises:
        InputError: the checkpoint cannot be read, or the lake has no labels of the category or none of this split.
    """
    import pyarrow.compute as pc

    from pipelines.model_files import open_model
    from pipelines.stage import progress_bar
    from pipelines.trained_on import provenance, sentence
    from pipelines.visualize_page import write_page
    from trainers.data import label_table

    net = open_model(model, "acsm", "acsm")
    rows = label_table(lake, category)
    known = sorted(set(rows["split"].to_pylist()))
    rows = rows.filter(pc.equal(rows["split"], split))
    if not len(rows):
        raise InputError("split", split, f"lake {lake.uri} has labels of {category} in {', '.join(known)}")
    rows = rows.take(pc.sort_indices(rows, sort_keys=[("instance_id", "ascending")]))[:n]
    shown = []
    with progress_bar() as bar:
        for place in bar.track(range(len(rows)), description="shapes"):
            shown.append(draw(net, rows.slice(place, 1), frames, folder))
    about = f"3D net {sentence(provenance(model, net.notes))}"
    write_page(os.path.join(folder, "index.html"), f"{category}: {split}", about, shown)
    return len(shown)


def draw(net: Any, row: Any, frames: int, folder: str) -> Shape:
    """Write the pictures of one row of `label_table`: the input, and in the same view the shape; and the turn."""
    import cv2
    import numpy as np

    from models.crops import SEEN, STORED
    from models.photo import decode_photo
    from models.predict import predict_acsm
    from pipelines.report_crops import VIEW, in_crop
    from pipelines.report_mesh import shade
    from pipelines.shape_errors import shape_errors
    from pipelines.turning import gif, turn
    from pipelines.visualize_page import Shape
    from tables import to_numpy, write_atomically
    from trainers.data import instances_from

    data = instances_from(row, net.config["image_size"])
    out = predict_acsm(net, data.crops, mesh=True)
    judged = shape_errors(out, data)
    camera = float(judged.camera_deg[0])
    mesh = out.vertices[0, 0].numpy().astype(np.float64)

    crop = decode_photo(row["crop"][0].as_py())
    low, high = (round(share * len(crop) / 100) for share in (VIEW[0], VIEW[0] + VIEW[1]))  # type: ignore[arg-type]
    seen = cv2.resize(crop[low:high, low:high], (PIXELS, PIXELS), interpolation=cv2.INTER_AREA)  # type: ignore[index]
    shape = shade(mesh[None] * (SEEN / STORED * 100 / VIEW[1]), net.template, PIXELS)[0]
    name = data.ids[0]
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(seen, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    png = cv2.imencode(".png", cv2.cvtColor(shape, cv2.COLOR_RGBA2BGRA))[1]
    turning = gif(shade(turn(mesh, frames), net.template, PIXELS))
    for end, content in ((".jpg", jpeg.tobytes()), ("_shape.png", png.tobytes()), (".gif", turning)):
        write_atomically(os.path.join(folder, name + end), content)
    window = to_numpy(row["window"], 3)[0]
    return Shape(
        name, in_crop(judged.truth[0], window), in_crop(judged.found[0], window), judged.visible[0],
        error=float(judged.error[0]), within=int(judged.within[0]), camera_deg=None if np.isnan(camera) else camera,
    )  # fmt: skip


if __name__ == "__main__":
    main()
