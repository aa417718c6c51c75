"""Metadata in tables: the SQLite dump by ranges of rowid, Parquet by row groups."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.source_options import SourceOptions
from pipelines.source_rows import NAMES, YFCC_V1, url_column_of
from tables import InputError, locate

BATCH = 8192
_NO_DATE = (OverflowError, ValueError, KeyError)  # years before 1 or after 9999, unknown time zones


# -- SQLite ----------------------------------------------------------------------------------------------------------


@contextmanager
def open_sqlite(options: SourceOptions) -> Iterator[sqlite3.Connection]:
    """Raises InputError where SQLite cannot open or read the file."""
    if "://" in options.path:
        raise InputError("source.path", options.path, "SQLite reads local files only: copy it to every node")
    try:
        with closing(sqlite3.connect(f"file:{quote(os.path.abspath(options.path))}?mode=ro", uri=True)) as db:
            yield db
    except sqlite3.Error as error:
        raise InputError("source.path", options.path, f"SQLite: {error}") from error


def sqlite_table(db: sqlite3.Connection, options: SourceOptions) -> str:
    """The table (quoted) that has the dump's columns.

    Raises:
        InputError: none has.
    """
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall():
        quoted = '"' + name.replace('"', '""') + '"'
        columns = list(db.execute(f"PRAGMA table_info({quoted})"))
        if set(YFCC_V1) <= {str(c[1]).lower() for c in columns}:
            _check_rowid(db, options, quoted)
            return quoted
    raise InputError("source.path", options.path, f"no table of it has the dump's columns ({', '.join(YFCC_V1)})")


def _check_rowid(db: sqlite3.Connection, options: SourceOptions, table: str) -> None:
    try:
        db.execute(f"SELECT _rowid_ FROM {table} LIMIT 0")
    except sqlite3.OperationalError as error:
        if "no such column" not in str(error):
            raise
        fix = f"its table {table} is WITHOUT ROWID; copy it: CREATE TABLE photos AS SELECT * FROM {table}"
        raise InputError("source.path", options.path, fix) from error


def sqlite_splits(options: SourceOptions) -> list[dict[str, Any]]:
    """Ranges of rowid, equally wide and none of them empty; at most as many as `range_mb` goes into the file.

    A rowid may be the photo id, so ranges of a fixed number of rowids could be without end.
    """
    with open_sqlite(options) as db:
        table = sqlite_table(db, options)
        # Each alone is looked up; both in one SELECT read the whole table.
        ends = f"(SELECT min(_rowid_) FROM {table}), (SELECT max(_rowid_) FROM {table})"
        first, last = db.execute(f"SELECT {ends}").fetchone()
        if first is None:
            return []
        most = math.ceil(os.path.getsize(options.path) / (options.range_mb * 2**20))
        width = -(-(last - first + 1) // most)
        ranges: list[dict[str, Any]] = []
        while first is not None:
            ranges.append({"first": first, "last": min(first + width - 1, last)})
            beyond = (ranges[-1]["last"],)
            (first,) = db.execute(f"SELECT min(_rowid_) FROM {table} WHERE _rowid_ > ?", beyond).fetchone()
        return ranges


def sqlite_blocks(options: SourceOptions, split: dict[str, Any]) -> Iterator[bytes]:
    """Rows of a range of rowids as blocks of v1 lines.

    Tabs and newlines in a value, which the dump has none of, become spaces; a value ends at a NUL.
    """
    tabless = [f"replace({column}, char(9), ' ')" for column in YFCC_V1]
    with open_sqlite(options) as db:
        table = sqlite_table(db, options)
        where = f"FROM {table} WHERE _rowid_ BETWEEN ? AND ? ORDER BY _rowid_"
        db.text_factory = bytes

        def whole(rowid: int, row: bytes) -> bytes:
            if row.count(b"\t") >= len(YFCC_V1):
                (row,) = db.execute(f"SELECT {_line(tabless)} FROM {table} WHERE _rowid_ = ?", (rowid,)).fetchone()
            return row.replace(b"\n", b" ") + b"\n"

        rows = db.execute(f"SELECT _rowid_, {_line(YFCC_V1)} {where}", (split["first"], split["last"]))
        while batch := rows.fetchmany(BATCH):
            yield b"".join(whole(*row) for row in batch)


def _line(values: Sequence[str]) -> str:
    return f"printf('{chr(9).join(['%s'] * len(values))}', {', '.join(values)})"


# -- Parquet ---------------------------------------------------------------------------------------------------------


def open_parquet(options: SourceOptions) -> pq.ParquetFile:
    filesystem, name = locate(options.path)
    return pq.ParquetFile(filesystem.open_input_file(name), buffer_size=1 << 20)


def parquet_splits(options: SourceOptions) -> list[dict[str, Any]]:
    """Runs of row groups of about `range_mb`."""
    splits: list[dict[str, Any]] = []
    room = 0.0
    with open_parquet(options) as f:
        for group in range(f.metadata.num_row_groups):
            size = f.metadata.row_group(group).total_byte_size
            if room < size or not splits:
                splits.append({"groups": []})
                room = options.range_mb * 2**20
            splits[-1]["groups"].append(group)
            room -= size
    return splits


def parquet_rows(options: SourceOptions, split: dict[str, Any]) -> Iterator[list[Any]]:
    """Rows as mappings of the columns that are known, in batches; a date that Python has none for is null."""
    with open_parquet(options) as f:
        usual = {n for names in NAMES.values() for n in names}
        columns = [c for c in f.schema_arrow.names if c.lower() in usual or c == options.url_column]
        for batch in f.iter_batches(BATCH, split["groups"], columns):
            values = zip(*map(_values, batch.columns), strict=True)
            yield [dict(zip(columns, row, strict=True)) for row in values]


def _values(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except _NO_DATE:
        return [_value(v) for v in column]


def _value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except _NO_DATE:
        return None


def url_column(options: SourceOptions, columns: list[str]) -> str:
    """The column named by `source.url_column`, or the one known to hold a URL.

    Raises:
        InputError: there is none.
    """
    named = options.url_column
    found = url_column_of(columns) if named is None else named if named in columns else None
    if found is None:
        raise InputError("source.url_column", named, f"name the column of the URL: {', '.join(columns[:40])}")
    return found
