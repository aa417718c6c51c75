"""Do rounds pay? The 3D net of every round against round 0, over seeds, on the held-out test split.

Needs no Ray: the same workers and training jobs as `pipelines.selftrain`, called one after the other, so it also runs
on a GPU machine without Ray. The lake must hold the labels and the crawled photos of the sandbox, and the resolved
config of a run (any `selftrain` run leaves both):

    python -m pipelines.selftrain lake=./lake rounds=0
    python -m benchmarks.rounds --lake ./lake --seeds 0 1 2 --out benchmarks/results/rounds.json

Every round starts from the same weights and makes the same number of optimizer steps on batches of the same size, so
more steps cannot pass for better labels. Nothing is chosen by the test split. `wild` is a diagnostic that no training
and no user sees: true keypoints of the web animals that the detector found and no round of this benchmark trained on.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.wild import wild_instances
from models.checkpoint import load_checkpoint, weights_digest
from pipelines.detect_rules import in_force
from pipelines.detect_worker import DetectWorker
from pipelines.keypoint_worker import KeypointWorker
from selection import CRITERIA, select_round
from tables import Dataset, Lake, fingerprint
from trainers.evaluate import evaluate_acsm
from trainers.jobs import run_job, set_threads
from trainers.start import start_keys


def main() -> None:
    args = arguments()
    set_threads(args.threads)
    lake = Lake(args.lake)
    config = yaml.safe_load((Path(args.lake) / "runs" / args.run / "config.yaml").read_text(encoding="utf-8"))
    for item in args.set:
        override(config, item)
    started = time.time()
    rows = []
    for seed in args.seeds:
        rows += one_seed(lake, config, seed, args)
        write(args, config, rows, time.time() - started)
    sys.stdout.write(table(rows) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True)
    parser.add_argument("--run", default="default", help="run whose config.yaml is used")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--seed-2d", type=int, help="one seed for detector and 2D nets: the seeds vary the 3D net alone"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--criteria", nargs="+", default=["cf_cm2", "random"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", nargs="*", default=[], help="config overrides, say train.acsm.plan.steps=400")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def one_seed(lake: Lake, config: dict[str, Any], seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds of all criteria for one seed: rows with `seed, criterion, round` and the metrics of val and test."""
    category = config["category"]

    def train(name: str, former: str | None = None, **extra: Any) -> dict[str, Any]:
        settings = {k: v for k, v in config["train"][name].items() if k != "start"}
        extra |= start_keys(config["train"], name, nets.get("pose"), former)
        mine = seed if name == "acsm" or args.seed_2d is None else args.seed_2d
        job = {"kind": "pose" if name == "aux" else name, "lake": lake.uri, "category": category, "seed": mine}
        began = time.time()
        done = run_job(job | {"settings": settings, **extra}, device=args.device)
        sys.stderr.write(f"seed {seed} {name}: {time.time() - began:.0f} s on {done['items']} items\n")
        return done

    photos = lake.latest("photos", category)
    nets: dict[str, str] = {}
    for name in ("detector", "pose", "aux"):
        nets[name] = train(name)["model"]
    instances = detected(lake, config, photos, nets["detector"])
    template = str(next(Path(lake.uri, "sandbox", config["sandbox"]["name"]).glob("animal*.template")))
    first = train("acsm", template=template, pseudo=None)
    made: list[tuple[str, int, dict[str, Any]]] = []
    used: set[str] = set()
    for criterion in args.criteria:
        made.append((criterion, 0, first))
        done, before = first, None
        for number in range(1, args.rounds + 1):
            before = inferred(lake, category, instances, {**nets, "acsm": done["model"]}, number, before)
            params = {"seed": seed} if "seed" in CRITERIA[criterion].params else {}
            chosen = select_round(lake, before, instances, criterion, config["top_n"], number, **params)
            kept = chosen.read(["instance_id", "selected"])
            used.update(kept.filter(kept["selected"])["instance_id"].to_pylist())
            datasets = {"instances": instances, "pseudo_labels": before, "selections": chosen}
            lineage = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in datasets.items()}
            done = train("acsm", done["model"], template=template, pseudo=lineage)
            made.append((criterion, number, done))
    return in_the_wild(lake, config, instances, used, seed, made)


