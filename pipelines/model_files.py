"""Trained networks in a lake, found by kind."""

from __future__ import annotations

import os
from typing import Any

import pyarrow.fs as pafs

from tables import InputError, Lake


def newest_models(lake: Lake, kind: str, category: str) -> list[dict[str, Any]]:
    """Finished models of a kind (pose, detector, acsm) for a category, newest first: their `model.json`."""
    selector = pafs.FileSelector(lake.files.full(f"models/{kind}"), allow_not_found=True, recursive=True)
    found = [i for i in lake.files.fs.get_file_info(selector) if i.base_name == "model.json"]
    found.sort(key=lambda i: (i.mtime, i.path), reverse=True)
    models = [lake.files.read_json(f"models/{kind}/{i.path.split('/')[-2]}/model.json") for i in found]
    for m in models:  # where the lake lies now, which may not be where the model was trained
        m["model"] = f"{lake.uri}/models/{kind}/{m['model_id']}/model.safetensors"
    return [m for m in models if m["job"]["category"] == category]


def pick_model(lake: Lake, kind: str, category: str, given: str | None, argument: str, skip: str = "") -> str:
    """Full path of the checkpoint given, or the newest of its kind whose path is not `skip`.

    Raises:
        InputError: there is none, or the given file cannot be read as a checkpoint of this kind.
    """
    if given:
        check_model(given, kind, argument)
        return whole_path(given)
    for model in newest_models(lake, kind, category):
        if model["model"] != skip:
            return model["model"]
    raise InputError(argument, "null", f"lake {lake.uri} has no trained {kind} net; run `wildshape {kind}` first")


def whole_path(model: str) -> str:
    """A model that is a file or folder here by its whole path, also behind `hf:`; a name or a URI stays.

    Actors, and those who read a run later, have another working directory.
    """
    prefix = "hf:" if model.startswith("hf:") else ""
    path = model.removeprefix(prefix)
    return prefix + os.path.abspath(path) if os.path.exists(path) else model


def check_model(path: str, kind: str, argument: str) -> None:
    """Raise InputError unless `path` is a readable checkpoint of this kind."""
    open_model(path, kind, argument)


def open_model(path: str, kind: str, argument: str) -> Any:
    """The network of a checkpoint of this kind.

    Raises:
        InputError: naming `argument`: it cannot be read, or is of another kind.
    """
    from models.checkpoint import KINDS, load_checkpoint
    from models.vitpose import ViTPose

    if not isinstance(path, str):
        raise InputError(argument, path, "must be the path of a checkpoint")
    try:
        model = load_checkpoint(path)
    except InputError as error:
        raise InputError(argument, path, error.fix) from error
    if not isinstance(model, (KINDS[kind], ViTPose) if kind == "pose" else KINDS[kind]):
        raise InputError(argument, path, f"holds a {type(model).__name__}, not a {KINDS[kind].__name__}")
    return model
