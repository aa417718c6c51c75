"""Metadata in tables: the SQLite dump by ranges of rowid, Parquet by row groups, CSV as one stream."""

from __future__ import annotations

import csv
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq

from pipelines.source_files import line_blocks, locate
from pipelines.source_options import SourceOptions
from pipelines.source_rows import NAMES, YFCC_V1, PhotoRow, RowError, table_row, text_of, url_column_of
from tables import InputError

ROW_BYTES = 400  # of the dump, on the average
BATCH = 8192


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
        if set(YFCC_V1) <= {str(c[1]).lower() for c in db.execute(f"PRAGMA table_info({quoted})")}:
            return quoted
    raise InputError("source.path", options.path, f"no table of it has the dump's columns ({', '.join(YFCC_V1)})")


def sqlite_splits(options: SourceOptions) -> list[dict[str, Any]]:
    """Ranges of rowid of about `range_mb`."""
    step = max(1, int(options.range_mb * 2**20 / ROW_BYTES))
    with open_sqlite(options) as db:
        first, last = db.execute(f"SELECT min(rowid), max(rowid) FROM {sqlite_table(db, options)}").fetchone()
    if first is None:
        return []
    return [{"first": a, "last": min(a + step - 1, last)} for a in range(first, last + 1, step)]


def sqlite_blocks(options: SourceOptions, split: dict[str, Any]) -> Iterator[bytes]:
    """Rows of a range of rowids as blocks of v1 lines; text of the dump is URL-encoded, so no value holds a tab."""
    line = f"printf('{chr(9).join(['%s'] * len(YFCC_V1))}', {', '.join(YFCC_V1)})"
    with open_sqlite(options) as db:
        where = f"FROM {sqlite_table(db, options)} WHERE rowid BETWEEN ? AND ? ORDER BY rowid"
        db.text_factory = bytes
        rows = db.execute(f"SELECT {line} {where}", (split["first"], split["last"]))
        while batch := rows.fetchmany(BATCH):
            yield b"".join(row.replace(b"\n", b" ") + b"\n" for (row,) in batch)


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
    """Rows as mappings of the columns that are known, in batches."""
    with open_parquet(options) as f:
        usual = {n for names in NAMES.values() for n in names}
        columns = [c for c in f.schema_arrow.names if c.lower() in usual or c == options.url_column]
        for batch in f.iter_batches(BATCH, split["groups"], columns):
            yield batch.to_pylist()


# -- CSV -------------------------------------------------------------------------------------------------------------


def csv_header(line: bytes) -> tuple[list[str], str]:
    """Column names and the delimiter that gives the most of them.

    Raises:
        RowError: the line is no header.
    """
    text = text_of(line)
    delimiter = max(",\t;|", key=text.count)
    try:
        return next(csv.reader([text], delimiter=delimiter), []), delimiter
    except csv.Error as error:
        raise RowError(str(error)) from error


def csv_rows(options: SourceOptions) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
    """Batches: the lines it takes, and its rows with their last line, counted from the batch's first.

    A row is its columns by name; one with another number of columns is the list of them.
    """
    lines = (line for block in line_blocks(options.path) for line in block.splitlines(keepends=True))
    header, delimiter = csv_header(next(lines))
    # Newlines inside quotes are part of a value, so they must reach the reader.
    reader = csv.reader((line.decode("utf-8", "replace") for line in lines), delimiter=delimiter)
    before, batch = -1, []  # the header is a line too
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            values = [f"({error})"]
        if values is None:
            break
        if values:
            fits = len(values) == len(header)
            batch.append((reader.line_num - before - 1, dict(zip(header, values, strict=True)) if fits else values))
        if len(batch) == BATCH:
            yield reader.line_num - before, batch
            before, batch = reader.line_num, []
    yield reader.line_num - before, batch


def csv_row(row: dict[str, str] | list[str], url_column: str) -> PhotoRow:
    """Raises RowError: the row has another number of columns than the header, or no URL."""
    if isinstance(row, list):
        raise RowError(f"{len(row)} columns, not those of the header")
    return table_row(row, url_column)


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
