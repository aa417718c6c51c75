"""The `select` command: rank one round's pseudo-labels and say what was kept."""

from __future__ import annotations

from typing import Any

from selection import CRITERIA, check, select_round
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

    kept = kept.sort_by("rank")  # best first, whichever way the score points
    chosen, score = kept["selected"].to_numpy(), kept["score"].to_numpy()
    table = Table("rows", "n", "best", "25 %", "median", "75 %", "worst", title=title)
    for name, rows in (("all", np.ones_like(chosen)), ("selected", chosen), ("rejected", ~chosen)):
        values = score[rows & np.isfinite(score)]
        places = np.rint(np.linspace(0, len(values) - 1, 5)).astype(int).tolist() if len(values) else []
        cells = [f"{values[i]:.4g}" for i in places] or ["-"] * 5
        table.add_row(name, str(int(rows.sum())), *cells)
    Console().print(table)


@command("select")
def main(cfg: Any) -> None:
    check(cfg.criterion, cfg.top_n)
    if cfg.round is not None and (not isinstance(cfg.round, int) or cfg.round < 0):
        raise InputError("round", cfg.round, "must be a whole number, 0 or more, or null for the newest")
    lake = Lake(cfg.lake)
    pseudo, round = find_round(lake, cfg.category, cfg.round)
    instances = lake.datasets("instances", cfg.category)
    params = {"seed": cfg.seed} if "seed" in CRITERIA[cfg.criterion].params else {}
    output = select_round(lake, pseudo, instances, cfg.criterion, cfg.top_n, round, **params)
    show(output.read(), f"{cfg.criterion}, round {round}")


if __name__ == "__main__":
    main()
