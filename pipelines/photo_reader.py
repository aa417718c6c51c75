"""Photos to animals in 3D with plain calls: detector, 2D net, 3D net, in batches. Needs no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from models.checkpoint import image_size_of
from models.crops import SEEN, stored_pixels, window
from models.photo import decode_photo
from models.predict import in_photo, predict_acsm, predict_pose
from pipelines.careful import Careful
from pipelines.detect_rules import Rules, sift, wanted_classes
from pipelines.detectors import BATCH, PIXELS, Found, batches, open_detector
from pipelines.label_worker import crop_fields
from pipelines.model_files import open_model
from pipelines.photo_checks import check_photo
from trainers.data import decode_crops

NOTHING = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))


class Animal(NamedTuple):
    """What the networks say of one animal.

    Attributes:
        bbox, score, name: [x, y, w, h] in photo pixels, the detector's score and its class.
        window: x0, y0, side in photo pixels of what the 3D net saw; its frame [-1, 1] spans it.
        keypoints: [K, 3] photo pixels and confidence by the 2D net; None without one.
        keypoints_3d: [K, 2] photo pixels, the posed template's.
        camera: [7] weak perspective in the window's frame; prob: of this camera among the net's
            hypotheses; hypothesis: which of them it is.
        angles: [P] radians.
        vertices: [V, 3] the posed template in the window's frame: x right, y down, z away.
    """

    bbox: np.ndarray
    score: float
    name: str
    window: np.ndarray
    keypoints: np.ndarray | None
    keypoints_3d: np.ndarray
    camera: torch.Tensor
    prob: float
    hypothesis: int
    angles: torch.Tensor
    vertices: np.ndarray


class Seen(NamedTuple):
    """A photo: `ok` with its animals, best first; `no_animal`; or why it could not be looked at.

    Attributes:
        place: which of the paths given it is.
        status: `ok`, `no_animal`, `unreadable`, `truncated`, `not_image`, `bomb`, `undecodable`, or `poison` where it
            made the detector raise.
        image: [H, W, 3] RGB, None where it cannot be decoded.
    """

    place: int
    path: str
    status: str
    error: str = ""
    image: np.ndarray | None = None
    animals: Sequence[Animal] = ()


class PhotoReader:
    """The networks, loaded once.

    Args:
        category: of the 3D net, or what to call the animal where it does not say.

    Attributes:
        acsm: the 3D net; pose: the 2D net or None.

    Raises:
        InputError: a network cannot be loaded, or the detector does not know the animal.
    """

    def __init__(self, acsm: str, pose: str | None, kind: str, detector: str, rules: Rules, category: str) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.acsm = open_model(acsm, "acsm", "acsm").to(self.device)
        self.pose = open_model(pose, "pose", "pose").to(self.device) if pose else None
        self.net, self.rules = open_detector(kind, detector, rules, self.device), rules
        self.find: Careful[np.ndarray, Found] = Careful(self.net, BATCH)
        self.category = str(self.acsm.notes.get("job", {}).get("category") or category)
        self.wanted = wanted_classes(self.net.names, rules.classes, self.category)

    def __call__(self, paths: Sequence[str]) -> Iterator[Seen]:
        """Look at photos; each appears once, a batch at a time, so not in the order given."""
        failed: list[Seen] = []
        for batch in batches(self._opened(paths, failed)):
            answers = self.find([seen.image for seen in batch])  # type: ignore[misc]
            yield from self._animals(batch, answers)
            yield from failed
            failed.clear()
        yield from failed

    def _opened(self, paths: Sequence[str], failed: list[Seen]) -> Iterator[tuple[tuple[int, int], int, Seen]]:
        for place, path in enumerate(paths):
            try:
                with open(path, "rb") as file:
                    data = file.read()
            except OSError as error:
                failed.append(Seen(place, path, "unreadable", error.strerror or str(error)))
                continue
            verdict = check_photo(data, PIXELS)
            image = decode_photo(data) if verdict.status == "ok" else None
            if image is None:
                status = "undecodable" if verdict.status == "ok" else verdict.status
                failed.append(Seen(place, path, status, verdict.error or "its pixels cannot be decoded"))
                continue
            shape = image.shape[:2]
            yield self.net.shape(*shape), shape[0] * shape[1], Seen(place, path, "ok", image=image)

    def _animals(self, batch: Sequence[Seen], answers: Sequence[Found | Exception]) -> Iterator[Seen]:
        left: list[Found] = []
        for seen, answer in zip(batch, answers, strict=True):
            height, width = seen.image.shape[:2]  # type: ignore[union-attr]
            found = NOTHING if isinstance(answer, Exception) else answer
            left.append(sift(found, self.wanted, (width, height), self.rules, Counter()))
        crops = [
            crop_fields(seen.image, box, self.rules.crop_px)["crop"]  # type: ignore[arg-type]
            for seen, found in zip(batch, left, strict=True)
            for box in found.boxes
        ]
        told = iter(self._told(crops, window(np.concatenate([f.boxes for f in left]), SEEN)))
        for seen, answer, found in zip(batch, answers, left, strict=True):
            if isinstance(answer, Exception):
                yield seen._replace(status="poison", error=f"{type(answer).__name__}: {str(answer)[:200]}")
                continue
            animals = [
                Animal(box, float(score), self.net.names[name], **next(told))
                for box, score, name in zip(found.boxes, found.scores, found.classes, strict=True)
            ]
            yield seen._replace(status="ok" if animals else "no_animal", animals=animals)

    def _told(self, crops: Sequence[bytes], windows: np.ndarray) -> list[dict[str, Any]]:
        """The other fields of `Animal` for stored crops (JPEG) and the windows [N, 3] that the networks see of them."""
        if not crops:
            return []
        out = predict_acsm(self.acsm, decode_crops(crops, stored_pixels(self.acsm.config["image_size"])), mesh=True)
        joints: Any = [None] * len(crops)
        if self.pose is not None:
            size = image_size_of(self.pose)
            joints = in_photo(predict_pose(self.pose, decode_crops(crops, stored_pixels(size)), size), windows)
        reprojected = in_photo(out.keypoints[:, 0], windows)
        camera, angles, vertices, prob = (f[:, 0].cpu() for f in (out.camera, out.angles, out.vertices, out.prob))
        return [
            {
                "window": windows[i], "keypoints": joints[i], "keypoints_3d": reprojected[i], "camera": camera[i],
                "prob": float(prob[i]), "hypothesis": int(out.hypothesis[i]), "angles": angles[i],
                "vertices": vertices[i].numpy(),
            }
            for i in range(len(crops))
        ]  # fmt: skip
