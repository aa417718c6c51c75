"""The lake that the experiments share: labels to draw from, a pool of web animals, and web animals kept apart.

    python -m pipelines.selftrain lake=./lake rounds=0 sandbox=full sandbox.workers=2 sandbox.labelled.train=500 \
        sandbox.labelled.test=300 detect.crop_px=176 train.detector.plan.steps=1500 \
        train.pose.plan.steps=1 train.aux.plan.steps=1 train.acsm.plan.steps=1
    python -m benchmarks.study_world --lake ./lake --out .study_lake/full --picture docs/images/study_world.jpg

Another species before real photos, a downloaded horse's rig and the parts of COCO photos without animals:

    python tests/rig_keypoints.py Horse.glb horse.json
    python -m benchmarks.backgrounds --coco instances.json --photos images --out backgrounds
    python -m pipelines.selftrain lake=./horse rounds=0 sandbox.category=horse sandbox.rig=Horse.glb \
        sandbox.keypoints=horse.json sandbox.backgrounds=backgrounds sandbox.photo_px=320 \
        sandbox.labelled.train=250 sandbox.labelled.test=150 sandbox.labelled.as_web=0.5 sandbox.web.photos=1800 \
        detect.crop_px=176 train.detector.plan.steps=1500 \
        train.pose.plan.steps=1 train.aux.plan.steps=1 train.acsm.plan.steps=1
    python -m benchmarks.study_world --lake ./horse --out .study_lake/horse

Takes from a sandbox run what the experiments need and no more: labelled crops, the detector's crops of web photos, the
template and the sealed truth, so that it fits on its way to a GPU machine. Photos are told apart by a hash of their id:
the animals of every fifth are `wild`, never in the pool, and only ever evaluated on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.photo import decode_photo
from tables import Dataset, Lake, join_rows, schema, write_atomically
from trainers.data import label_table

WILD = 5  # every so many photos is kept apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="lake of a selftrain run in the sandbox")
    parser.add_argument("--run", default="default")
    parser.add_argument("--out", required=True)
    parser.add_argument("--picture", help="JPEG of some of its crops: two rows of test images, four of the pool")
    args = parser.parse_args()
    told = distil(Lake(args.lake), args.run, Path(args.out))
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    if args.picture:
        write_atomically(args.picture, sheet(Lake(args.out), told["category"], told["world"]))


def distil(lake: Lake, run: str, out: Path) -> dict[str, Any]:
    """Write `out` and return what `world.json` says of it."""
    rounds = lake.files.read_json(f"runs/{run}/rounds.json")
    done = lake.files.read_json(f"runs/{run}/run.json")
    category = done["category"]
    found = lake.find("instances", category, rounds[0]["instances"].rpartition("/")[2])
    worlds = list(Path(lake.files.local("sandbox")).glob("*/_world.json"))
    if len(worlds) != 1:
        raise SystemExit(f"--lake {lake.uri}: has {len(worlds)} sandboxes, give one with a run in the only sandbox")
    seal = json.loads(worlds[0].read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(done["template"], out / "animal.template")
    shutil.copy(worlds[0].parent / "truth.parquet", out / "truth.parquet")

    labelled = label_table(lake, category)
    web = found.read()
    web = web.filter(pc.is_null(web["duplicate_of"]))
    apart = pa.array([_is_wild(p) for p in web["photo_id"].to_pylist()])
    made = {"labelled": labelled, "pool": web.filter(pc.invert(apart)), "wild": web.filter(apart)}
    for name, rows in made.items():
        commit(instances(Lake(str(out)), category, seal["fingerprint"], name), rows)
    labels = Lake(str(out)).dataset("labels", category, {"world": seal["fingerprint"]})
    commit(labels, labelled)
    splits = {v["values"]: v["counts"] for v in pc.value_counts(labelled["split"]).to_pylist()}
    told = {
        "category": category, "world": seal["fingerprint"], "sandbox": _shown(seal["config"]), "commit": commit_of(),
        "labelled": splits, **{n: len(made[n]) for n in ("pool", "wild")},
    }  # fmt: skip
    (out / "world.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def sheet(world: Lake, category: str, name: str, across: int = 12, px: int = 96) -> bytes:
    """Crops of a world as JPEG, drawn by chance: two rows of labelled test images above four of the pool."""
    labels = world.dataset("labels", category, {"world": name}).read(["instance_id", "split"])
    crops = instances(world, category, name, "labelled").read(["instance_id", "crop"])
    labels = join_rows(labels, crops, "instance_id")
    pool = instances(world, category, name, "pool").read(["crop"])["crop"]
    rng, tiles = np.random.default_rng(0), []
    for crops, rows in ((labels.filter(pc.equal(labels["split"], "test"))["crop"], 2), (pool, 4)):
        for i in rng.choice(len(crops), across * rows, replace=False):
            photo: Any = decode_photo(crops[int(i)].as_py())
            tiles.append(cv2.resize(photo, (px, px), interpolation=cv2.INTER_AREA))
    lines = [np.hstack(tiles[at : at + across]) for at in range(0, len(tiles), across)]
    gap = np.full((px // 8, across * px, 3), 255, np.uint8)
    return cv2.imencode(".jpg", np.vstack([*lines[:2], gap, *lines[2:]])[..., ::-1])[1].tobytes()


def instances(lake: Lake, category: str, world: str, name: str) -> Dataset:
    """Where the `labelled`, `pool` or `wild` animals of a world lie."""
    return lake.dataset("instances", category, {"world": world}, slot=name)


def commit(dataset: Dataset, rows: pa.Table) -> Dataset:
    """Write rows as the one part of a dataset, unless that was done."""
    if dataset.finished() is None:
        dataset.write("all", rows, schema(dataset.table))
        dataset.finish(dataset.fingerprint, {"rows": len(rows)})
    return dataset


def commit_of() -> str:
    """The commit that is checked out; empty where there is no git."""
    try:
        told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told.stdout.strip()


def _shown(config: dict[str, Any]) -> dict[str, Any]:
    """A sandbox's settings with the names of files alone: where they lie is nobody's business."""
    paths = ("rig", "keypoints", "backgrounds")
    return {k: Path(v).name if k in paths and v else v for k, v in config.items()}


def _is_wild(photo: str) -> bool:
    return int(hashlib.sha256(photo.encode()).hexdigest(), 16) % WILD == 0


if __name__ == "__main__":
    main()
