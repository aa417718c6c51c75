"""The best of tens of millions of rows, in memory of one block and `top_n` rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from selection.criteria import costs, find
from selection.policy import check, in_order, rank, scored
from selection.quota import Rules
from tables import InputError


def select_stream(blocks: Iterable[pa.Table | pa.RecordBatch], criterion: str, top_n: int, **policy: Any) -> pa.Table:
    """What `select` keeps, without the rows it rejects: each block's best, merged with the best so far.

    Args:
        blocks: rows as `select` takes them, `instance_id` unique within a round over all blocks.

    Returns:
        The selected rows of `select` on all blocks together, rank and reason included, whatever the blocks are.

    Raises:
        InputError: what `select` raises; the criterion or a rule needs all rows at once (fusion, `all`, quotas).
    """
    check(criterion, top_n, **policy)
    found, rules = find(criterion), Rules.split(policy)[0]
    if found.fuses or not found.cuts or rules.quotas():
        why = "needs all rows at once (a fusion, `all` or a quota): use `select`"
        raise InputError("criterion", criterion, why)
    best, sizes = None, Counter[int]()
    for block in blocks:
        table = block if isinstance(block, pa.Table) else pa.Table.from_batches([block])
        rows = scored(table, criterion, **policy)
        numbers, counts = np.unique(rows["round"].to_numpy(), return_counts=True)
        sizes.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        best = _best(rows if best is None else pa.concat_tables([best, _hopeful(rows, best, criterion, top_n)]),
                     criterion, top_n)  # fmt: skip
    if best is None:
        raise InputError("blocks", "none", "give at least one block")
    return rank(best, criterion, top_n, sizes)


def _best(rows: pa.Table, criterion: str, top_n: int) -> pa.Table:
    """The usable rows of `scored` that are among the `top_n` best of their round, without the columns of ranking."""
    names = rows.column_names
    rows = in_order(rows, criterion)
    rows = rows.filter(rows["usable"])
    rounds = rows["round"].to_numpy()
    place = np.arange(len(rows)) - np.searchsorted(rounds, rounds, "left")
    return rows.filter(pa.array(place < top_n)).select(names).combine_chunks()


def _hopeful(rows: pa.Table, best: pa.Table, criterion: str, top_n: int) -> pa.Table:
    """Rows that are no worse than the worst of a full round: sorting the others would be most of the work."""
    bar = np.full(len(rows), np.inf)
    rounds, held = rows["round"].to_numpy(), best["round"].to_numpy()
    for number in np.unique(held):
        mine = costs(criterion, best["score"].to_numpy()[held == number])
        if len(mine) == top_n:
            bar[rounds == number] = mine.max()
    cost = costs(criterion, rows["score"].to_numpy())
    return rows.filter(pa.array(np.isfinite(cost) & (cost <= bar)))
