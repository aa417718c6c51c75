"""Label Studio: tasks with predictions, and the labelling interface that shows them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as Xml

from pipelines.attribution import NO_AUTHOR, NO_LICENSE
from pipelines.export_labels import Animal, Selection, inside, save
from pipelines.export_photos import Photo
from tables import QUADRUPED

BOX, JOINT, PHOTO = "box", "joint", "photo"  # names of the interface's parts
FOLDER = "photos"
_URL = f"/data/local-files/?d={FOLDER}/"  # of Label Studio's local storage, whose root is the exported folder


def write_label_studio(folder: str, found: Selection, photos: Iterator[Photo]) -> None:
    """`tasks.json` with the animals as predictions, `interface.xml`, and the photos in `photos`."""
    animals: dict[str, list[Animal]] = {}
    for animal in found.animals:
        animals.setdefault(animal.photo_id, []).append(animal)
    tasks = []
    for photo in photos:
        save(os.path.join(folder, FOLDER), photo)
        tasks.append(task(photo, animals[photo.facts["photo_id"]], found))
    with open(os.path.join(folder, "tasks.json"), "w", encoding="utf-8") as out:
        json.dump(tasks, out)
    with open(os.path.join(folder, "interface.xml"), "w", encoding="utf-8") as out:
        out.write(interface(found.category) + "\n")


def task(photo: Photo, animals: list[Animal], found: Selection) -> dict[str, Any]:
    """A photo with its animals: each a rectangle, and its labelled joints as points that name it as their parent.

    Places are in percent of the photo's sides, as Label Studio has them; joints outside the photo are moved to its
    edge.
    """
    facts, regions, scores = photo.facts, [], []
    sides = {"original_width": facts["width"], "original_height": facts["height"], "image_rotation": 0}
    for animal in (inside(a, facts) for a in animals):
        x, y, w, h = (100 * v / facts[side] for v, side in zip(animal.bbox, ("width", "height") * 2, strict=True))
        value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [found.category]}
        box = {"id": animal.instance_id, "type": "rectanglelabels", "from_name": BOX, "to_name": PHOTO, "value": value}
        regions.append(box | sides)
        for name, (u, v, seen), score in zip(QUADRUPED.names, animal.keypoints.tolist(), animal.scores, strict=True):
            if seen:
                point = {"x": 100 * u / facts["width"], "y": 100 * v / facts["height"], "width": 0.5}
                region = {"id": f"{animal.instance_id}-{name}", "type": "keypointlabels", "from_name": JOINT}
                region |= {"to_name": PHOTO, "parentID": animal.instance_id}
                regions.append({**region, **sides, "score": score, "value": {**point, "keypointlabels": [name]}})
        scores += animal.scores
    data = {k: facts[k] for k in ("photo_id", "author", "license", "license_url", "page_url")}
    data |= {"image": _URL + photo.file, "credit": credit(photo)}
    prediction = {"model_version": found.source, "score": sum(scores) / len(scores), "result": regions}
    return {"data": data, "predictions": [prediction]}


def credit(photo: Photo) -> str:
    """Whose photo it is, in a line."""
    name, licence = (photo.facts[k] for k in ("author", "license"))
    return f"{name or NO_AUTHOR}, {licence or NO_LICENSE}"


def interface(category: str) -> str:
    """The labelling interface, XML: the photo with its credit, a rectangle for an animal, a point for each joint."""
    view = Xml.Element("View")
    Xml.SubElement(view, "Header", value="$credit", size="5")
    Xml.SubElement(view, "Image", name=PHOTO, value="$image", zoom="true")
    boxes = Xml.SubElement(view, "RectangleLabels", name=BOX, toName=PHOTO)
    Xml.SubElement(boxes, "Label", value=category)
    joints = Xml.SubElement(view, "KeyPointLabels", name=JOINT, toName=PHOTO)
    for i, name in enumerate(QUADRUPED.names):
        Xml.SubElement(joints, "Label", value=name, model_index=str(i))
    Xml.indent(view)
    return Xml.tostring(view, "unicode")
