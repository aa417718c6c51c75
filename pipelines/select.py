"""Selection stage: `pseudo_labels` joined with `instances.bbox` -> `selections`.

Ranking is global and scoring costs microseconds a row, while a Ray Data job takes seconds to start: the parts are
scored one after the other in this process, and only ids and scores are held for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables import Dataset, InputError, Lake
from trainers.app import command


def select_round(
    lake: Lake,
    pseudo: Dataset,
    instances: Dataset | Sequence[Dataset],
    criterion: str,
    top_n: int,
    round: int,
    **params: Any,
) -> Dataset:
    """Rank one round's pseudo-labels and commit the selection; done already means nothing to do.

    Args:
        pseudo: committed `pseudo_labels`; rows of other rounds are left out, a null round is 0.
        instances: where the boxes are; an instance without one is never selected.
        params: the criterion's parameters (`selection.score`).

    Returns:
        The finished `selections` dataset, in a slot of its own for each criterion and round.

    Raises:
        InputError: unknown criterion, bad `top_n`, a column the criterion needs is not in `pseudo_labels`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    import selection
    from tables import KEYS, schema, unique_rows

    selection.check(criterion, top_n)
    sources = [instances] if isinstance(instances, Dataset) else list(instances)
    state = {"pseudo_labels": pseudo.state(), "instances": [s.state() for s in sources]}
    identity = {"criterion": criterion, "top_n": top_n, "round": round, "params": params, "input": state}
    identity["pseudo_labels"] = pseudo.fingerprint  # what a training on this selection looks up
    identity["pseudo_labels"] = pseudo.fingerprint
    output = lake.dataset("selections", pseudo.category, identity, slot=f"{criterion} round={round}")
    if output.is_finished(output.fingerprint):
        return output

    parts = pseudo.manifests()
    if not parts:
        raise InputError("pseudo_labels", pseudo.category, f"nothing is committed in {lake.uri}/{pseudo.path}")
    boxes = pa.concat_tables([s.read(["instance_id", "bbox"]) for s in sources])
    # `keypoints` goes along for the number of joints.
    wanted = {"keypoints", "instance_id", "round", *selection.CRITERIA[criterion].columns}
    columns = [c for c in schema("pseudo_labels").names if c in wanted]
    scored = [selection.scored(_with_boxes(pseudo.read(columns, [part]), boxes), criterion, **params) for part in parts]
    # A key may stand in two parts after a restart.
    rows = unique_rows(pa.concat_tables(scored), KEYS["pseudo_labels"])
    rows = rows.filter(pc.equal(rows["round"], round))
    kept = selection.rank(rows, criterion, top_n)
    output.write("all", kept, schema("selections"))
    output.finish(output.fingerprint, {"rows": len(kept), "selected": sum(kept["selected"].to_pylist())})
    return output


def _with_boxes(rows: Any, boxes: Any) -> Any:
    import pyarrow.compute as pc

    return rows.append_column("bbox", boxes["bbox"].take(pc.index_in(rows["instance_id"], boxes["instance_id"])))


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
    from selection import CRITERIA, check

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
