"""Fill the tables and figures of docs/study.md from the results of `benchmarks.study` and `benchmarks.extensions`.

    python -m benchmarks.study_page

The text is written by hand; what lies between `<!-- name -->` and `<!-- end -->` is made here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.study import CONTROLS, ENDS, KEPT, LABELS, OURS, PAPER, ROUNDS, RULES
from benchmarks.study_results import paired, spread

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "study.md"
IMAGES = ROOT / "docs" / "images"
SPLITS = ("test", "wild")
FIRST = {"cf_cm2 300": "loop, round 1"}  # the first round stands for the arm
QUOTA = "cf_cm2 300, 38 a view"
QUOTAS = {300: QUOTA, 1000: "cf_cm2 1000, 200 a view"}
STARS: dict[str, Any] = {"linestyle": "none", "marker": "*", "ms": 11, "capsize": 2}
CRITICAL = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # Student's t by the number of seeds
COLOURS = dict(
    zip((*PAPER, *CONTROLS), ("#b07aa1", "#4e79a7", "#59a14f", "#e15759", "#9c9c9c", "#222222"), strict=True)
)


class Rows:
    """The rows of a results file by arm."""

    def __init__(self, name: str) -> None:
        self.file = json.loads((RESULTS / name).read_text(encoding="utf-8"))

    def of(self, arm: str) -> list[dict[str, Any]]:
        names = {r["arm"] for r in self.file["rows"]}
        name = arm if arm in names else FIRST.get(arm)
        return [r for r in self.file["rows"] if r["arm"] == name]


def told(values: Sequence[float], digits: int = 2) -> str:
    """`mean ± deviation`, the one value, or a dash."""
    if not values:
        return "–"
    mean, sd = spread(values)
    return f"{mean:.{digits}f} ± {sd:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def gain(mine: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], split: str) -> str:
    """Mean of the differences, and each seed's."""
    found = paired(mine, base, split)
    if not found:
        return "–"
    return f"{spread(found)[0]:+.2f} ({', '.join(f'{g:+.1f}' for g in found)})"


def cells(mine: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> list[str]:
    """Of test, then of wild: mean and deviation, and the gain over the base."""
    return [x for p in SPLITS for x in (told([r[p] for r in mine]), gain(mine, base, p))]


def verdict(mine: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], split: str) -> str:
    """What differences over seeds say: `holds` by a paired t-test at 5 %, `likely` if all agree beyond their spread."""
    found = paired(mine, base, split)
    if len(found) < 3:
        return "too few seeds"
    mean, sd = spread(found)
    if abs(mean) <= sd or len({g > 0 for g in found}) > 1:
        return "cannot be told"
    sure = abs(mean) * len(found) ** 0.5 > CRITICAL[len(found)] * sd
    return ("holds" if sure else "likely") if mean > 0 else ("reversed" if sure else "likely reversed")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in out)


