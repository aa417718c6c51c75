"""One photo of the world: from its own seed to its file, in any process."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from sandbox.photo import Seen
from sandbox.scene import WEB, take, take_labelled, template_from


@dataclass(frozen=True)
class Shot:
    """A photo to take: `style` is `labelled` (then `subject` is the split) or `web` (then it is what it shows)."""

    style: str
    subject: str
    index: int
    path: str


@dataclass(frozen=True)
class Taken:
    """What came out: the photo's width and height and the animals in it."""

    width: int
    height: int
    animals: tuple[Seen, ...]


def shoot(task: tuple[Shot, dict[str, Any]]) -> tuple[str, Taken]:
    """Take one photo and write its JPEG; depends on (config, shot) alone."""
    shot, config = task
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rng = generator(config["seed"], shot)
    template, backgrounds = template_from(config.get("rig"), config.get("keypoints")), config.get("backgrounds")
    if shot.style == "labelled":
        as_web = config["labelled"].get("as_web", 0.0)
        photo = take_labelled(template, rng, config["photo_px"], as_web, backgrounds)
    else:
        photo = take(template, WEB, rng, config["photo_px"], shot.subject, backgrounds)
    with open(shot.path, "wb") as f:  # no need for atomic writes: the world is sealed last
        f.write(photo.data)
    h, w = photo.image.shape[:2]
    return shot.path, Taken(w, h, photo.animals)


def generator(seed: int, shot: Shot) -> np.random.Generator:
    """The photo's own random numbers: (seed, set, index)."""
    group = shot.subject if shot.style == "labelled" else "web"
    return np.random.default_rng([seed, zlib.crc32(f"{shot.style}/{group}".encode()), shot.index])


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch and OpenCV inside, as before outside."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
