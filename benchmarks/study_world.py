"""The lake that the experiments share: labels to draw from, a pool of web animals, and web animals kept apart.

    python -m pipelines.selftrain lake=./lake rounds=0 sandbox=full sandbox.workers=2 sandbox.labelled.train=500 \
        sandbox.labelled.test=300 detect.crop_px=176 train.detector.plan.steps=1500 \
        train.pose.plan.steps=1 train.aux.plan.steps=1 train.acsm.plan.steps=1
    python -m benchmarks.study_world --lake ./lake --out .study_lake/full

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

import pyarrow as pa
import pyarrow.compute as pc

from tables import Dataset, Lake, schema
from trainers.data import label_table

WILD = 5  # every so many photos is kept apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True, help="lake of a selftrain run in the sandbox")
    parser.add_argument("--run", default="default")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    sys.stdout.write(json.dumps(distil(Lake(args.lake), args.run, Path(args.out)), indent=1) + "\n")


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
        "category": category, "world": seal["fingerprint"], "sandbox": seal["config"], "commit": commit_of(),
        "labelled": splits, **{n: len(made[n]) for n in ("pool", "wild")},
    }  # fmt: skip
    (out / "world.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


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


def _is_wild(photo: str) -> bool:
    return int(hashlib.sha256(photo.encode()).hexdigest(), 16) % WILD == 0


if __name__ == "__main__":
    main()
