"""The JSON that Label Studio exports: rectangles for animals, with key points as their children."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from pipelines.annotations import Animal, photos_of, read_json
from tables import QUADRUPED, InputError

_WHAT = "Label Studio's JSON export"


def read_label_studio(
    path: str, folder: str, category: str | None = None, ids: Container[str] | None = None
) -> list[dict[str, Any]]:
    """Photos of Label Studio's export "JSON" (see `photos_of`), of tasks that a person submitted.

    Its own export as COCO knows one animal a photo, without its rectangle and in whole pixels. A joint belongs to the
    rectangle that it lies under in the list of regions, or to the only one. Of several annotations of a task the last
    counts, and what was skipped is left out. The photo is the file named last in the task's `image`.

    Args:
        category: takes the rectangles of that label (in any case); None takes all.

    Raises:
        InputError: the file or a photo is missing, it is no such export, or a joint belongs to no rectangle.
    """
    tasks = read_json(path, _WHAT)
    try:
        animals = [animal for task in tasks for animal in _animals(path, task, category)]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError("source.path", path, f"not {_WHAT} ({type(error).__name__}: {error})") from error
    return photos_of(animals, path, folder, ids)


def _animals(path: str, task: Mapping[str, Any], category: str | None) -> Iterator[Animal]:
    file = unquote(task["data"]["image"].rsplit("/", 1)[-1])
    done = [a for a in task["annotations"] if not a.get("was_cancelled")]
    regions = done[-1]["result"] if done else []
    boxes = {r["id"]: r for r in regions if r["type"] == "rectanglelabels"}
    joints: dict[str, dict[str, list[float]]] = {name: {} for name in boxes}
    for r in regions:
        if r["type"] != "keypointlabels":
            continue
        parent, label = r.get("parentID"), r["value"]["keypointlabels"][0]
        if parent not in boxes and len(boxes) != 1:
            fix = f"photo {file}: joint {label} lies under none of its rectangles in the list of regions; drag it there"
            raise InputError("source.path", path, fix)
        if label not in QUADRUPED.names:
            known = ", ".join(QUADRUPED.names)
            raise InputError("source.path", path, f"photo {file}: joint {label} is none of {known}")
        joints[parent if parent in boxes else next(iter(boxes))][label] = [*_pixels(r, "x", "y"), 2.0]
    for name, box in boxes.items():
        if category is None or box["value"]["rectanglelabels"][0].lower() == category.lower():
            flat = [n for joint in QUADRUPED.names for n in joints[name].get(joint, (0.0, 0.0, 0.0))]
            yield Animal(file, file, _pixels(box, "x", "y", "width", "height"), flat)


def _pixels(region: Mapping[str, Any], *names: str) -> list[float]:
    """Places and sizes in pixels: a region has them in percent of the photo's sides."""
    sides = {"x": "original_width", "width": "original_width", "y": "original_height", "height": "original_height"}
    return [region["value"][n] * region[sides[n]] / 100 for n in names]
