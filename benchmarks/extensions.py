"""What each extension of the training does to the test AUC, alone on the reference's way of training.

    python -m benchmarks.study_world --lake ./lake --out .study_lake/full     # see there
    python -m benchmarks.extensions --out benchmarks/results/extensions.json

`base` is the reference's recipe (docs/method.md: one camera, squared errors, constant learning rate, last weights,
labels and pseudo-labels drawn alike, no augmentation but jitter and mirroring) on 150 labels and the 300 pseudo-labels
that CF-CM2 keeps, with the learning rate fitted to so few steps. It begins with the trunk of the 2D net where the
reference begins with ImageNet's; `--start random` is the base from nothing. Every arm makes as many steps from the same
pseudo-labels; they differ in the one thing that their name says. `all of ours` is `conf/train/small.yaml`, and `ours
without` takes one thing away from it. Needs no Ray, goes on where it was, and a row made from other settings is made
again.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.study_arms import Arm, Bench, change, pseudo_labels, train_settings
from benchmarks.study_results import Results, chosen, device_name, paired, parser, processes, run_arms, spread

BASE: dict[str, Any] = {
    "start": "pose", "label_share": None, "labels_from": 1.0, "min_confidence": 0.0, "gate": None,
    "pseudo_weight": 1.0, "robust": 0.0, "rigid": 0.043,
    "net.hypotheses": 1, "augment.rotate": 0, "augment.zoom": 0.05, "augment.shift": 0.025, "augment.colour": 0.0,
    "plan.batch": 24, "plan.lr": 5e-4, "plan.schedule": "constant", "plan.weight_decay": 0.0,
    "plan.clip": 0.0, "plan.ema": 0.0,
}  # fmt: skip
ARMS = [
    Arm("labels only", criterion=None),
    Arm("base"),
    Arm("learning rate 2e-4", train={"plan.lr": 2e-4}),
    Arm("learning rate 1e-3", train={"plan.lr": 1e-3}),
    Arm("hypotheses 4", train={"net.hypotheses": 4}),
    Arm("hypotheses 8", train={"net.hypotheses": 8}),
    Arm("cosine schedule", train={"plan.schedule": "cosine"}),
    Arm("EMA 0.99", train={"plan.ema": 0.99}),
    Arm("EMA 0.999", train={"plan.ema": 0.999}),
    Arm("clip 1", train={"plan.clip": 1.0}),
    Arm("weight decay 0.01", train={"plan.weight_decay": 0.01}),
    Arm("robust loss 0.1", train={"robust": 0.1}),
    Arm("min_confidence 0.5", train={"min_confidence": 0.5}),
    Arm("gate 0.1", train={"gate": 0.1}),
    Arm("pseudo_weight 0.3", train={"pseudo_weight": 0.3}),
    Arm("pseudo_weight confidence", train={"pseudo_weight": "confidence"}),
    Arm("label_share 0.5", train={"label_share": 0.5}),
    Arm("labels_from 0.7", train={"labels_from": 0.7}),
    Arm("labels_from 0.3", train={"labels_from": 0.3}),
    Arm("colour 0.3", train={"augment.colour": 0.3}),
    Arm("scale 0.25", train={"augment.zoom": 0.25}),
    Arm("rotate 15", train={"augment.rotate": 15}),
    Arm("start: pose", train={"start": "pose"}),
    Arm("start: random", train={"start": None}),
    Arm("start: former round", train={"start": "former"}),
]
# What is taken away from all of ours at once.
GROUPS: dict[str, tuple[str, ...]] = {
    "start: pose": ("start",), "hypotheses": ("net.hypotheses",), "robust loss": ("robust",),
    "min_confidence": ("min_confidence",), "labels_from": ("labels_from",), "rotate": ("augment.rotate",),
    "scale and shift": ("augment.zoom", "augment.shift"), "colour": ("augment.colour",),
    "cosine schedule": ("plan.schedule",), "EMA": ("plan.ema",), "clip": ("plan.clip",),
    "weight decay": ("plan.weight_decay",),
}  # fmt: skip


def main() -> None:
    made = parser(__doc__, "benchmarks/results/extensions.json")
    made.add_argument("--lr", type=float, default=BASE["plan.lr"], help="learning rate of the base")
    made.add_argument("--start", choices=("pose", "random"), default="pose", help="what the base begins with")
    args = made.parse_args()
    args.began = time.time()
    base = BASE | {"plan.lr": args.lr, "start": None if args.start == "random" else args.start}
    settings = train_settings(args.size, args.width)
    ours = change(settings["acsm"], {"plan.steps": args.steps})
    bench = Bench(args.world, args.work, args.device, settings | dict.fromkeys(("former", "acsm"), change(ours, base)))
    told = {"steps": args.steps, "base": base, "device": device_name(args.device), "world": bench.told()}
    results = Results(args.out, told)
    all_of_ours = {path: _at(ours, path) for path in base}
    changed = [a for a in ARMS if a.name == "base" or any(base[k] != v for k, v in a.train.items()) or not a.criterion]
    arms = [*changed, Arm("all of ours", train=all_of_ours)]
    for name, paths in GROUPS.items():
        arms.append(Arm(f"ours without {name}", train=all_of_ours | {path: base[path] for path in paths}))
    with processes(args.workers) as run:
        list(run([(pseudo_labels, (bench, 150, seed)) for seed in args.seeds]))
        run_arms(run, bench, chosen(arms, args), results, args)
    results.head["arms"] = [a.name for a in arms]
    results.head["table"] = table(results.rows, [a.name for a in arms])
    results.write()


def _at(settings: dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        settings = settings[name]
    return settings


def table(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Mean and sample deviation over seeds, and the difference to base seed by seed."""
    base = [r for r in rows if r["arm"] == "base"]
    lines = [f"{'arm':28s}  {'test':>14}  {'difference':>10}  {'each seed':26s}  {'wild':>14}  {'difference':>10}"]
    for name in names:
        mine = [r for r in rows if r["arm"] == name]
        if not mine:
            continue
        cells = [f"{name:28s}"]
        for split in ("test", "wild"):
            mean, sd = spread([r[split] for r in mine])
            gains = paired(mine, base, split)
            cells.append(f"{mean:6.2f} +- {sd:4.2f}")
            cells.append(f"{spread(gains)[0]:+10.2f}" if gains else "")
            if split == "test":
                cells.append(f"{', '.join(f'{g:+.2f}' for g in gains):26s}")
        lines.append("  ".join(cells).rstrip())
    return lines


if __name__ == "__main__":
    main()
