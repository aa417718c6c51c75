"""What a network's weights are before its first step: random, ImageNet's, or another network's. Needs no Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from models.acsm import ACSM
from models.checkpoint import load_checkpoint, weights_digest
from models.imagenet import imagenet_file, load_imagenet
from models.resnet import ResNet
from tables import InputError

STARTS: dict[str, tuple[str | None, ...]] = {"acsm": ("pose", "former", "imagenet", None)}
OTHERS: tuple[str | None, ...] = ("imagenet", None)


def start_keys(
    train: Mapping[str, Any], name: str, pose: str | None = None, former: str | None = None
) -> dict[str, str | None]:
    """The keys of a job that say where its network starts, by `train.<name>.start`.

    Args:
        train: the `train` section of the config.
        name: pose, aux, detector or acsm.
        pose: the 2D network that `start: pose` takes the trunk of.
        former: the network that `start: former` goes on from; without one (round 0) it is as `start: pose`.

    Raises:
        InputError: no ImageNet weights are named for the network's depth.
    """
    start, depth = train[name]["start"], train[name]["net"]["depth"]
    if start == "imagenet":
        source = train["imagenet"].get(f"resnet{depth}")
        if not isinstance(source, str) or not source:
            raise InputError(f"train.imagenet.resnet{depth}", source, "give a file or a URL of torchvision's weights")
        # Workers have another working directory.
        return {"start_from": None, "imagenet": source if "://" in source else os.path.abspath(source)}
    return {"start_from": {"pose": pose, "former": former or pose, None: None}[start]}


def check_start(name: str, settings: Mapping[str, Any]) -> None:
    """Raise InputError for a `train.<name>.start` that is unknown, or that the network's width rules out."""
    known = STARTS.get(name, OTHERS)
    if settings["start"] not in known:
        fix = f"use {', '.join('null' if k is None else k for k in known)}"
        raise InputError(f"train.{name}.start", settings["start"], fix)
    if settings["start"] == "imagenet" and settings["net"]["width"] != 64:
        fix = f"ImageNet weights are of width 64: set train.{name}.net.width=64"
        raise InputError(f"train.{name}.net.width", settings["net"]["width"], fix)


def check_trunk(pose: Any, train: Mapping[str, Any]) -> None:
    """Raise InputError unless the 3D network can start as `train.acsm.start` says from this 2D network."""
    start, net = train["acsm"]["start"], train["acsm"]["net"]
    if start not in ("pose", "former"):
        return
    trunk = getattr(pose, "backbone", nn.Identity()).state_dict()
    ours = ResNet(net["depth"], net["width"]).state_dict()
    if {k: v.shape for k, v in trunk.items()} != {k: v.shape for k, v in ours.items()}:
        fix = "the 2D network has not the trunk of train.acsm.net: use imagenet or null"
        raise InputError("train.acsm.start", start, fix)


def start_identity(job: Mapping[str, Any]) -> dict[str, str | None]:
    """What a model's name holds of where it starts: hashes of weights, not paths."""
    came: dict[str, str | None] = {"start_from": weights_digest(job["start_from"]) if job.get("start_from") else None}
    if job.get("imagenet"):
        came["imagenet"] = weights_digest(imagenet_file(job["imagenet"]))
    return came


def start_weights(model: nn.Module, job: Mapping[str, Any]) -> None:
    """Fill a fresh network with what its job starts from: `start_from` a network of ours, `imagenet` a trunk.

    A 2D network gives its trunk. One of the same kind gives all its weights, but not its optimizer's state.

    Raises:
        InputError: it cannot be read, or is of another make.
    """
    if job.get("imagenet"):
        load_imagenet(model.backbone, job["imagenet"])  # type: ignore[arg-type]
    path = job.get("start_from")
    if not path:
        return
    given: Any = load_checkpoint(path)
    ours: Any = model
    if isinstance(model, ACSM) and not isinstance(given, ACSM):
        given, ours = getattr(given, "backbone", None), model.backbone
    try:
        ours.load_state_dict(given.state_dict())
    except (RuntimeError, AttributeError) as error:
        fix = "its network, or its trunk, differs from train.acsm.net in depth, width or heads"
        raise InputError("start_from", path, fix) from error
