"""Metadata of web photos, streamed: files of any size cut into splits, a split read as blocks of wanted rows.

A row that cannot be parsed is a reject with its line and reason; a row that is not wanted is counted by reason. Nothing
here holds more than one block.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines.source_autotags import check_autotags
from pipelines.source_csv import csv_header, csv_row, csv_rows
from pipelines.source_files import byte_ranges, file_state, line_blocks, open_unpacked, packing, readable
from pipelines.source_filter import RowFilter
from pipelines.source_options import SourceOptions
from pipelines.source_origin import fetch_url
from pipelines.source_rows import PhotoRow, RowError, json_line, table_row, url_column_of, url_line, yfcc_line
from pipelines.source_skim import Skim
from pipelines.source_tables import (
    open_parquet,
    open_sqlite,
    parquet_rows,
    parquet_splits,
    sqlite_blocks,
    sqlite_splits,
    sqlite_table,
    url_column,
)
from tables import InputError

# `url` is what the metadata says, `fetch_url` where the bytes come from (a mirror apart: Plan.shard puts it in).
WANTED = pa.schema([(n, pa.string()) for n in (
    "photo_id", "url", "fetch_url", "license", "author", "page_url", "user",
)])  # fmt: skip
REJECTS = pa.schema([("line", pa.int64()), ("reason", pa.string()), ("text", pa.string())])
SHOWN = 200  # characters of a reject


class Block(NamedTuple):
    """What a stretch of the metadata gave.

    Attributes:
        wanted: rows to fetch (WANTED), in file order.
        rejects: rows that are none (REJECTS); `line` counts from 1 at the start of the split.
        dropped: rows by the reason why they are not wanted.
        lines: all there were: `lines = len(wanted) + len(rejects) + sum(dropped)`. Lines without a row of their own are
            dropped as `blank`, `header`, or `quoted` (a CSV row's further lines).
    """

    wanted: pa.Table
    rejects: pa.Table
    dropped: Counter[str]
    lines: int


class _Stretch(NamedTuple):
    """Raw rows that need a look, numbered from 0; `lines` in all, the others of which are dropped already."""

    lines: int
    rows: Iterable[tuple[int, Any]]
    dropped: Mapping[str, int] = MappingProxyType({})


def check_source(source: Any, category: str) -> SourceOptions:
    """The checked options of `conf/source`; where `format` is auto, it is told from the file's beginning.

    Raises:
        InputError: the file is missing, empty, in no known format or a table of another one than named, or an option
            has a value it cannot have.
    """
    options = SourceOptions.from_config(source, category)
    if file_state("source.path", options.path)["size"] == 0:
        raise InputError("source.path", options.path, "the file is empty")
    with readable("source.path", options.path):
        found = _detect(options)
    if options.autotags is not None:
        check_autotags(options.autotags)
    return options.with_format(found)


def _detect(options: SourceOptions) -> str:
    """The format by the file's magic, its name in the options, its header, or what most of its first lines are."""
    with open_unpacked(options.path) as f:
        head = f.read(1 << 20)
    kind = "parquet" if head.startswith(b"PAR1") else "sqlite" if head.startswith(b"SQLite format 3\0") else None
    named = options.format
    if kind and packing(options.path):
        raise InputError("source.path", options.path, f"unpack it first: {kind} is read at many places at once")
    if named not in ("auto", kind) and (kind or named in ("parquet", "sqlite")):
        raise InputError("source.path", options.path, f"it is not {named}" + (f" but {kind}" if kind else ""))
    if kind == "sqlite":
        with open_sqlite(options) as db:
            sqlite_table(db, options)
        return kind
    if kind == "parquet":
        with open_parquet(options) as table:
            url_column(options, table.schema_arrow.names)
        return kind
    if named not in ("auto", "csv"):
        return named  # what no row can be made of becomes a reject
    lines = [line for line in head.split(b"\n") if line.strip()][:100]
    if not lines:
        raise InputError("source.path", options.path, "the file is empty")
    header = _header(lines[0])
    if options.format == "csv":
        url_column(options, header)
        return "csv"
    found = {name: sum(_parses(parse, line) for line in lines) for name, parse in _parsers(options).items()}
    best = max(found, key=lambda f: found[f])
    # The rows of a table may begin with a URL, too; its header tells it from a list.
    if (best == "urls" or not found[best]) and (url_column_of(header) or options.url_column in header):
        return "csv"
    if not found[best]:
        known = "YFCC v2 (25 tab-separated columns), YFCC v1 (23), SQLite, Parquet, CSV, a URL or JSON object a line"
        raise InputError("source.path", options.path, f"no known format; known are {known}")
    return best


def _header(line: bytes) -> list[str]:
    try:
        return csv_header(line)[0]
    except RowError:
        return []


def _parses(parse: Callable[[bytes], PhotoRow], line: bytes) -> bool:
    try:
        parse(line)
    except RowError:
        return False
    return True


def _parsers(options: SourceOptions) -> dict[str, Callable[[Any], PhotoRow]]:
    """Formats of one row a line."""
    return {
        "yfcc_v2": partial(yfcc_line, columns=25),
        "yfcc_v1": partial(yfcc_line, columns=23),
        "jsonl": partial(json_line, url_column=options.url_column),
        "urls": url_line,
    }


def splits(options: SourceOptions) -> list[dict[str, Any]]:
    """Parts of the file that can be read alone, in file order, plain JSON.

    A plain file of lines is cut into byte ranges of `range_mb`, SQLite into ranges of rowid, Parquet into row groups;
    a packed file or a CSV is one split, for neither can be entered in its middle.

    Raises:
        InputError: the file cannot be read.
    """
    with readable("source.path", options.path):
        if options.format == "sqlite":
            return sqlite_splits(options)
        if options.format == "parquet":
            return parquet_splits(options)
        if options.format == "csv" or packing(options.path):
            return [{}]
        size = file_state("source.path", options.path)["size"]
        return list(byte_ranges(size, max(1, int(options.range_mb * 2**20))))


def read_split(options: SourceOptions, split: dict[str, Any], skim: bool = True) -> Iterator[Block]:
    """The split's rows, parsed and filtered, in blocks of a few megabytes of metadata.

    Args:
        skim: False looks at each line of a YFCC file alone: slow, and by definition right.

    Raises:
        InputError: the file breaks off (a cut archive) or cannot be read.
    """
    wanted = RowFilter(options)
    with readable("source.path", options.path):
        parse, stretches = _open(options, split, skim)
        line = 0
        for stretch in stretches:
            yield _sift(stretch, parse, wanted, options, line)
            line += stretch.lines


def _open(
    options: SourceOptions, split: dict[str, Any], skim: bool
) -> tuple[Callable[[Any], PhotoRow], Iterator[_Stretch]]:
    """How a raw row of the format is parsed, and the raw rows."""
    if options.format == "parquet":
        with open_parquet(options) as f:
            column = url_column(options, f.schema_arrow.names)
        return partial(table_row, url_column=column), _numbered(parquet_rows(options, split))
    if options.format == "csv":
        first = next(line_blocks(options.path), b"").lstrip(b"\r\n").split(b"\n")[0]
        column = url_column(options, _header(first))
        return partial(csv_row, url_column=column), (_Stretch(*batch) for batch in csv_rows(options))
    if options.format == "sqlite":
        blocks = sqlite_blocks(options, split)
    else:
        blocks = line_blocks(options.path, split.get("start", 0), split.get("stop"))
    columns = {"yfcc_v1": 23, "sqlite": 23, "yfcc_v2": 25}.get(options.format)
    parse = partial(yfcc_line, columns=columns) if columns else _parsers(options)[options.format]
    return parse, _lines(blocks, Skim(options, columns) if skim and columns else None)


def _numbered(batches: Iterable[list[Any]]) -> Iterator[_Stretch]:
    return (_Stretch(len(batch), enumerate(batch)) for batch in batches)


def _lines(blocks: Iterable[bytes], skim: Skim | None) -> Iterator[_Stretch]:
    for block in blocks:
        if skim is None:
            lines = block.split(b"\n")[:-1]
            count, rows = len(lines), list(enumerate(lines))
        else:
            count, doubtful = skim(block)
            rows = [(i, block[a:b]) for i, a, b in doubtful.tolist()]
        full = [row for row in rows if row[1] not in (b"", b"\r")]
        yield _Stretch(count, full, {"words": count - len(rows), "blank": len(rows) - len(full)})


def _sift(
    stretch: _Stretch, parse: Callable[[Any], PhotoRow], wanted: RowFilter, options: SourceOptions, line: int
) -> Block:
    kept, rejects, dropped = [], [], Counter(stretch.dropped)
    for number, raw in stretch.rows:
        try:
            row = parse(raw)
        except RowError as error:
            rejects.append({"line": line + number + 1, "reason": str(error), "text": _shown(raw)})
            continue
        url = None
        reason = wanted(row)
        if not reason and (url := fetch_url(row, options)) is None:
            reason = "origin"
        if reason:
            dropped[reason] += 1
            continue
        kept.append({
            "photo_id": row.photo_id, "url": row.url, "fetch_url": url,
            "license": f"{row.license} {row.license_url}".strip(), "author": row.author, "page_url": row.page_url,
            "user": row.user,
        })  # fmt: skip
    tables = pa.Table.from_pylist(kept, WANTED), pa.Table.from_pylist(rejects, REJECTS)
    return Block(*tables, +dropped, stretch.lines)


def _shown(raw: Any) -> str:
    """The beginning of a raw row, for whoever looks at the rejects."""
    if isinstance(raw, bytes):
        return raw[: 4 * SHOWN].decode("utf-8", "replace")[:SHOWN]
    text = json.dumps(raw, default=str, ensure_ascii=False) if isinstance(raw, dict) else "\t".join(map(str, raw))
    return text.encode("utf-8", "replace").decode()[:SHOWN]
