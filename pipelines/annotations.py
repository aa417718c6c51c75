"""What the readers of annotation files share: labelled animals, gathered by photo, from files that may be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tables import InputError


class Animal(NamedTuple):
    """One labelled animal as its file has it.

    Attributes:
        image_id: the file's own name of the photo.
        file: of the photo, relative to the folder of photos.
        bbox: x, y, w, h in pixels.
        keypoints: 48 numbers: x, y, v of our joints in our order, v in {0, 1, 2}.
        camera: s, tx, ty in pixels and a wxyz quaternion from template axes to image axes, or None.
        segmentation: as in COCO, or None.
    """

    image_id: str
    file: str
    bbox: Sequence[float]
    keypoints: list[float]
    camera: list[float] | None = None
    segmentation: Any = None


def photos_of(animals: Iterable[Animal], path: str, folder: str, ids: Container[str] | None) -> list[dict[str, Any]]:
    """Photos with the animals that have a labelled joint, sorted by file name.

    Args:
        path: of the annotations, for messages.
        folder: of the photos.
        ids: of the photos to take; None takes all.

    Returns:
        plain JSON: `file`, and `animals` with `bbox`, `keypoints`, `camera`, `segmentation`.

    Raises:
        InputError: a box is empty, a photo is missing, or nothing is labelled.
    """
    found: dict[str, dict[str, Any]] = {}
    for animal in animals:
        if not any(animal.keypoints[2::3]) or (ids is not None and animal.image_id not in ids):
            continue
        if len(animal.bbox) != 4 or min(animal.bbox[2:]) <= 0:
            raise InputError("source.path", path, f"photo {animal.image_id} has an empty box {list(animal.bbox)}")
        if not {0.0, 1.0, 2.0}.issuperset(animal.keypoints[2::3]):
            raise InputError("source.path", path, f"photo {animal.image_id}: a joint's v must be 0, 1 or 2")
        row = animal._asdict()
        del row["image_id"]
        name = row.pop("file")
        found.setdefault(name, {"file": name, "animals": []})["animals"].append(row)
    missing = [n for n in found if not os.path.exists(os.path.join(folder, n))]
    if missing:
        raise InputError("source.images", folder, f"{len(missing)} photos are missing, the first is {missing[0]}")
    if not found:
        raise InputError("source.path", path, "no annotation has a labelled joint")
    return [found[n] for n in sorted(found)]


def read_json(path: str, what: str) -> Any:
    """The content of an annotation file.

    Args:
        what: the file should be, for messages.

    Raises:
        InputError: no such file, or not JSON.
    """
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise InputError("source.path", path, "no such file") from None
    except OSError as error:
        raise InputError("source.path", path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError("source.path", path, f"not {what} ({type(error).__name__}: {error})") from error


def pick(keypoints: Sequence[float], order: Sequence[int], v: Mapping[float, float] | None = None) -> list[float]:
    """48 numbers x, y, v of our joints out of a file's x, y, v list; a joint that the file has not is unlabelled.

    Args:
        order: where each of our joints stands in the file, -1 for nowhere (`tables.skeleton.joint_order`).
        v: what the file's v mean in ours; None takes them as they are.
    """
    out: list[float] = []
    for j in order:
        x, y, seen = (float(n) for n in keypoints[3 * j : 3 * j + 3]) if j >= 0 else (0.0, 0.0, 0.0)
        out += [x, y, seen if v is None else v[seen]]
    return out
