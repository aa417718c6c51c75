"""Policies: from scores to the rows to keep. Every row comes back, with its rank and the reason."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selection.criteria import find, has_box, score
from tables import InputError, schema


def select(table: pa.Table, criterion: str, top_n: int, **policy: Any) -> pa.Table:
    """Keep the `top_n` best rows of each round.

    Args:
        table: `pseudo_labels` joined with `instances.bbox`; only `instance_id` and the criterion's own columns are
            needed, and a missing `round` means 0.
        policy: the criterion's parameters (`selection.score`).

    Returns:
        The `selections` schema, one row per row of `table`, by round and then rank (1 is best; ties go by
        `instance_id`). Rows that cannot be scored or have a box without area come last and are never selected.
        The result is the same whatever the order of the rows.

    Raises:
        InputError: `top_n` is not a whole number above 0, or what `selection.score` raises.
    """
    check(criterion, top_n)
    if "instance_id" not in table.column_names:
        raise InputError("table", table.column_names, "needs the column `instance_id`")
    return rank(scored(table, criterion, **policy), criterion, top_n)


def check(criterion: str, top_n: int) -> None:
    """Raise InputError for an unknown criterion or a `top_n` that is not a whole number above 0."""
    find(criterion)
    if not isinstance(top_n, Integral) or isinstance(top_n, bool) or top_n < 1:
        raise InputError("top_n", top_n, "must be a whole number of instances to keep, 1 or more")


def scored(table: pa.Table, criterion: str, **params: Any) -> pa.Table:
    """What ranking needs and no more: `instance_id`, `round`, `score`, `has_box`; rows may be scored part by part."""
    if "round" in table.column_names:
        rounds = pc.fill_null(table["round"].cast(pa.int32()), 0)
    else:
        rounds = pa.array(np.zeros(len(table), np.int32))
    values = {"round": rounds, "score": score(criterion, table, **params), "has_box": has_box(table)}
    return pa.table({"instance_id": table["instance_id"].cast(pa.string()), **values})


def rank(rows: pa.Table, criterion: str, top_n: int) -> pa.Table:
    """Rank the rows of `scored` within their round and mark the `top_n` best; see `select`."""
    value, boxed = rows["score"].to_numpy(), rows["has_box"].to_numpy()
    finite = np.isfinite(value)
    # Adding 0.0 makes -0.0 the same as 0.0, so that ties are ties.
    cost = np.where(finite & boxed, (-value if find(criterion).higher_is_better else value) + 0.0, np.inf)
    keyed = pa.table({"round": rows["round"], "cost": cost, "id": rows["instance_id"]})
    order = pc.sort_indices(keyed, sort_keys=[(k, "ascending") for k in keyed.column_names]).to_numpy()

    rounds = rows["round"].to_numpy()[order]
    value, boxed, finite = value[order], boxed[order], finite[order]
    first, size = np.searchsorted(rounds, rounds, "left"), np.searchsorted(rounds, rounds, "right")
    place = np.arange(len(order)) - first + 1
    usable = finite & boxed
    selected = usable & (place <= top_n)
    reason = [
        f"rank {p} of {n} {'<=' if s else '>'} top_n {top_n}" if u else _unusable(f, b)
        for p, n, s, u, f, b in zip(place, size - first, selected, usable, finite, boxed, strict=True)
    ]
    columns = {
        "instance_id": rows["instance_id"].take(pa.array(order)),
        "round": pa.array(rounds, pa.int32()),
        "criterion": pa.array([criterion] * len(order), pa.string()),
        "score": pa.array(value, pa.float64()),
        "rank": pa.array(place, pa.int64()),
        "selected": pa.array(selected, pa.bool_()),
        "reason": pa.array(reason, pa.string()),
    }
    return pa.table(columns, schema=schema("selections"))


def _unusable(finite: bool, boxed: bool) -> str:
    why = [] if finite else ["score is not finite"]
    return "; ".join(why if boxed else [*why, "box has no area"])
