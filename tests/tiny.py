"""A lake with everything in it, made in seconds by calling our own workers directly: no Ray, no network, no MLflow."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from omegaconf import OmegaConf

from models.checkpoint import weights_digest
from models.photo import decode_photo
from models.template import Template
from pipelines.ingest import read_coco
from pipelines.keypoint_worker import KeypointWorker
from pipelines.label_worker import LabelWorker, crop_fields, rows_to_table
from pipelines.photo_checks import check_photo
from pipelines.select import select_round
from sandbox.world import World, build_world
from tables import Dataset, Lake, instance_id, schema
from trainers.jobs import run_job

CATEGORY = "quadruped"
WORLD = {
    "name": "tiny", "category": CATEGORY, "seed": 3, "photo_px": 128, "workers": 1, "rig": None, "keypoints": None,
    "labelled": {"train": 8, "val": 4, "test": 10},
    "web": {
        "photos": 22, "reserved": 0.0,
        "shares": {
            "dead": 0.1, "strangers": 0.05, "nothing": 0.0, "duplicate": 0.0, "near_duplicate": 0.0,
            "off_topic": 0.0, "video": 0.0,
        },
    },
}  # fmt: skip
IMAGE_SIZE = 64
TOP_N = 6


def _train_settings() -> dict[str, Any]:
    """The `train` section of `conf/train/small.yaml`, so that a new key needs no second place, made tiny."""
    small = Path(__file__).resolve().parents[1] / "conf" / "train" / "small.yaml"
    plain: Any = OmegaConf.to_container(OmegaConf.create({"train": OmegaConf.load(small)}), resolve=False)
    nets = {"pose": {"width": 8, "channels": 16}, "aux": {"width": 8, "channels": 16}}
    nets["acsm"] = {"width": 8, "features": 32}
    plain["train"]["image_size"] = IMAGE_SIZE
    for name, net in nets.items():
        plain["train"][name]["net"].update(net)
    for name in ("pose", "aux", "detector", "acsm"):
        del plain["train"][name]["start"]
    for name in ("pose", "acsm"):
        plain["train"][name]["plan"].update(steps=2, batch=4, ema=0.5)
    return OmegaConf.to_container(OmegaConf.create(plain), resolve=True)["train"]


def tiny_lake(directory: str | Path, rounds: int = 1, run: str = "default") -> Lake:
    """Labels of three splits, web photos with failures and a duplicate, and a finished run with 2-step networks."""
    lake = Lake(str(directory))
    world = build_world(os.path.join(lake.uri, "sandbox", "tiny"), WORLD)
    template = os.path.join(world.directory, "animal.template")
    Template.from_rig(world.glb, keypoints=world.keypoints).save(template)
    for split in ("train", "val", "test"):
        add_labels(lake, world, split)
    _, instances = add_web(lake, world)
    nets = {name: train(lake, name) for name in ("pose", "aux")}
    done = train(lake, "acsm", template)
    made: list[dict[str, Any]] = [{"round": 0, "model": done["model"], "items": done["items"]}]
    rows = metric_rows(0, done)
    for number in range(1, rounds + 1):
        models = {"pose": nets["pose"]["model"], "aux": nets["aux"]["model"], "acsm": done["model"]}
        pseudo = add_pseudo_labels(lake, instances, models, number)
        chosen = select_round(lake, pseudo, instances, "cf_cm2", TOP_N, number)
        tables = {"instances": instances, "pseudo_labels": pseudo, "selections": chosen}
        lineage = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in tables.items()}
        done = train(lake, "acsm", template, lineage)
        made.append({"round": number, "model": done["model"], "items": done["items"]})
        made[-1] |= {t: d.path for t, d in tables.items()}
        rows += metric_rows(number, done)
    write_run(lake, run, made, rows, nets, template)
    return lake


@functools.cache
def shared_lake() -> Lake:
    """A tiny lake with two rounds that all tests of a session read; copy it before changing it."""
    folder = tempfile.TemporaryDirectory(prefix="wildshape-tiny-")
    atexit.register(folder.cleanup)
    return tiny_lake(folder.name, rounds=2)


def add_labels(lake: Lake, world: World, split: str) -> Dataset:
    """What `ingest` does, in this process."""
    block = read_coco(getattr(world, split), world.labelled_photos)
    identity, slot = {"stage": "ingest", "split": split}, f"{split}:tiny"
    labels, instances, photos = (lake.dataset(t, CATEGORY, identity, slot) for t in ("labels", "instances", "photos"))
    LabelWorker(world.labelled_photos, labels, instances, photos, split, CATEGORY, 352)("all", block)
    for ds in (photos, instances, labels):
        ds.finish("tiny", {"photos": len(block)})
    return labels


def add_web(lake: Lake, world: World) -> tuple[Dataset, Dataset]:
    """The web's photos as crawled, two failures and a duplicate among them, and an instance of every true box."""
    truth = pq.read_table(world.truth, columns=["photo_id", "bbox"]).to_pylist()
    photos = lake.dataset("photos", CATEGORY, {"stage": "crawl", "tiny": True})
    instances = lake.dataset("instances", CATEGORY, {"stage": "detect", "photos": photos.fingerprint})
    crawled: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for path in sorted(Path(world.web_photos).glob("*.jpg")):
        data, url = path.read_bytes(), f"http://web.test/{path.name}"
        verdict, sha = check_photo(data, 1 << 24), hashlib.sha256(data).hexdigest()
        pid = f"yfcc:{path.stem}"
        crawled.append({
            "photo_id": pid, "url": url, "status": "ok", "http_status": 200, "attempts": 1, "bytes": data,
            "sha256": sha, "width": verdict.width, "height": verdict.height, "author": "A. Nyone",
            "license": "Attribution License http://creativecommons.org/licenses/by/2.0/",
        })  # fmt: skip
        for box in (t["bbox"] for t in truth if t["photo_id"] == pid):
            fields = crop_fields(decode_photo(data), box, 352)  # type: ignore[arg-type]
            found.append({
                "instance_id": instance_id(sha, box, "tiny"), "photo_id": pid, "category": CATEGORY, "score": 0.9,
                "detector": "tiny", **fields,
            })  # fmt: skip
    crawled.append({**crawled[0], "photo_id": "yfcc:copy", "duplicate_of": crawled[0]["photo_id"]})
    for n, status in enumerate(("gone", "placeholder")):
        crawled.append(
            {"photo_id": f"yfcc:dead{n}", "url": f"http://web.test/dead{n}", "status": status, "error": status}
        )
    photos.write("all", rows_to_table(crawled, "photos"), schema("photos"))
    photos.finish("tiny", {"wanted": len(crawled)})
    instances.write("all", rows_to_table(found, "instances"), schema("instances"))
    instances.finish("tiny", {"instances": len(found)})
    return photos, instances


