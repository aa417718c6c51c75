"""The `select` command: rank one round's pseudo-labels and say what was kept."""

from __future__ import annotations

from typing import Any

from selection import HIGHER_IS_BETTER, VIEW_NAMES, check, jaccard, policy_of, select_round, viewpoint_histogram
from tables import Dataset, InputError, Lake
from trainers.app import command


def find_round(lake: Lake, category: str, round: int | None) -> tuple[Dataset, int]:
    """The newest finished `pseudo_labels` that hold this round, and the round; None: the newest and its last round.

    Raises:
        InputError: there are none.
    """
    found = lake.datasets("pseudo_labels", category)
    found.sort(key=lambda d: (d.finished() or {})["finished_at"], reverse=True)
    known: set[int] = set()
    for dataset in found:
        rounds = {r or 0 for r in dataset.read(["round"])["round"].unique().to_pylist()}
        if round in rounds or (round is None and rounds):
            return dataset, max(rounds) if round is None else round
        known |= rounds
    fix = f"lake {lake.uri} has finished pseudo_labels of rounds {sorted(known)} only; run `wildshape keypoints` first"
    raise InputError("round", round, fix)


def show(kept: Any, title: str) -> None:
    """Print what was kept: counts and the quartiles of the score."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    chosen, score = kept["selected"].to_numpy(), kept["score"].to_numpy()
    best_last = len(kept) and HIGHER_IS_BETTER[kept["criterion"][0].as_py()]
    table = Table("rows", "n", "best", "25 %", "median", "75 %", "worst", title=title)
    for name, rows in (("all", np.ones_like(chosen)), ("selected", chosen), ("rejected", ~chosen)):
        values = np.sort(score[rows & np.isfinite(score)])[:: -1 if best_last else 1]
        places = np.rint(np.linspace(0, len(values) - 1, 5)).astype(int).tolist() if len(values) else []
        cells = [f"{values[i]:.4g}" for i in places] or ["-"] * 5
        table.add_row(name, str(int(rows.sum())), *cells)
    Console().print(table)


def spread(pseudo: Dataset, kept: Any, round: int) -> str:
    """How the kept instances are spread over viewpoints, told by their 2D joints: guards against mode collapse."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids, seen = kept.filter(kept["selected"])["instance_id"], []
    for part in pseudo.parts():
        rows = pseudo.read(["instance_id", "round", "keypoints"], [part])
        mine = pc.equal(pc.fill_null(rows["round"], 0), round)
        seen.append(rows.filter(pc.and_(mine, pc.is_in(rows["instance_id"], ids))))
    counts = viewpoint_histogram(pa.concat_tables(seen))
    return "seen from " + ", ".join(f"{name} {n}" for name, n in zip(VIEW_NAMES, counts, strict=True))


def overlap(lake: Lake, output: Dataset, kept: Any, criterion: str, round: int) -> str | None:
    """How much of the round before, by the same criterion, was kept again; None if there is none."""
    slot = f"{criterion} round={round - 1}"
    before = [d for d in lake.datasets("selections", output.category) if d.slot == slot]
    if not before:
        return None
    both = (before[0].read(["instance_id", "selected"]), kept)
    share = jaccard(*(rows.filter(rows["selected"])["instance_id"].to_pylist() for rows in both))
    return f"overlap with round {round - 1} (Jaccard): {share:.2f}"


@command("select")
def main(cfg: Any) -> None:
    from rich.console import Console

    policy = policy_of(cfg)
    check(cfg.criterion, cfg.top_n, **policy)
    if cfg.round is not None and (not isinstance(cfg.round, int) or cfg.round < 0):
        raise InputError("round", cfg.round, "must be a whole number, 0 or more, or null for the newest")
    lake = Lake(cfg.lake)
    pseudo, round = find_round(lake, cfg.category, cfg.round)
    instances = lake.datasets("instances", cfg.category)
    output = select_round(lake, pseudo, instances, cfg.criterion, cfg.top_n, round, **policy)
    kept = output.read()
    show(kept, f"{cfg.criterion}, round {round}")
    for line in (spread(pseudo, kept, round), overlap(lake, output, kept, cfg.criterion, round)):
        if line:
            Console().print(line, soft_wrap=True)


if __name__ == "__main__":
    main()
