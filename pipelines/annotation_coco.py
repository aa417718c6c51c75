"""COCO keypoint JSON, in which AP-10K comes too, and the JSON of Animal Pose, which is nearly that."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from pipelines.annotations import Animal, photos_of, pick, read_json
from tables import InputError
from tables.skeleton import joint_order

BOX = "animal_box"  # an annotation's attribute: x,y,w,h


def read_coco(
    path: str, folder: str, category: str | None = None, ids: Container[str] | None = None
) -> list[dict[str, Any]]:
    """Photos of a COCO keypoint file (see `photos_of`).

    Args:
        category: takes the file's category of that name; a file with keypoints for one category alone may call it
            otherwise. None takes all.

    Raises:
        InputError: the file or a photo is missing, the JSON is not COCO's, or the category lacks a joint.
    """
    coco = read_json(path, "COCO keypoint JSON")
    try:
        return photos_of(_animals(path, coco, category), path, folder, ids)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError("source.path", path, f"not COCO keypoint JSON ({type(error).__name__}: {error})") from error


def read_animal_pose(
    path: str, folder: str, category: str | None = None, ids: Container[str] | None = None
) -> list[dict[str, Any]]:
    """Photos of Animal Pose's `keypoints.json` (Cao et al. 2019): boxes by their corners, joints as rows, v 0 or 1."""
    what = "Animal Pose's keypoints.json"
    theirs = read_json(path, what)
    try:
        coco = {
            "images": [{"id": int(i), "file_name": name} for i, name in theirs["images"].items()],
            "categories": theirs["categories"],
            "annotations": [
                {**a, "bbox": [x, y, right - x, bottom - y], "keypoints": [n for k in a["keypoints"] for n in k]}
                for a in theirs["annotations"]
                for x, y, right, bottom in [a["bbox"]]
            ],
        }
        return photos_of(_animals(path, coco, category, {0.0: 0.0, 1.0: 2.0}), path, folder, ids)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("source.path", path, f"not {what} ({type(error).__name__}: {error})") from error


def _animals(
    path: str, coco: Mapping[str, Any], category: str | None, v: Mapping[float, float] | None = None
) -> Iterator[Animal]:
    """The annotations that have joints; KeyError or TypeError for what is not COCO."""
    images = {i["id"]: i for i in coco["images"]}
    orders = {c["id"]: _order(path, c) for c in _chosen(path, coco["categories"], category)}
    for a in coco["annotations"]:
        order, joints = orders.get(a["category_id"]), a.get("keypoints") or []
        if order is None or a.get("iscrowd") or not any(joints[2::3]):
            continue
        if a["image_id"] not in images:
            raise InputError("source.path", path, f"annotation {a.get('id')} names image {a['image_id']}: not listed")
        if len(joints) < 3 * max(order) + 3:
            raise InputError("source.path", path, f"annotation {a.get('id')} has only {len(joints)} keypoint numbers")
        name = images[a["image_id"]]["file_name"]
        yield Animal(
            str(a["image_id"]), name, _box(path, a), pick(joints, order, v), a.get("camera"), a.get("segmentation")
        )


def _box(path: str, annotation: Mapping[str, Any]) -> list[float]:
    """The animal's box: of what `export what=cvat` wrote, from the attribute that carries it through CVAT.

    CVAT has no box for a skeleton, and writes where its joints begin and end instead.
    """
    text = (annotation.get("attributes") or {}).get(BOX)
    if not text:
        return annotation["bbox"]
    try:
        return [float(n) for n in text.split(",")]
    except ValueError:
        raise InputError("source.path", path, f"annotation {annotation.get('id')}: {BOX}={text} is no box") from None


def _chosen(path: str, categories: list[Mapping[str, Any]], name: str | None) -> list[Mapping[str, Any]]:
    """The categories with joints that are wanted."""
    known = [c for c in categories if c.get("keypoints")]
    if not known:
        raise InputError("source.path", path, "no category with a `keypoints` list of joint names")
    wanted = [c for c in known if name is None or str(c["name"]).lower() == name.lower()]
    if not wanted and len(known) > 1:
        raise InputError("category", name, f"{path} has keypoints of {', '.join(str(c['name']) for c in known)}")
    return wanted or known


def _order(path: str, category: Mapping[str, Any]) -> tuple[int, ...]:
    """Where each of our joints stands in the file's list."""
    try:
        return joint_order(category["keypoints"])
    except ValueError as error:
        raise InputError("source.path", path, f"category {category.get('name')} {error}") from None
