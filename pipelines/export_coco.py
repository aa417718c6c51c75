"""COCO keypoints, in the folder that FiftyOne's COCO importer reads and in the archive that CVAT reads."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipelines.annotation_coco import BOX
from pipelines.attribution import NO_LICENSE
from pipelines.export_labels import Selection, inside, save
from pipelines.export_photos import Photo
from tables import QUADRUPED

# Where the joints stand in CVAT's picture of the skeleton, percent: an animal seen from its left, nose to the left.
_AT = (
    (16, 24), (12, 22), (20, 14), (25, 12), (8, 34), (28, 42), (88, 34), (42, 28),
    (34, 58), (42, 55), (76, 56), (84, 53), (32, 90), (42, 87), (76, 90), (86, 87),
)  # fmt: skip


def write_coco(folder: str, found: Selection, photos: Iterator[Photo]) -> None:
    """`labels.json`, which `ingest` and pycocotools read, and the photos in `data`: FiftyOne's COCODetectionDataset."""
    files = {}
    for photo in photos:
        save(os.path.join(folder, "data"), photo)
        files[photo.facts["photo_id"]] = {**photo.facts, "file": photo.file}
    document = to_coco(found, files)
    with open(os.path.join(folder, "labels.json"), "w", encoding="utf-8") as out:
        json.dump(document, out)


def write_cvat(folder: str, found: Selection, photos: Iterator[Photo]) -> None:
    """`coco_keypoints.zip`, a dataset as CVAT's COCO Keypoints 1.0 has it, and the `labels.json` of its project.

    Joints outside the photo are moved to its edge, where a person can take hold of them.
    """
    files = {}
    with zipfile.ZipFile(os.path.join(folder, "coco_keypoints.zip"), "w") as archive:
        for photo in photos:
            archive.writestr(_entry(f"images/default/{photo.file}"), photo.data)
            files[photo.facts["photo_id"]] = {**photo.facts, "file": photo.file}
        there = [inside(a, files[a.photo_id]) for a in found.animals if a.photo_id in files]
        document = to_coco(found._replace(animals=there), files)
        for annotation in document["annotations"]:
            box = ",".join(f"{v:.2f}" for v in annotation["bbox"])
            annotation |= {"segmentation": [], "attributes": {BOX: box}}
        archive.writestr(_entry("annotations/person_keypoints_default.json"), json.dumps(document))
    with open(os.path.join(folder, "labels.json"), "w", encoding="utf-8") as out:
        json.dump(cvat_labels(found.category), out, indent=1)


def to_coco(found: Selection, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The document, of the animals whose photo is among `files`; what COCO does not know is in keys of our own.

    v is 2 or 0 only: a confidence is no visibility. Every joint's confidence is in `keypoint_scores`, their mean in
    `score`, by which results are ranked in COCO's evaluation; the criterion's is in `selection_score`. The
    instance's id is in `wildshape_id`, for FiftyOne reserves `instance_id` and refuses the file.

    Args:
        files: by photo id, what `export_photos.Photo.facts` has, and the `file` name.
    """
    numbers = {p: i + 1 for i, p in enumerate(sorted(files))}
    licences = {pair: i for i, pair in enumerate(sorted({_licence(f) for f in files.values()}))}
    images = [
        {
            "id": numbers[p], "file_name": f["file"], "width": f["width"], "height": f["height"], "coco_url": f["url"],
            "license": licences[_licence(f)], "author": f["author"], "page_url": f["page_url"], "photo_id": p,
        }
        for p, f in sorted(files.items())
    ]  # fmt: skip
    annotations = [
        {
            "id": i + 1, "image_id": numbers[a.photo_id], "category_id": 1, "iscrowd": 0, "bbox": a.bbox,
            "area": round(a.bbox[2] * a.bbox[3], 2), "num_keypoints": int((a.keypoints[:, 2] > 0).sum()),
            "keypoints": [int(n) if j % 3 == 2 else float(n) for j, n in enumerate(a.keypoints.ravel())],
            "keypoint_scores": a.scores, "score": round(float(np.mean(a.scores)), 4), "wildshape_id": a.instance_id,
            "selection_score": a.score, "rank": a.rank,
        }
        for i, a in enumerate(a for a in found.animals if a.photo_id in numbers)
    ]  # fmt: skip
    category = {
        "id": 1, "name": found.category, "supercategory": "animal", "keypoints": list(QUADRUPED.names),
        "skeleton": [[a + 1, b + 1] for a, b in QUADRUPED.edges],
    }  # fmt: skip
    return {
        "info": {"description": found.source, "version": "2"},
        "licenses": [{"id": i, "name": name, "url": url} for (name, url), i in licences.items()],
        "images": images, "annotations": annotations, "categories": [category],
    }  # fmt: skip


def cvat_labels(category: str) -> list[dict[str, Any]]:
    """What goes into the field "Raw" of a CVAT project's labels: a skeleton of our joints, with the attribute `BOX`."""
    joints = list(enumerate(zip(QUADRUPED.names, _AT, strict=True), 1))
    lines = "".join(
        f'<line x1="{_AT[a][0]}" y1="{_AT[a][1]}" x2="{_AT[b][0]}" y2="{_AT[b][1]}" stroke="black" stroke-width="0.5" '
        f'data-type="edge" data-node-from="{a + 1}" data-node-to="{b + 1}"></line>'
        for a, b in QUADRUPED.edges
    )
    circles = "".join(
        f'<circle r="1.5" stroke="black" fill="#b3b3b3" cx="{x}" cy="{y}" stroke-width="0.1" data-type="element node" '
        f'data-element-id="{i}" data-node-id="{i}" data-label-name="{name}"></circle>'
        for i, (name, (x, y)) in joints
    )
    box = {"name": BOX, "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
    points = [{"name": name, "type": "points", "attributes": []} for name in QUADRUPED.names]
    return [
        {"name": category, "type": "skeleton", "attributes": [box], "sublabels": points, "svg": lines + circles},
    ]


def _licence(facts: Mapping[str, Any]) -> tuple[str, str]:
    return facts["license"] or NO_LICENSE, facts["license_url"]


def _entry(name: str) -> zipfile.ZipInfo:
    """A member without the time of its writing: the same selection gives the same bytes."""
    return zipfile.ZipInfo(name)
