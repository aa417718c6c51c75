"""A folder of Pascal-style XML files, one animal each, as in the Pascal part of Animal Pose (Cao et al. 2019)."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pipelines.annotations import Animal, photos_of, pick
from tables import InputError
from tables.skeleton import joint_order

_ENDINGS = ("", ".jpg", ".jpeg", ".png")


def read_pascal(
    path: str, folder: str, category: str | None = None, ids: Container[str] | None = None
) -> list[dict[str, Any]]:
    """Photos of a folder of XML files (see `photos_of`), sub-folders too; animals of another category are left out.

    Raises:
        InputError: the folder has no XML files, one of them is none of these, or a photo is missing.
    """
    files = sorted(Path(path).rglob("*.xml"))
    if not files:
        raise InputError("source.path", path, "no folder with .xml files, one for each animal")
    return photos_of(_animals(files, folder, category), path, folder, ids)


def _animals(files: list[Path], folder: str, category: str | None) -> Iterator[Animal]:
    for _, group in groupby(files, key=lambda file: file.parent):
        roots = [(file, _parse(file)) for file in group]
        # A joint that nobody saw is missing from a file: the folder's files together know all the names.
        names = list(dict.fromkeys(joint.get("name", "") for _, root in roots for joint in root.iter("keypoint")))
        try:
            order = joint_order(names)
        except ValueError as error:
            raise InputError("source.path", str(roots[0][0].parent), f"{error}") from None
        for file, root in roots:
            if category and (root.findtext("category") or category).strip().lower() != category.lower():
                continue
            try:
                yield _animal(root, folder, names, order)
            except (KeyError, ValueError, AttributeError) as error:
                reason = f"not a Pascal-style animal ({type(error).__name__}: {error})"
                raise InputError("source.path", str(file), reason) from error


def _parse(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()  # expat, which loads nothing and lets no entity grow without bound
    except ElementTree.ParseError as error:
        raise InputError("source.path", str(file), f"not XML ({error})") from None


def _animal(root: ElementTree.Element, folder: str, names: list[str], order: tuple[int, ...]) -> Animal:
    """AttributeError, KeyError or ValueError for what is no animal."""
    image = root.find("image").text.strip()  # type: ignore[union-attr]
    joints = np.zeros((len(names), 3))
    for joint in root.iter("keypoint"):
        if float(joint.attrib["visible"]) > 0:
            joints[names.index(joint.attrib["name"])] = float(joint.attrib["x"]), float(joint.attrib["y"]), 2
    bounds = {k: float(v) for k, v in root.find("visible_bounds").attrib.items()}  # type: ignore[union-attr]
    # The files of Animal Pose's second part call their ymin xmax.
    box = [bounds["xmin"], bounds["ymin" if "ymin" in bounds else "xmax"], bounds["width"], bounds["height"]]
    name = next((image + e for e in _ENDINGS if os.path.exists(os.path.join(folder, image + e))), image)
    return Animal(image, name, box, pick(joints.ravel().tolist(), order))
