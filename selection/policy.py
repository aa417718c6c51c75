"""Policies: from scores to the rows to keep. Every row comes back, with its rank and the reason."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selection.columns import has_box
from selection.criteria import check_params, costs, find, score
from selection.gate import MIN_SHARE, gated, passing
from selection.quota import Rules, groups, within
from tables import InputError, schema


def select(table: pa.Table, criterion: str, top_n: int, **policy: Any) -> pa.Table:
    """Keep the `top_n` best rows of each round.

    Args:
        table: `pseudo_labels` joined with `instances.bbox`; only `instance_id` and the columns of the criterion and
            of the rules asked for are needed, and a missing `round` means 0. Where there is a column `leak_of`
            (`selection.leaks`), rows with one are never selected.
        policy: the criterion's parameters (`selection.score`) and `Rules` that go with any criterion: `gate`,
            `per_view`, `per_user`.

    Returns:
        The `selections` schema, one row per row of `table`, by round and then rank (1 is best; ties go by
        `instance_id`). Rows that cannot be scored or have a box without area come last and are never selected.
        The result is the same whatever the order of the rows.

    Raises:
        InputError: `top_n` is not a whole number above 0, a rule is out of range, or what `selection.score` raises.
    """
    check(criterion, top_n, **policy)
    if "instance_id" not in table.column_names:
        raise InputError("table", table.column_names, "needs the column `instance_id`")
    return rank(scored(table, criterion, **policy), criterion, top_n, **policy)


def check(criterion: str, top_n: int, **policy: Any) -> None:
    """Raise InputError for an unknown criterion, a parameter or rule it does not take, or a bad `top_n` or rule."""
    find(criterion)
    if not isinstance(top_n, Integral) or isinstance(top_n, bool) or top_n < 1:
        raise InputError("top_n", top_n, "must be a whole number of instances to keep, 1 or more")
    rules, params = Rules.split(policy)
    rules.check()
    check_params(criterion, params)


def policy_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `policy` of `select` that a config asks for: the rules that are set, the seed if the criterion has one."""
    policy = {name: config[name] for name in Rules.__dataclass_fields__ if config[name] is not None}
    return policy | ({"seed": config["seed"]} if "seed" in find(config["criterion"]).params else {})


def scored(table: pa.Table, criterion: str, **policy: Any) -> pa.Table:
    """What ranking needs and no more, so that rows may be scored part by part.

    Returns:
        `instance_id, round, has_box, has_joints`, the score (of a fusion: one of each of its criteria, by name), the
        groups that quotas count, and `leak_of` and `by_hand` where the table has them.
    """
    rules, params = Rules.split(policy)
    if "round" in table.column_names:
        rounds = pc.fill_null(table["round"].cast(pa.int32()), 0)
    else:
        rounds = pc.fill_null(pa.nulls(len(table), pa.int32()), 0)
    columns = {"instance_id": table["instance_id"].cast(pa.string()), "round": rounds, "has_box": has_box(table)}
    columns |= {"has_joints": np.ones(len(table), bool), **groups(table, rules)}
    columns |= {name: table[name] for name in ("leak_of", "by_hand") if name in table.column_names}
    if rules.gate is not None:
        keep = passing(table, rules.gate)
        columns["has_joints"] = keep.mean(axis=1) >= MIN_SHARE
        table = gated(table, keep)
    fuses = find(criterion).fuses
    columns |= {c: score(c, table) for c in fuses} if fuses else {"score": score(criterion, table, **params)}
    return pa.table(columns)


def fused(rows: pa.Table, criterion: str) -> pa.Table:
    """The rows of `scored` with one `score`: of a fusion, by the ranks within the round."""
    if "score" in rows.column_names:
        return rows
    fuses = find(criterion).fuses
    value, rounds = np.full(len(rows), np.nan), rows["round"].to_numpy()
    for number in np.unique(rounds):
        at = rounds == number
        value[at] = find(criterion).compute(*(costs(c, rows[c].to_numpy()[at]) for c in fuses))
    return rows.drop_columns(list(fuses)).append_column("score", pa.array(value))


