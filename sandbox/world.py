"""The embedded world: a template, a labelled set, a web of photos behind YFCC rows, and its sealed truth.

Layout under the directory:
    template/animal.glb, template/keypoints.json
    labelled/photos/*.jpg, labelled/{train,val,test}.json           COCO keypoint JSON
    web/photos/*, web/rows.tsv, web/origin.json                     what the crawler reads and meets
    truth.parquet                                                   the web's truth: diagnostics only
    _world.json                                                     written last: the fingerprint of all this
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import models
import sandbox
from sandbox import web
from sandbox.background import photos_of
from sandbox.labelled import SPLITS, coco
from sandbox.shots import Shot, shoot, single_thread
from tables import InputError, fingerprint, write_atomically

# The modules that decide what a world looks like: a change in any of them is another world.
GEOMETRY = ("articulation", "camera", "photo", "raster")
GENERATOR = (
    "animal", "background", "individual", "labelled", "lens", "photo", "scene", "shots", "surface", "web", "world",
    "yfcc",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Where things lie; `host` is the name the download URLs carry."""

    directory: str
    fingerprint: str
    glb: str
    keypoints: str
    labelled_photos: str
    train: str
    val: str
    test: str
    rows: str
    origin: str
    web_photos: str
    truth: str
    host: str = web.HOST


def locate(directory: str, config: Mapping[str, Any]) -> World:
    """The paths of a world, built or not."""
    root = os.path.abspath(directory)
    return World(
        directory=root,
        fingerprint=_identity(config),
        glb=os.path.join(root, "template", "animal.glb"),
        keypoints=os.path.join(root, "template", "keypoints.json"),
        labelled_photos=os.path.join(root, "labelled", "photos"),
        **{split: os.path.join(root, "labelled", f"{split}.json") for split in SPLITS},
        rows=os.path.join(root, "web", "rows.tsv"),
        origin=os.path.join(root, "web", "origin.json"),
        web_photos=os.path.join(root, "web", "photos"),
        truth=os.path.join(root, "truth.parquet"),
    )


def build_world(directory: str, config: Mapping[str, Any]) -> World:
    """Build the world, or find it built: the same config and generator write the same bytes on any number of workers.

    Files of another world in the same directory are overwritten where the names agree and left alone where not.

    Args:
        directory: made if need be.
        config: the keys of conf/sandbox/small.yaml.

    Raises:
        InputError: a size makes no sense.
    """
    check(config)
    world = locate(directory, config)
    seal = os.path.join(world.directory, "_world.json")
    if _read_json(seal).get("fingerprint") == world.fingerprint:
        return world
    with contextlib.suppress(FileNotFoundError):
        os.unlink(seal)  # from here until the end the world is half written
    for folder in (world.labelled_photos, world.web_photos):
        os.makedirs(folder, exist_ok=True)
    _write_template(world, config)
    plan = web.plan(config)
    shots = [
        *(
            Shot("labelled", split, i, os.path.join(world.labelled_photos, f"{split}_{i:05d}.jpg"))
            for split in SPLITS
            for i in range(config["labelled"][split])
        ),
        *(Shot("web", p.subject, p.index, os.path.join(world.web_photos, p.file)) for p in plan if p.subject),
    ]
    results = dict(_develop(shots, config))
    for split in SPLITS:
        own = [(s, results[s.path]) for s in shots if s.style == "labelled" and s.subject == split]
        write_atomically(getattr(world, split), json.dumps(coco(own, split, config["category"])).encode())
    web.write(world.web_photos, world.rows, world.origin, world.truth, plan, results, config)
    summary = {"fingerprint": world.fingerprint, "config": _plain(config), "photos": len(shots)}
    write_atomically(seal, (json.dumps(summary, indent=1) + "\n").encode())
    return world


def check(config: Mapping[str, Any]) -> None:
    """Raise InputError if a size makes no sense."""
    for key, value, low in (
        ("sandbox.photo_px", config["photo_px"], 96),
        ("sandbox.workers", config["workers"], 1),
        ("sandbox.web.photos", config["web"]["photos"], 1),
        *((f"sandbox.labelled.{s}", config["labelled"][s], 1) for s in SPLITS),
    ):
        if int(value) < low:
            raise InputError(key, value, f"must be at least {low}")
    if (config.get("rig") is None) != (config.get("keypoints") is None):
        raise InputError(
            "sandbox.rig", config.get("rig"), "give sandbox.rig and sandbox.keypoints together, or neither"
        )
    for key in ("rig", "keypoints"):
        path = config.get(key)
        if path is not None and not os.path.isfile(path):
            raise InputError(f"sandbox.{key}", path, "no such file")
    folder = config.get("backgrounds")
    if folder is not None and not (os.path.isdir(folder) and photos_of(folder)):
        raise InputError("sandbox.backgrounds", folder, "must be a folder with JPEG, PNG or WebP photos in it")
    as_web = config["labelled"].get("as_web", 0.0)
    if not 0 <= as_web <= 1:
        raise InputError("sandbox.labelled.as_web", as_web, "is a share: 0 to 1")
    total = sum(config["web"]["shares"].values())
    if total > 1:
        raise InputError("sandbox.web.shares", dict(config["web"]["shares"]), f"they add up to {total:.2f}, above 1")


def _develop(shots: list[Shot], config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Photograph every shot and write its file, `workers` at a time; in this process if that is one."""
    from rich.progress import track

    tasks = [(s, _plain(config)) for s in shots]
    if config["workers"] == 1:
        with single_thread():
            yield from track(map(shoot, tasks), "sandbox photos", len(tasks))
        return
    before = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))  # read by the spawned workers when they import numpy and torch
    try:
        with multiprocessing.get_context("spawn").Pool(config["workers"]) as pool:
            yield from track(pool.imap_unordered(shoot, tasks, 4), "sandbox photos", len(tasks))
    finally:
        for k, v in before.items():
            os.environ.pop(k, None) if v is None else os.environ.update({k: v})


def _write_template(world: World, config: Mapping[str, Any]) -> None:
    if config.get("rig"):
        for source, target in ((config["rig"], world.glb), (config["keypoints"], world.keypoints)):
            with open(source, "rb") as f:
                write_atomically(target, f.read())
        return
    from sandbox.animal import animal, write_rig

    write_rig(animal(), world.glb, world.keypoints)


def _identity(config: Mapping[str, Any]) -> str:
    from tables import file_digest

    code = hashlib.sha256()
    for room, names in ((sandbox, GENERATOR), (models, GEOMETRY)):
        for name in names:
            with open(os.path.join(os.path.dirname(room.__file__ or ""), f"{name}.py"), "rb") as f:
                code.update(f.read())
    made_of = {k: v for k, v in _plain(config).items() if k not in ("workers", "directory")}
    for key in ("rig", "keypoints"):
        if made_of.get(key):
            made_of[key] = file_digest(made_of[key])
    if made_of.get("backgrounds"):
        made_of["backgrounds"] = [file_digest(path) for path in photos_of(made_of["backgrounds"])]
    return fingerprint({"config": made_of, "generator": code.hexdigest()})


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings (say, OmegaConf) as plain dictionaries."""
    return {str(k): _plain(v) if isinstance(v, Mapping) else v for k, v in config.items()}


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