def add_pseudo_labels(lake: Lake, instances: Dataset, models: dict[str, str | None], number: int) -> Dataset:
    """What `keypoints` does, in this process."""
    ids = {n: weights_digest(str(p)) for n, p in models.items()}
    identity = {"stage": "keypoints", "round": number, "models": ids, "instances": instances.fingerprint}
    pseudo = lake.dataset("pseudo_labels", CATEGORY, identity, f"round={number}")
    KeypointWorker(instances, pseudo, models, dict(ids), number, IMAGE_SIZE)("all", {})
    pseudo.finish("tiny", {"instances": len(pseudo.read(["instance_id"]))})
    return pseudo


def train(lake: Lake, name: str, template: str | None = None, pseudo: Any = None) -> dict[str, Any]:
    """Two steps of a network, evaluated."""
    kind = "pose" if name == "aux" else name
    job = {"kind": kind, "lake": lake.uri, "category": CATEGORY, "settings": _train_settings()[name], "seed": 0}
    job["run"] = "default"
    if kind == "acsm":
        job |= {"template": template, "start_from": None, "pseudo": pseudo}
    return run_job(job)


def metric_rows(number: int, done: dict[str, Any]) -> list[dict[str, Any]]:
    """A round's rows of `metrics.json`."""
    return [{"round": number, "split": s, "model_id": done["model_id"], **m} for s, m in done["metrics"].items()]


def write_run(lake: Lake, run: str, rounds: list[Any], rows: list[Any], nets: dict[str, Any], template: str) -> None:
    """The run folder as `pipelines.rounds` writes it."""
    folder = f"runs/{run}"
    config = {
        "category": CATEGORY,
        "run": run,
        "rounds": len(rounds) - 1,
        "criterion": "cf_cm2",
        "top_n": TOP_N,
        "seed": 0,
    }
    lake.files.write(f"{folder}/config.yaml", yaml.safe_dump(config).encode())
    lake.files.write(f"{folder}/metrics.json", json.dumps(rows).encode())
    lake.files.write_json(f"{folder}/rounds.json", rounds)
    summary = {
        "category": CATEGORY,
        "template": template,
        "best_round": len(rounds) - 1,
        "rounds": rounds,
        "seconds": 9.0,
    }
    summary["networks"] = {k: v["model"] for k, v in nets.items()}
    summary["metrics_2d"] = {k: v["metrics"] for k, v in nets.items()}
    lake.files.write_json(f"{folder}/run.json", summary)
