"""Detectors behind one small protocol: photos in, boxes, scores and classes out.

A detector is a module of two functions: `identity(model)` says what answers in plain JSON, and `load(model, rules,
device)` makes the detector. What only one of them needs is imported there, inside the function.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np

from tables import InputError, read_file

if TYPE_CHECKING:
    from pipelines.detect_rules import Rules

MODULES = {
    "own": "pipelines.detector_own",
    "onnx": "pipelines.detector_onnx",
    "hf": "pipelines.detector_hf",
    "torchvision": "pipelines.detector_torchvision",
    "detectron2": "pipelines.detector_detectron2",
}
DETECTORS = tuple(MODULES)
BATCH = 16
PIXELS = 1 << 28  # of photos held at once, and the most of one

Item = TypeVar("Item")


class Found(NamedTuple):
    """What was found in one photo.

    Attributes:
        boxes: [N,4] as [x,y,w,h] in pixels of the photo; they may reach beyond it.
        scores: [N] in [0,1].
        classes: [N] places in the detector's `names`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class PhotoDetector(Protocol):
    """How a photo is shrunk, padded and coloured for the network is the detector's own business.

    Attributes:
        names: its classes.
    """

    names: Sequence[str]

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for a photo of this size.

        Photos of one shape share a batch, so that no photo's boxes depend on how much the others make it be padded.
        """
        ...

    def __call__(self, photos: Sequence[np.ndarray]) -> list[Found]:
        """Find in upright RGB photos uint8 [H,W,3] of one shape what scores at least `rules.score`.

        Boxes that overlap are left in, except where a network cannot do without dropping them.
        """
        ...


def identity(kind: str, model: str) -> dict[str, Any]:
    """What makes two detectors the same, as plain JSON.

    Raises:
        InputError: there is no such model.
    """
    return import_module(MODULES[kind]).identity(model)


def open_detector(kind: str, model: str, rules: Rules, device: str) -> PhotoDetector:
    """Load one of `DETECTORS`.

    Raises:
        InputError: there is no such model, or what it needs is not installed.
    """
    return import_module(MODULES[kind]).load(model, rules, device)


def need(package: str, kind: str, install: str) -> Any:
    """Import what a detector needs, or raise InputError that says how to install it."""
    try:
        return import_module(package)
    except (ImportError, OSError, RuntimeError) as error:  # a torchvision of another build raises RuntimeError
        reason = str(error).split("\n", 1)[0]
        raise InputError("detector", kind, f"{package} cannot be imported ({reason}); install it: {install}") from error


def read_model(path: str) -> bytes:
    """A model file in a folder or a bucket.

    Raises:
        InputError: no such file, or it cannot be read.
    """
    return read_file("model", path)


def batches(items: Iterable[tuple[Hashable, int, Item]]) -> Iterator[list[Item]]:
    """Batches of items of one shape, each batch as soon as it is full; what is left at the end, in order of arrival.

    Args:
        items: shape, pixels and the item itself. No more pixels than `PIXELS` wait at once.
    """
    waiting: dict[Hashable, list[Item]] = {}
    held: dict[Hashable, int] = {}
    for shape, pixels, item in items:
        if sum(held.values()) + pixels > PIXELS:
            yield from waiting.values()
            waiting, held = {}, {}
        waiting.setdefault(shape, []).append(item)
        held[shape] = held.get(shape, 0) + pixels
        if len(waiting[shape]) == BATCH:
            del held[shape]
            yield waiting.pop(shape)
    yield from waiting.values()