def claims(s: Rows) -> str:
    """What the paper says, and what this data says of it."""
    best, quota, labels = s.of("cf_cm2 300"), s.of(QUOTA), s.of("labels only")
    twice, random = s.of("labels only, twice the steps"), s.of("random 300")
    pairs = [
        ("300 pseudo-labels by CF-CM² beat labels alone", best, labels),
        ("... beat labels alone for twice the steps", best, twice),
        ("... beat all web animals", best, s.of("all web")),
        ("... beat 300 at random", best, random),
        ("300 at random beat all web animals", random, s.of("all web")),
        ("300 by CF-CM², at most 38 a view, beat labels alone", quota, labels),
        ("... beat labels alone for twice the steps", quota, twice),
        ("... beat all web animals", quota, s.of("all web")),
        ("... beat 300 at random", quota, random),
        ("... beat 300 without a quota", quota, best),
        ("60 a view beat none: by CF-CM²", s.of("cf_cm2 300, 60 a view"), best),
        ("... by rank_fusion", s.of("rank_fusion 300, 60 a view"), s.of("rank_fusion 300")),
        ("... by the truth (oracle)", s.of("oracle 300, 60 a view"), s.of("oracle 300")),
        ("CF-CM² beats keypoint confidence at 300", best, s.of("kp_conf 300")),
        ("CF-CM² beats CF-MT at 300", best, s.of("cf_mt 300")),
        ("CF-CM² beats CF-CM at 300", best, s.of("cf_cm 300")),
        ("the truth (oracle) selects better than CF-CM² at 300", s.of("oracle 300"), best),
        ("... both at most 60 a view", s.of("oracle 300, 60 a view"), s.of("cf_cm2 300, 60 a view")),
        ("rank_fusion beats CF-CM² at 300", s.of("rank_fusion 300"), best),
        ("... beats all web animals", s.of("rank_fusion 300"), s.of("all web")),
        ("1,000 by CF-CM² beat 300", s.of("cf_cm2 1000"), best),
        ("... with at most 200 a view beat 1,000 without", s.of("cf_cm2 1000, 200 a view"), s.of("cf_cm2 1000")),
        ("joints of another animal (shuffled) are worse", best, s.of("cf_cm2 300, shuffled")),
        ("50 labels + 300 pseudo-labels beat 50 labels", s.of("cf_cm2 300 with 50 labels"), s.of("labels only 50")),
        ("50 labels + 300 pseudo-labels beat 150 labels", s.of("cf_cm2 300 with 50 labels"), labels),
        ("500 labels + 300 pseudo-labels beat 500 labels", s.of("cf_cm2 300 with 500 labels"), s.of("labels only 500")),
        ("round 4 beats round 1", s.of(f"loop, round {ROUNDS}"), best),
        ("... with at most 38 a view", s.of(f"loop, 38 a view, round {ROUNDS}"), s.of("loop, 38 a view, round 1")),
    ]
    return table(
        ["claim", "test", "", "wild", ""],
        [[text, *(x for p in SPLITS for x in (gain(a, b, p), verdict(a, b, p)))] for text, a, b in pairs if a and b],
    )


def amounts(s: Rows) -> str:
    base = s.of("labels only")
    arms = ["labels only", "labels only, twice the steps", "all web", f"all web, labels alone from {ENDS[0]}"]
    made = [(a, s.of(a)) for a in (*arms, "cf_cm2 300, shuffled")]
    made += [(f"`{c}` {n}", s.of(f"{c} {n}")) for c in (*PAPER, *CONTROLS) for n in KEPT]
    lines = [[name, *cells(mine, base)] for name, mine in made if mine]
    return table(["150 labels and", "test", "gain over labels only", "wild", "gain over labels only"], lines)


def ours(s: Rows) -> str:
    """Our own criteria and rules at 300, against labels alone and against CF-CM²."""
    base, best, lines = s.of("labels only"), s.of("cf_cm2 300"), []
    changed = [f"cf_cm2 300, {c}" for c in (*RULES, *(f"labels alone from {at}" for at in ENDS))]
    changed += [
        "rank_fusion 300, 60 a view", "oracle 300", "oracle 300, 60 a view", "cf_cm2 1000", "cf_cm2 1000, 200 a view",
    ]  # fmt: skip
    for arm in ("cf_cm2 300", "kp_conf 300", *(f"{c} 300" for c in OURS), *changed):
        mine = s.of(arm)
        against = [verdict(mine, best, p) if arm != "cf_cm2 300" else "" for p in SPLITS]
        lines.append([arm, *cells(mine, base), *against])
    head = ["kept", "test", "over labels only", "wild", "over labels only", "test, beats CF-CM²", "wild"]
    return table(head, lines)


def labels(s: Rows) -> str:
    lines = []
    for n in LABELS:
        base = s.of("labels only" if n == 150 else f"labels only {n}")
        more = s.of("cf_cm2 300" if n == 150 else f"cf_cm2 300 with {n} labels")
        lines.append([str(n), *(x for p in SPLITS for x in (told([r[p] for r in base]), gain(more, base, p)))])
    return table(["labels", "test, labels only", "+ 300 by `cf_cm2`", "wild, labels only", "+ 300 by `cf_cm2`"], lines)


