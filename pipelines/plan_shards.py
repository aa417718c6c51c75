"""Rows in groups by hash, through files: what needs all rows of an id or a user together, in flat memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.sources import WANTED
from tables import Dataset

SHARD_ROWS = 256
MAX_SHARDS = 4096
GROWTH = 4
GROUP_ROWS = 1 << 16  # rows in memory at once
MAX_GROUPS = 256  # files written side by side


def shard_count(dataset: Dataset, wanted: int) -> int:
    """A power of two, about SHARD_ROWS rows a shard.

    A dataset keeps the number that its first plan chose, until a plan wants so many more rows that its shards would be
    GROWTH times too large: then each is split.
    """
    needed = min(power_of_two(wanted / SHARD_ROWS), MAX_SHARDS)
    kept = (dataset.files.read_json(f"{dataset.path}/_shards.json") or {"shards": 0})["shards"]
    if needed <= GROWTH * kept:
        return int(kept)
    dataset.files.write_json(f"{dataset.path}/_shards.json", {"shards": needed})
    return needed


def shard_name(shards: int, index: int) -> str:
    """Name of one of so many shards; it tells the shards that this one was split from."""
    return f"s{shards.bit_length() - 1:02d}_{index:04d}"


def lineage(shard: str) -> tuple[str, ...]:
    """The shard, and those that it was or may have been split from: where rows of its photos may lie."""
    bits, index = (int(n) for n in shard[1:].split("_"))
    return tuple(shard_name(1 << b, index & ((1 << b) - 1)) for b in range(bits, -1, -1))


def power_of_two(least: float) -> int:
    """The smallest power of two that is not less."""
    n = 1
    while n < least:
        n *= 2
    return n


def hashes(values: pa.ChunkedArray) -> np.ndarray:
    """[rows] uint64; the same for the same string wherever and whenever."""
    digests = b"".join(hashlib.blake2b(v.encode(), digest_size=8).digest() for v in values.to_pylist())
    return np.frombuffer(digests, "<u8")


def set_digest(ids: pa.ChunkedArray) -> int:
    """A number for a set of strings in whatever order; those of two sets without a common member add up, mod 2^64."""
    return int(hashes(ids).sum(dtype=np.uint64))


def arrange(
    tables: Iterable[pa.Table], wanted: int, shards: int, per_user: int, scratch: Path, dropped: Counter[str]
) -> Iterator[pa.Table]:
    """The rows to fetch, in tables that hold whole shards: the first row of each photo id, and not too many of a user.

    Args:
        tables: WANTED rows in file order.
        wanted: about how many there are.
        per_user: at most so many photos of a user, those whose ids have the smallest hashes; 0 is no limit, and rows
            that name no user have none.
        scratch: local folder for files on the way.
        dropped: `repeated` and `quota` are counted here, as the tables are taken.
    """
    groups = min(power_of_two(wanted / GROUP_ROWS), MAX_GROUPS)
    ways = [("photo_id", _first_of_each, "repeated")]
    if per_user:
        ways += [("user", lambda rows: _within_quota(rows, per_user), "quota"), ("photo_id", lambda rows: rows, "")]
    for i, (column, choose, reason) in enumerate(ways):
        # A shard is one of the groups, or a part of one, as long as there are no fewer shards than groups.
        count = groups if column == "user" else min(groups, shards)
        tables = _chosen(_grouped(tables, column, count, scratch / str(i)), choose, reason, dropped)
    return iter(tables)


def write_shards(rows: pa.Table, shards: int) -> tuple[bytes, list[str]]:
    """A Parquet file with a row group for each shard that has rows, sorted by photo id, and the names of these."""
    shard = hashes(rows["photo_id"]) & np.uint64(shards - 1)
    rows = rows.append_column("_shard", pa.array(shard)).sort_by([("_shard", "ascending"), ("photo_id", "ascending")])
    found, first = np.unique(rows["_shard"].to_numpy(), return_index=True)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, WANTED, compression="zstd") as out:
        for a, b in zip(first, [*first[1:], len(rows)], strict=True):
            out.write_table(rows.slice(a, b - a).select(WANTED.names), row_group_size=b - a)
    return sink.getvalue().to_pybytes(), [shard_name(shards, int(s)) for s in found]


def _grouped(tables: Iterable[pa.Table], column: str, count: int, folder: Path) -> Iterator[pa.Table]:
    """The same rows in `count` tables by the hash of a column, in each table in the order in which they came."""
    if count == 1:
        yield pa.concat_tables([WANTED.empty_table(), *tables])
        return
    folder.mkdir()
    names = [str(folder / str(i)) for i in range(count)]
    with ExitStack() as stack:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        outs = [stack.enter_context(pa.ipc.new_stream(n, WANTED, options=options)) for n in names]
        for table in _by_weight(tables):
            group = hashes(table[column]) & np.uint64(count - 1)
            order = np.argsort(group, kind="stable")
            table = table.take(order)
            cuts = np.searchsorted(group[order], np.arange(count + 1, dtype=np.uint64))
            for out, a, b in zip(outs, cuts[:-1], cuts[1:], strict=True):
                if b > a:
                    out.write_table(table.slice(a, b - a))
    for name in names:
        with pa.ipc.open_stream(name) as stream:
            yield stream.read_all()
        Path(name).unlink()


def _by_weight(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows in tables of at least GROUP_ROWS, the last one apart."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= GROUP_ROWS:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    yield pa.concat_tables([WANTED.empty_table(), *waiting]).combine_chunks()


def _chosen(
    tables: Iterable[pa.Table], choose: Callable[[pa.Table], pa.Table], reason: str, dropped: Counter[str]
) -> Iterator[pa.Table]:
    for table in tables:
        kept = choose(table)
        if len(kept) < len(table):
            dropped[reason] += len(table) - len(kept)
        if len(kept):
            yield kept


def _first_of_each(rows: pa.Table) -> pa.Table:
    codes = rows["photo_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    return rows.take(np.sort(np.unique(codes, return_index=True)[1]))


def _within_quota(rows: pa.Table, most: int) -> pa.Table:
    user = rows["user"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((hashes(rows["photo_id"]), user))  # users one after another, their photos by hash
    user = user[order]
    rank = np.arange(len(user)) - np.searchsorted(user, user)
    named = pc.not_equal(rows["user"], "").to_numpy()[order]
    return rows.take(np.sort(order[(rank < most) | ~named]))
