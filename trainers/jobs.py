"""Training jobs: plain-JSON descriptions of a training, and how one is done. Needs no Ray.

A job names its data and its settings; its fingerprint names the model it makes. A finished model is never trained
again, a half-trained one goes on from its checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from models.acsm import ACSM
from models.checkpoint import checkpoint_bytes
from models.heatmap import Detector, PoseNet
from models.template import Template
from tables import InputError, Lake, fingerprint
from trainers.data import Instances, concatenate, image_weights, load_labelled, load_pseudo_labelled
from trainers.engine import Plan, Task, fit, share_of
from trainers.evaluate import evaluate_acsm, evaluate_detector, evaluate_pose
from trainers.mask_task import MaskTask
from trainers.masks import mask_targets, masks_digest
from trainers.notes import Note, note_taker
from trainers.photos import labelled_photos
from trainers.start import start_identity, start_weights
from trainers.steps import ACSMTask, DetectorTask, PoseTask

SPLITS = ("val", "test")


def run_job(
    job: Mapping[str, Any],
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    tell: Callable[[Note], None] | None = None,
) -> dict[str, Any]:
    """Train what the job describes, evaluate it, and keep both in the lake.

    Args:
        job: `kind` (pose, detector, acsm), `lake`, `category`, `settings` (the kind's section of the `train`
            config with `image_size`), `seed`, and where the weights start (`trainers.start`): `start_from` (path of a
            network of ours, or None), `imagenet` (path or URL of torchvision's weights); for acsm also `template`
            (path) and `pseudo` (identity and slot of a round's `instances`, `pseudo_labels` and `selections`, or
            None). `name` is the section of `settings`, where it is not the kind's (`aux` is a pose net). What else it
            holds, such as `run` and `round`, is noted with the weights and changes nothing.
        tell: called now and then by the first worker; all or none of the workers must give one.

    Returns:
        `model` (path in the lake), `model_id`, `metrics` (split -> metrics), `items` trained on.

    Raises:
        InputError: the lake lacks what the job names; or the training diverged.
    """
    lake = Lake(job["lake"])
    settings = job["settings"]
    if job["kind"] == "detector":
        photos, boxes, digest = labelled_photos(lake, job["category"], "train", int(settings["image_size"]))
        items = labels = len(photos)
    else:
        data, labels = _crop_data(lake, job)
        items, digest = len(data), data.digest
    if not items:
        raise InputError("split", "train", f"no training labels of `{job['category']}` in {lake.uri}")
    identity = {k: job.get(k) for k in ("kind", "settings", "seed")} | start_identity(job)
    identity["data"] = digest
    if job["kind"] == "acsm":
        template = Template.load(job["template"])
        identity["template"] = template.digest
        if settings["net"]["surface"]:
            identity["masks"] = masks_digest(data)
    model_id = fingerprint(identity)
    folder = f"models/{job['kind']}/{model_id}"
    path = f"{lake.uri}/{folder}/model.safetensors"
    known = lake.files.read_json(f"{folder}/model.json")
    if known:
        return {**known, "model": path}  # the lake may have moved since

    torch.manual_seed(int(job["seed"]))
    size = int(settings["image_size"])
    net = {k: settings["net"][k] for k in settings["net"]}
    task: Task
    if job["kind"] == "detector":
        task = DetectorTask(Detector(**net), photos, boxes, settings["augment"], device)
    elif job["kind"] == "pose":
        task = PoseTask(PoseNet(**net), data, size, settings["augment"], device, sigma=float(settings["sigma"]))
    else:
        task = _acsm_task(ACSM(template, image_size=size, **net), data, labels, settings, device)
    start_weights(task.model, job)
    plan = Plan(seed=int(job["seed"]), **settings["plan"])
    examples = (photos, boxes) if job["kind"] == "detector" else data
    share = share_of(plan.batch, rank, world)
    on_step = None if tell is None else note_taker(task, plan.steps, examples, tell, rank, share)
    try:
        model = fit(task, plan, (lake.files, f"{folder}/checkpoint.pt"), rank, world, device, on_step)
    except FloatingPointError as error:  # on every worker at the same step; another attempt would end there too
        raise InputError(
            f"train.{job.get('name', job['kind'])}.plan.lr", plan.lr, f"{error}: give a lower one"
        ) from error
    metrics = evaluate_labelled(job["kind"], model, lake, job["category"], size, rank, world)
    known = {
        "model": path, "model_id": model_id, "kind": job["kind"], "metrics": metrics, "items": items, "job": dict(job),
    }  # fmt: skip
    if rank == 0:
        notes = {"job": dict(job), "metrics": metrics, "items": items, "labels": labels, "data": digest}
        lake.files.write(f"{folder}/model.safetensors", checkpoint_bytes(model, notes))
        lake.files.write_json(f"{folder}/model.json", known)
        _forget(lake, f"{folder}/checkpoint.pt")
    return known


def _acsm_task(acsm: ACSM, data: Instances, labels: int, settings: Mapping[str, Any], device: str) -> ACSMTask:
    """Keypoints alone, or masks as well where the network has a map head.

    Raises:
        InputError: masks are asked for, and no training label has one; or labels are to be a part of the batches, and
            there are none.
    """
    for key in ("label_share", "labels_from"):
        alone = {"label_share": None, "labels_from": 1.0}[key]
        if not labels and settings[key] != alone:
            fix = f"there are no training labels: ingest some, or use {'null' if alone is None else alone}"
            raise InputError(f"train.acsm.{key}", settings[key], fix)
    rest: dict[str, Any] = {
        "rigid": float(settings["rigid"]), "weight": float(settings["keypoint_weight"]),
        "robust": float(settings["robust"]), "labels": labels, "label_share": settings["label_share"],
        "labels_from": float(settings["labels_from"]),
        "image_weights": image_weights(data, labels, settings.get("pseudo_weight", 1.0)),
    }  # fmt: skip
    size, augment = int(settings["image_size"]), settings["augment"]
    if acsm.surface_head is None:
        return ACSMTask(acsm, data, size, augment, device, **rest)
    targets = mask_targets(data)
    if not len(targets.masks):
        raise InputError("train.acsm.net.surface", True, "no training label has a mask; ingest some, or use false")
    return MaskTask(acsm, data, size, augment, device, targets, settings["mask_losses"], **rest)


def _crop_data(lake: Lake, job: Mapping[str, Any]) -> tuple[Instances, int]:
    """What a crop network trains on, labels first, and how many of them are labels."""
    size = int(job["settings"]["image_size"])
    data = load_labelled(lake, job["category"], "train", size)
    labels = len(data)
    pseudo = job.get("pseudo")
    if pseudo:
        tables = ("instances", "pseudo_labels", "selections")
        made = {t: lake.dataset(t, job["category"], pseudo[t]["identity"], pseudo[t]["slot"]) for t in tables}
        gate = job["settings"].get("gate")
        chosen = load_pseudo_labelled(made["instances"], made["pseudo_labels"], made["selections"], size, gate)
        chosen.keypoints[chosen.keypoints[..., 2] < float(job["settings"]["min_confidence"])] = 0
        data = concatenate(data, chosen)
    return data, labels


def evaluate_labelled(
    kind: str, model: Any, lake: Lake, category: str, size: int, rank: int = 0, world: int = 1
) -> dict[str, dict[str, Any]]:
    """What a network of a kind is worth on the labelled validation and test images, by split; empty ones left out.

    Args:
        size: pixels of the square that it looks at.
        rank, world: of workers that share the images.
    """
    found: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        if kind == "detector":
            photos, boxes, _ = labelled_photos(lake, category, split, size)
            if len(photos):
                found[split] = evaluate_detector(model, photos, boxes, rank=rank, world=world)
            continue
        data = load_labelled(lake, category, split, size)
        if len(data) and kind == "acsm":
            found[split] = evaluate_acsm(model, data, rank, world)
        elif len(data):
            found[split] = evaluate_pose(model, data, size, rank, world)
    return found


def _forget(lake: Lake, path: str) -> None:
    if lake.files.exists(path):
        lake.files.fs.delete_file(lake.files.full(path))


def set_threads(threads: int) -> None:
    """Fix what numbers on CPU depend on: torch's and OpenCV's thread counts."""
    import cv2

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
