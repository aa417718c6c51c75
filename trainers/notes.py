"""What a person watches while a network trains: losses about a hundred times, pictures four times. Needs no Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from models.acsm import ACSM
from models.crops import affine, sample
from models.heatmap import Detector, decode, decode_boxes
from models.photo import MEAN, STD, normalise
from models.shading import shade
from tables import QUADRUPED
from trainers.data import Instances
from trainers.stepper import AverageOverWorkers

PICTURES = 4  # of a training, at equal distances, the last when it is done
ROWS, SIDE = 3, 160  # animals of a picture, and pixels of each of its tiles
TRUE, FOUND, MESH = (64, 220, 96), (255, 72, 64), (0, 172, 223)  # RGB; the mesh's is the reference's


class Note(NamedTuple):
    """How a training stands.

    Attributes:
        step: steps done, of `steps`.
        loss: of the last step, the mean over all workers.
        terms: the parts of it, where it has more than one.
        picture: uint8 [H,W,3] RGB now and then, else None: a row for each of the first labelled animals, with what
            the network sees, keypoints (or boxes) true and found, and of a 3D network the mesh over the photo.
    """

    step: int
    steps: int
    loss: float
    terms: dict[str, float]
    picture: np.ndarray | None


def note_taker(
    task: Any, steps: int, examples: Any, tell: Callable[[Note], None], rank: int = 0, share: float = 1.0
) -> Callable[[int, float], None]:
    """What `fit` calls as `on_step`, on every worker; the first one tells.

    Args:
        task: whose `model` and `terms` are looked at; what it computes stays as it is.
        examples: `Instances`, or of a detector photos and boxes as in `DetectorTask`.
        share: of each batch that this worker computes, as in `Stepper`.
    """
    shown = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal shown
        terms = {name: value.clone().reshape(1) for name, value in task.terms.items()}
        if share < 1 and terms:
            with AverageOverWorkers(share) as average:
                average.add(*terms.values())
        due, picture = step * PICTURES // steps, None
        if rank:
            return
        if due > shown:
            shown, picture = due, draw(task, examples)
        tell(Note(step, steps, loss, {name: float(value) for name, value in terms.items()}, picture))

    return on_step


@torch.no_grad()
def draw(task: Any, examples: Any) -> np.ndarray:
    """A picture as in `Note`; the network is left in the mode it is in."""
    model: nn.Module = task.model
    trains = [m for m in model.modules() if m.training]
    model.eval()
    try:
        rows = _boxes(model, *examples) if isinstance(model, Detector) else _animals(model, examples, task.image_size)
    finally:
        for module in trains:
            module.training = True
    return np.concatenate([np.concatenate(tiles, 1) for tiles in rows])


def _animals(model: Any, data: Instances, size: int) -> list[list[np.ndarray]]:
    weight = next(model.parameters())
    data = data.take(np.arange(min(ROWS, len(data))))
    crops = torch.from_numpy(data.crops).to(weight.device)
    images = sample(crops, affine(len(crops), device=weight.device), size)
    out = model(images.to(weight.dtype))
    joints = (out.best().keypoints[:, 0] if isinstance(model, ACSM) else decode(out.float())[..., :2]).float().cpu()
    meshes = None
    if isinstance(model, ACSM):
        faces = torch.from_numpy(np.array(model.template.faces, np.int64))
        vertices = out.best().vertices[:, 0].float().cpu()
        meshes = shade(vertices, faces, torch.tensor(MESH).expand(vertices.shape[1], 3), SIDE).numpy()
    seen = images.float().cpu().permute(0, 2, 3, 1).numpy() * np.array(STD) + np.array(MEAN)
    rows = []
    for i, photo in enumerate((seen.clip(0, 1) * 255).astype(np.uint8)):
        photo = cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        true = data.keypoints[i]
        tile = _pose(_pose(photo, true[:, :2], true[:, 2] > 0, TRUE), joints[i].numpy(), true[:, 2] > 0, FOUND)
        rows.append([photo, tile])
        if meshes is not None:
            share = meshes[i, ..., 3:] / 255 * 0.8
            rows[-1].append((photo * (1 - share) + meshes[i, ..., :3] * share).astype(np.uint8))
    return rows


def _pose(photo: np.ndarray, points: np.ndarray, visible: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """Joints [K,2] of the network's frame, and the bones between visible ones, over a tile."""
    out = photo.copy()
    at = np.clip((points + 1) / 2 * SIDE, -SIDE, 2 * SIDE).round().astype(int).tolist()
    for a, b in QUADRUPED.edges if len(at) == len(QUADRUPED) else ():
        if visible[a] and visible[b]:
            cv2.line(out, at[a], at[b], colour, 1, cv2.LINE_AA)
    for point, there in zip(at, visible, strict=True):
        if there:
            cv2.circle(out, point, 2, colour, -1, cv2.LINE_AA)
    return out


def _boxes(model: Any, photos: np.ndarray, boxes: list[np.ndarray]) -> list[list[np.ndarray]]:
    weight = next(model.parameters())
    images = normalise(torch.from_numpy(photos[:ROWS]).to(weight.device)).to(weight.dtype)
    rows = []
    for photo, true, (found, _) in zip(
        photos[:ROWS], boxes[:ROWS], decode_boxes(model(images).float().cpu(), 0.3, 20), strict=True
    ):
        tile = photo.copy()
        for some, colour in ((true, TRUE), (found.numpy(), FOUND)):
            for x, y, w, h in np.asarray(some).round().astype(int).tolist():
                cv2.rectangle(tile, (x, y), (x + w, y + h), colour, 1)
        rows.append([photo, tile])
    return rows
