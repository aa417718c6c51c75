"""The best of tens of millions of rows, in memory of one block and `top_n` rows, where a row is scored by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from selection.columns import BLOCK
from selection.criteria import costs, find
from selection.policy import check, fused, in_order, rank, scored
from selection.quota import Rules
from tables import InputError


def select_stream(blocks: Iterable[pa.Table | pa.RecordBatch], criterion: str, top_n: int, **policy: Any) -> pa.Table:
    """What `select` keeps, without the rows it rejects: each block's best, merged with the best so far.

    Args:
        blocks: rows as `select` takes them, `instance_id` unique within a round over all blocks. They are read once;
            a fusion holds the ids and scores of all of them.

    Returns:
        The selected rows of `select` on all blocks together, rank and reason included, whatever the blocks are.

    Raises:
        InputError: what `select` raises; `all` and quotas, which need all rows at once.
    """
    check(criterion, top_n, **policy)
    found = find(criterion)
    if not found.cuts or Rules.split(policy)[0].quotas():
        raise InputError("criterion", criterion, "`all` and quotas need all rows at once: use `select`")
    parts = (scored(_table(block), criterion, **policy) for block in blocks)
    if found.fuses:
        whole = fused(pa.concat_tables(parts), criterion)
        parts = (whole.slice(at, BLOCK) for at in range(0, max(1, len(whole)), BLOCK))
    best, sizes = None, Counter[int]()
    for rows in parts:
        numbers, counts = np.unique(rows["round"].to_numpy(), return_counts=True)
        sizes.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        if best is not None:
            rows = pa.concat_tables([best, _hopeful(rows, best, criterion, top_n)])
        best = _best(rows, criterion, top_n)
    if best is None:
        raise InputError("blocks", "none", "give at least one block, which may have no rows")
    return rank(best, criterion, top_n, sizes)


def _table(block: pa.Table | pa.RecordBatch) -> pa.Table:
    # Not pa.table(): what it makes of a batch keeps all columns alive as long as any of them.
    return block if isinstance(block, pa.Table) else pa.Table.from_batches([block])


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
