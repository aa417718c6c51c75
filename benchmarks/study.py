"""The study: what pseudo-labels are worth, how many, chosen by which criterion, over how many rounds.

    python -m benchmarks.study_world --lake ./lake --out .study_lake/full     # see there
    python -m benchmarks.study --steps 3000 --out benchmarks/results/study.json
    python -m benchmarks.study_page                                      # docs/study.md and its figures

Every arm makes the same number of optimizer steps on batches of the same size, from the same kind of start; only `twice
the steps` says otherwise. Labels and pseudo-labels are drawn alike (the reference's mixing); the rest is
`conf/train/small.yaml` at 128 px. A seed draws the labels too. Nothing is chosen by the test split. Needs no Ray, goes
on where it was, and a row made from other settings is made again.
"""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import numpy as np

from benchmarks.selection import WRONG
from benchmarks.study_arms import Arm, Bench, change, draw, judged, kept_by, net, pseudo_labels, train_settings
from benchmarks.study_results import Results, chosen, device_name, parser, processes, run_arms
from models.checkpoint import load_checkpoint
from selection import VIEW_NAMES, aurc_table, pseudo_label_pck, score, view

KEPT = (100, 300, 1000)
PAPER = ("kp_conf", "cf_mt", "cf_cm", "cf_cm2")
CONTROLS = ("random", "oracle")
# Ours at 300; `calibrated_conf` orders as `kp_conf` does.
OURS = (
    "rank_fusion", "agreement", "small_loss", "visible_cm2", "heatmap_cm2", "pck_cm2", "pck_mt", "pck_cm",
)  # fmt: skip
RULES = {"gate 0.1": {"gate": 0.1}, "60 a view": {"per_view": 60}, "38 a view": {"per_view": 38}}
# The recipe of `train=small` ends on labels alone, from 0.3 of the steps on.
ENDS = (0.3, 0.7)
SIDES = [VIEW_NAMES.index(side) for side in ("left", "right")]
LABELS = (50, 150, 500)
ROUNDS = 4
# Labels and pseudo-labels alike to the end, every joint by its confidence: the reference's mixing.
MIXING = {"label_share": None, "labels_from": 1.0, "min_confidence": 0.0}

ROUND_0 = Arm("labels only", criterion=None)


def arms_of(rounds: int) -> list[Arm]:
    """Every arm; loops of so many rounds, of which the first are `cf_cm2 300` and that with 38 a view."""
    quota = RULES["38 a view"]
    if rounds == 1:
        return [Arm("cf_cm2 300"), *ARMS]
    return [Arm("loop", rounds=rounds), Arm("loop, 38 a view", rounds=rounds, rules=quota), *ARMS]


ARMS = [
    ROUND_0,
    *(Arm(f"labels only {n}", n, None) for n in LABELS if n != 150),
    Arm("labels only, twice the steps", criterion=None, longer=2),
    Arm("all web", criterion="all"),
    *(Arm(f"{c} {n}", criterion=c, keep=n) for c in PAPER + CONTROLS for n in KEPT if (c, n) != ("cf_cm2", 300)),
    Arm("cf_cm2 300, shuffled", shuffled=True),
    *(Arm(f"cf_cm2 300 with {n} labels", n) for n in LABELS if n != 150),
    *(Arm(f"{c} 300", criterion=c) for c in OURS),
    *(Arm(f"cf_cm2 300, {name}", rules=rules) for name, rules in RULES.items()),
    *(Arm(f"{c} 300, 60 a view", criterion=c, rules=RULES["60 a view"]) for c in ("rank_fusion", "oracle")),
    Arm("cf_cm2 1000, 200 a view", keep=1000, rules={"per_view": 200}),
    *(Arm(f"cf_cm2 300, labels alone from {at}", train={"labels_from": at}) for at in ENDS),
    Arm(f"all web, labels alone from {ENDS[0]}", criterion="all", train={"labels_from": ENDS[0]}),
]
SPECIES = (
    "labels only", "all web", "random 300", "oracle 300", "kp_conf 300", "cf_mt 300", "cf_cm 300", "cf_cm2 300", "loop",
    "rank_fusion 300", "cf_cm2 300, 60 a view", "cf_cm2 300, 38 a view",
)  # fmt: skip