def rounds(s: Rows) -> str:
    base = s.of("labels only")
    made = [("0", base)]
    made += [(f"{n}{of}", s.of(f"loop{of}, round {n}")) for of in ("", ", 38 a view") for n in range(1, ROUNDS + 1)]
    lines = [[name, *cells(mine, base)] for name, mine in made if mine]
    return table(["round", "test", "gain over round 0", "wild", "gain over round 0"], lines)


def aurc(s: Rows) -> str:
    judged = s.file["judged"]
    areas: dict[str, list[dict[str, Any]]] = {}
    for row in (r for j in judged for r in j["aurc"]):
        areas.setdefault(row["criterion"], []).append(row)
    kept = [k for j in judged for k in j["selected"]]
    columns = [(f"PCK@0.1 of the best {n}", n, "pck_0.1") for n in KEPT]
    if "sides" in kept[0]:
        columns.append(("of 300 seen from a side by the 2D net's joints, %", 300, "sides"))
    lines = []
    for name, mine in sorted(areas.items(), key=lambda item: spread([r["aurc"] for r in item[1]])[0]):
        lines.append([f"`{name}`", told([r["aurc"] for r in mine], 4), told([r["captured"] for r in mine], 1)])
        for _, n, key in columns:
            lines[-1].append(told([k[key] for k in kept if (k["criterion"], k["kept"]) == (name, n)], 1))
    return table(["criterion", "AURC", "captured, %", *(head for head, _, _ in columns)], lines)


def quotas(s: Rows) -> str:
    """What is chosen with a quota of views and without, and what it trains."""
    base, lines = s.of("labels only"), []
    for rule in ("", *(f", {name}" for name, rule in RULES.items() if "per_view" in rule)):
        name = f"cf_cm2{rule}"
        found = [k for j in s.file["judged"] for k in j["selected"] if (k["criterion"], k["kept"]) == (name, 300)]
        seen = [told([k[key] for k in found], 1) for key in ("pck_0.1", "other_animals", "sides")]
        lines.append([name, *seen, *(gain(s.of(f"cf_cm2 300{rule}"), base, p) for p in SPLITS)])
    head = ["300 by", "PCK@0.1", "other animals, %", "seen from a side, %", "test, over labels only", "wild"]
    return table(head, lines)


def difficulty(s: Rows) -> str:
    judged = s.file["judged"]
    deciles = [told([j["error_deciles"][i] for j in judged], 3) for i in (0, 2, 4, 6, 8)]
    world = s.file["world"]
    lines = [
        ["labelled animals (train, val, test)", ", ".join(str(world["labelled"][k]) for k in ("train", "val", "test"))],
        ["web animals in the pool, kept apart", f"{world['pool']}, {world['wild']}"],
        ["of the pool no animal of the species, %", told([j["other_animals"] for j in judged], 1)],
        ["2D net on test, `auc_06_10`", told([j["test_2d"]["pose"] for j in judged])],
        ["pseudo-labels of the pool, PCK@0.1", told([j["pck_0.1"] for j in judged])],
        ["error of an animal (share of its box), deciles 1, 3, 5, 7, 9", "; ".join(deciles)],
    ]
    for key, by in (("sides", "by the 2D net's joints"), ("true_sides", "by the true joints")):
        if key in judged[0]:
            lines.append([f"of the pool seen from a side {by}, %", told([j[key] for j in judged], 1)])
    return table(["", ""], lines)


def extensions(s: Rows) -> str:
    """Against `base`; what is taken away from all of ours against that."""
    lines = []
    for name in sorted({r["arm"] for r in s.file["rows"]}, key=s.file["arms"].index):
        base = s.of("all of ours" if name.startswith("ours without") else "base")
        lines.append([name, *cells(s.of(name), base), verdict(s.of(name), base, "test")])
    return table(["arm", "test", "difference", "wild", "difference", "on test"], lines)