def in_order(rows: pa.Table, criterion: str) -> pa.Table:
    """The rows of `fused` by round, score (best first) and id, with `cost` and `usable`."""
    value = rows["score"].to_numpy()
    usable = np.isfinite(value) & rows["has_box"].to_numpy() & rows["has_joints"].to_numpy()
    if "leak_of" in rows.column_names:
        usable &= pc.is_null(rows["leak_of"]).to_numpy()
    if "by_hand" in rows.column_names:
        usable &= ~pc.fill_null(rows["by_hand"], False).to_numpy()
    rows = rows.append_column("cost", pa.array(np.where(usable, costs(criterion, value), np.inf)))
    rows = rows.append_column("usable", pa.array(usable))
    return rows.take(pc.sort_indices(rows, sort_keys=[(k, "ascending") for k in ("round", "cost", "instance_id")]))


def rank(rows: pa.Table, criterion: str, top_n: int, sizes: Mapping[int, int] | None = None, **policy: Any) -> pa.Table:
    """Rank the rows of `scored` within their round and mark the `top_n` best; see `select`.

    Args:
        sizes: rows of each round, where `rows` are only the best of them.
    """
    rules, cuts = Rules.split(policy)[0], find(criterion).cuts
    rows = in_order(fused(rows, criterion), criterion)
    rounds, free = rows["round"].to_numpy(), rows["usable"].to_numpy()
    first, last = np.searchsorted(rounds, rounds, "left"), np.searchsorted(rounds, rounds, "right")
    place = np.arange(len(rows)) - first + 1
    size = last - first if sizes is None else np.array([sizes[r] for r in rounds.tolist()], np.int64)
    crowded = {}  # whose quota keeps a row out
    for name, most in rules.quotas().items():
        crowded[name] = free & ~within(rows, name, most, free)
        free = free & ~crowded[name]
    taken = np.cumsum(free)
    turn = taken - (taken - free)[first]  # place among those that no quota keeps out
    selected = free & ((turn <= top_n) | (not cuts))

    text = _join("rank ", place, " of ", size)
    if not cuts:
        reason = _join(text, ", all are kept")
    else:
        turns = _join(text, ", ", turn, " by quota") if crowded else text
        reason = _join(turns, pc.if_else(pa.array(selected), " <= ", " > "), f"top_n {top_n}")
    for name, out in crowded.items():
        reason = pc.if_else(pa.array(out), _join(text, f", enough of its {name} rank better"), reason)
    reason = pc.if_else(rows["usable"].combine_chunks(), reason, _unusable(rows))
    columns = {
        "instance_id": rows["instance_id"], "round": rows["round"],
        "criterion": pa.repeat(criterion, len(rows)), "score": rows["score"],
        "rank": place, "selected": selected, "reason": reason,
    }  # fmt: skip
    return pa.table(columns).cast(schema("selections"))


def _join(*pieces: Any) -> pa.Array:
    """Strings of each row, from texts and columns of texts or numbers."""
    texts = [pa.array(p).cast(pa.string()) if isinstance(p, np.ndarray) else p for p in pieces]
    return pc.binary_join_element_wise(*texts, "")


def _unusable(rows: pa.Table) -> pa.Array:
    """All that speaks against a row."""
    why = ("score is not finite", "box has no area", "most joints fail the gate")
    good = (np.isfinite(rows["score"].to_numpy()), rows["has_box"].to_numpy(), rows["has_joints"].to_numpy())
    known = ["; ".join(w for bit, w in enumerate(why) if code >> bit & 1) for code in range(1 << len(why))]
    codes = sum(((~g).astype(np.int64) << bit for bit, g in enumerate(good)), np.zeros(len(rows), np.int64))
    text = pa.array(known).take(pa.array(codes))
    if "by_hand" in rows.column_names:
        by_hand = pc.fill_null(rows["by_hand"].combine_chunks(), False)
        text = pc.if_else(by_hand, "a person labelled this animal: the label is trained on", text)
    if "leak_of" not in rows.column_names:
        return text
    leak = rows["leak_of"].combine_chunks()
    return pc.if_else(pc.is_null(leak), text, _join("leak: looks like the evaluation photo ", pc.fill_null(leak, "")))