def main() -> None:
    made = parser(__doc__, "benchmarks/results/study.json")
    made.add_argument("--species", action="store_true", help="the short list, for the repeat on another animal")
    made.add_argument("--rounds", type=int, default=ROUNDS, help="of the loop")
    args = made.parse_args()
    args.began = time.time()
    settings = train_settings(args.size, args.width)
    acsm = change(settings["acsm"], {"plan.steps": args.steps, **MIXING})
    bench = Bench(args.world, args.work, args.device, settings | {"former": acsm, "acsm": acsm})
    results = Results(args.out, {"settings": settings | {"acsm": acsm}, "device": device_name(args.device)})
    results.head["world"] = bench.told()
    arms = chosen([a for a in arms_of(args.rounds) if not args.species or a.name in SPECIES], args)
    draws = [(n, s) for n in sorted({a.labels for a in arms}) for s in args.seeds]
    with processes(args.workers) as run:
        list(run([(net, (bench, name, *d)) for name, d in product(("pose", "aux"), draws)]))
        list(run([(pseudo_labels, (bench, *d)) for d in draws]))
        known = [j for j in results.head.get("judged", []) if j["mark"] == bench.mark(ROUND_0)]
        more = run([(judge, (bench, s)) for s in args.seeds if s not in {j["seed"] for j in known}])
        results.head["judged"] = sorted([*known, *more], key=lambda j: j["seed"])
        results.write()
        run_arms(run, bench, arms, results, args)


def judge(bench: Bench, seed: int) -> dict[str, Any]:
    """How good the first round's pseudo-labels are, how well each criterion finds the good ones, and how hard it is."""
    labels = ROUND_0.labels
    _, pool = draw(bench, labels, seed)
    rows = judged(bench, pseudo_labels(bench, labels, seed), pool)
    error = score("oracle", rows)
    views, other = view(rows), rows["truth_keypoints"].is_null().to_numpy()
    true = rows.drop_columns("keypoints").rename_columns({"truth_keypoints": "keypoints"}).filter(~other)
    charged = np.where(np.isfinite(error), np.minimum(error, WRONG), WRONG)
    asked = [Arm(c, criterion=c, keep=n) for c in (*PAPER, *CONTROLS) for n in KEPT]
    asked += [Arm(c, criterion=c) for c in OURS] + [Arm(f"cf_cm2, {name}", rules=r) for name, r in RULES.items()]
    quality = []
    for arm in asked:
        kept = kept_by(arm, rows, seed).sort_by("instance_id")["selected"].to_numpy()
        # `rows` are sorted by id as well: the order of a dataset that is read.
        good = pseudo_label_pck(rows, kept & ~other, (0.1,))[0]
        quality.append(
            {"criterion": arm.name, "kept": arm.keep, "found": int(kept.sum()), "pck_0.1": round(float(good), 2),
             "other_animals": round(100 * float(other[kept].mean()), 2), "sides": sides(views[kept])}
        )  # fmt: skip
    notes = {n: load_checkpoint(net(bench, n, labels, seed)).notes["metrics"] for n in ("pose", "aux")}  # type: ignore[index]
    return {
        "seed": seed, "mark": bench.mark(ROUND_0), "pool": len(rows),
        "other_animals": round(100 * float(other.mean()), 2), "sides": sides(views), "true_sides": sides(view(true)),
        "error_deciles": np.round(np.quantile(error[np.isfinite(error)], np.linspace(0.1, 0.9, 9)), 4).tolist(),
        "pck_0.1": round(float(pseudo_label_pck(rows, ~other, (0.1,))[0]), 2),
        "test_2d": {n: round(m["test"]["auc_06_10"], 2) for n, m in notes.items()},
        "aurc": [
            row | {"aurc": round(row["aurc"], 4), "captured": round(row["captured"], 1)}
            for row in aurc_table(rows, charged).to_pylist()
        ],
        "selected": quality,
    }  # fmt: skip


def sides(views: np.ndarray) -> float:
    """Percentage of straight left or right among the views [N] that can be told."""
    return round(100 * float(np.isin(views[views >= 0], SIDES).mean()), 1)


if __name__ == "__main__":
    main()