def species(s: Rows) -> str:
    base, lines = s.of("labels only"), []
    for name in dict.fromkeys(["labels only", *sorted(r["arm"] for r in s.file["rows"])]):
        lines.append([name, *cells(s.of(name), base)])
    return table(["arm", "test", "gain over labels only", "wild", "gain over labels only"], lines)


OTHERS = (
    ("extensions", extensions, "extensions.json"),
    ("extensions_random", extensions, "extensions_random.json"),
    ("species", species, "study_horse.json"),
    ("species_claims", claims, "study_horse.json"),
    ("species_difficulty", difficulty, "study_horse.json"),
    ("easy_difficulty", difficulty, "study_easy.json"),
    ("easy_claims", claims, "study_easy.json"),
    ("easy", amounts, "study_easy.json"),
    ("cpu_claims", claims, "study_cpu.json"),
    ("cpu_quotas", quotas, "study_cpu.json"),
    ("cpu_rounds", rounds, "study_cpu.json"),
    ("longer", claims, "study_long.json"),
    ("longer_arms", species, "study_long.json"),
)


def figures(s: Rows) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9))
    for axis, split in zip(axes, SPLITS, strict=True):
        for i, c in enumerate((*PAPER, *CONTROLS)):
            points = [(n, *spread([r[split] for r in s.of(f"{c} {n}")])) for n in KEPT]
            x, y, e = (list(v) for v in zip(*points, strict=True))
            at = [n * 1.035 ** (i - 2.5) for n in x]
            style = ":" if c in CONTROLS else "-"
            axis.errorbar(at, y, e, label=c, color=COLOURS[c], linestyle=style, marker="o", ms=4, capsize=2)
        quota = [(n * 0.88, *spread([r[split] for r in s.of(arm)])) for n, arm in QUOTAS.items()]
        axis.errorbar(*zip(*quota, strict=True), label="cf_cm2, by views", color=COLOURS["cf_cm2"], **STARS)
        for arm, style in (("labels only", "--"), ("all web", "-.")):
            mean, sd = spread([r[split] for r in s.of(arm)])
            axis.axhline(mean, color="#777777", linestyle=style, lw=1, label=arm)
            axis.axhspan(mean - sd, mean + sd, color="#777777", alpha=0.10, lw=0)
        axis.set(xscale="log", xticks=KEPT, xticklabels=KEPT, xlabel="pseudo-labels kept", ylabel=f"{split} auc_06_10")
        axis.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.subplots_adjust(left=0.07, right=0.835, bottom=0.13, top=0.97, wspace=0.22)
    figure.savefig(IMAGES / "study_criteria.png", dpi=110)

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    arms = ["labels only", *(f"loop, round {n}" for n in range(1, ROUNDS + 1))]
    for axis, split in zip(axes, SPLITS, strict=True):
        mean, sd = zip(*(spread([r[split] for r in s.of(a)]) for a in arms), strict=True)
        for seed in sorted({r["seed"] for r in s.of("labels only")}):
            each = [[r[split] for r in s.of(a) if r["seed"] == seed] for a in arms]
            axis.plot([i for i, v in enumerate(each) if v], [v[0] for v in each if v], color="#bbbbbb", lw=1)
        axis.errorbar(range(len(arms)), mean, sd, color="#e15759", marker="o", ms=4, capsize=2)
        axis.set(xticks=range(len(arms)), xlabel="round", ylabel=f"{split} auc_06_10")
    figure.tight_layout()
    figure.savefig(IMAGES / "study_rounds.png", dpi=110)
    plt.close("all")


def main() -> None:
    study = Rows("study.json")
    blocks = {f.__name__: f(study) for f in (claims, amounts, ours, labels, rounds, aurc, difficulty)}
    for name, make, file in OTHERS:
        if (RESULTS / file).exists():
            blocks[name] = make(Rows(file))
    text = PAGE.read_text(encoding="utf-8")
    for name, block in blocks.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S
        )
    PAGE.write_text(text, encoding="utf-8")
    figures(study)


if __name__ == "__main__":
    main()