def in_the_wild(
    lake: Lake,
    config: Mapping[str, Any],
    instances: Dataset,
    used: set[str],
    seed: int,
    made: list[tuple[str, int, dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Rows `seed, criterion, round, items, metrics`, with the split `wild` added to the metrics."""
    truth = str(Path(lake.uri) / "sandbox" / config["sandbox"]["name"] / "truth.parquet")
    wild = wild_instances(instances, truth, int(config["train"]["image_size"]))
    wild = wild.take(np.array([i for i, name in enumerate(wild.ids) if name not in used]))
    rows = []
    for criterion, number, done in made:
        metrics = {**done["metrics"], "wild": evaluate_acsm(load_checkpoint(done["model"]), wild)}  # type: ignore[arg-type]
        rows.append({"seed": seed, "criterion": criterion, "round": number, "items": done["items"], "metrics": metrics})
    return rows


def detected(lake: Lake, config: Mapping[str, Any], photos: Dataset, model: str) -> Dataset:
    """The instances that this detector finds, as `pipelines.detect` makes them."""
    weights = fingerprint({"weights": weights_digest(model), "rules": in_force(config["detect"])})
    out = lake.dataset("instances", config["category"], {"detector": weights, "photos": photos.fingerprint})
    worker = DetectWorker(photos, out, model, weights, config["category"], config["detect"])
    for part in photos.manifests().keys() - out.manifests().keys():
        worker(part, None)
    return out


def inferred(
    lake: Lake, category: str, instances: Dataset, models: Mapping[str, str], number: int, before: Dataset | None
) -> Dataset:
    """The pseudo-labels of a round, as `pipelines.keypoints` makes them."""
    ids = {n: weights_digest(models[n]) for n in ("pose", "aux", "acsm")}
    identity = {"models": ids, "instances": instances.fingerprint}
    out = lake.dataset("pseudo_labels", category, identity, slot=f"round={number}")
    notes: Any = load_checkpoint(models["pose"]).notes
    size = int(notes["job"]["settings"]["image_size"])
    used = {n: models[n] for n in ids}
    worker = KeypointWorker(instances, out, dict(used), dict(ids), number, size, before)
    for part in instances.manifests().keys() - out.manifests().keys():
        worker(part, None)
    return out


def override(config: dict[str, Any], item: str) -> None:
    path, _, value = item.partition("=")
    *folders, name = path.split(".")
    for folder in folders:
        config = config[folder]
    if name not in config:
        raise SystemExit(f"--set {item}: the config has no {name}")
    config[name] = yaml.safe_load(value)


def write(args: argparse.Namespace, config: Mapping[str, Any], rows: list[dict[str, Any]], seconds: float) -> None:
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "cpu"
    out = {
        "command": "python " + " ".join(sys.argv), "device": device, "torch": torch.__version__,
        "seconds": round(seconds), "top_n": config["top_n"], "train": config["train"],
        "table": table(rows).splitlines(), "rows": rows,
    }  # fmt: skip
    Path(args.out).write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and spread (sample standard deviation over seeds) of auc_06_10, and the gain over round 0 seed by seed."""
    splits = ("val", "test", "wild")
    lines = ["criterion  round  items" + "".join(f"  {s + ' auc_06_10':>15}" for s in splits)]
    lines[0] += "".join(f"  {s + ' gain over round 0, each seed':<40}" for s in splits[1:])
    first = {(r["criterion"], r["seed"]): r["metrics"] for r in rows if r["round"] == 0}
    for criterion, number in dict.fromkeys((r["criterion"], r["round"]) for r in rows):
        mine = [r for r in rows if (r["criterion"], r["round"]) == (criterion, number)]
        cells = [f"{criterion:10s} {number:5d}  {round(statistics.mean(r['items'] for r in mine)):5d}"]
        for split in splits:
            values = [r["metrics"][split]["auc_06_10"] for r in mine]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):7.2f} +- {spread:4.2f}")
        for split in splits[1:]:
            score = [(r["metrics"][split]["auc_06_10"], first[criterion, r["seed"]][split]["auc_06_10"]) for r in mine]
            gains = [a - b for a, b in score]
            each = f"{statistics.mean(gains):+6.2f} ({', '.join(f'{g:+.2f}' for g in gains)})"
            cells.append(f"{each:<40}")
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
