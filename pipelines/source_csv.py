"""Metadata as CSV: one stream, for a newline inside quotes is part of a value."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from pipelines.source_files import line_blocks
from pipelines.source_options import SourceOptions
from pipelines.source_rows import PhotoRow, RowError, table_row, text_of

BATCH = 8192
MAX_ROW = 256  # lines; a quote that is open for longer was never meant to be


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


def csv_rows(options: SourceOptions) -> Iterator[tuple[int, list[tuple[int, Any]], Counter[str]]]:
    """Batches: the lines it takes, its rows with their first line, counted from the batch's first, and other lines.

    A row is its columns by name; one with another number of columns is the list of them. Where a quote is not closed
    within MAX_ROW lines, or closes in the middle of a value or in a row that does not fit the header, its first line
    alone is a row, as bytes, and the next one begins at the line after it.
    """
    stream = (line for block in line_blocks(options.path) for line in block.splitlines(keepends=True))
    at, head = next((i, line) for i, line in enumerate(stream, 1) if line.strip(b"\r\n"))
    header, delimiter = csv_header(head)
    dropped, rows = Counter(header=1, blank=at - 1), list[tuple[int, Any]]()
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.row.clear()
        try:
            values = next(reader, None)
        except csv.Error as error:
            alone = len(lines.row) == 1 and not isinstance(error, _OpenQuote)
            values = _loosely(lines.row[0], delimiter) if alone else None
        taken = len(lines.row)
        if not taken:
            break
        if values is not None and len(values) == len(header):
            rows.append((at, dict(zip(header, values, strict=True))))
        elif taken > 1 or values is None:
            rows.append((at, lines.row[0]))
            lines.again()
            taken = 1
        elif values:
            rows.append((at, values))
        else:
            dropped["blank"] += 1
        dropped["quoted"] += taken - 1
        at += taken
        if len(rows) == BATCH:
            yield at, rows, dropped
            at, rows, dropped = 0, [], Counter()
    yield at, rows, dropped


def csv_row(row: dict[str, str] | list[str] | bytes, url_column: str) -> PhotoRow:
    """Raises RowError: the row has another number of columns than the header, or no URL."""
    if isinstance(row, bytes):
        raise RowError(f"a quote that is not closed, or a value of more than {csv.field_size_limit()} characters")
    if isinstance(row, list):
        raise RowError(f"{len(row)} columns, not those of the header")
    return table_row(row, url_column)


def _loosely(line: bytes, delimiter: str) -> list[str] | None:
    """The values of a line with quotes where the rules want none; None if one is too long."""
    try:
        return next(csv.reader([line.decode("utf-8", "replace")], delimiter=delimiter))
    except csv.Error:
        return None


class _OpenQuote(csv.Error):
    """A quote is not closed within MAX_ROW lines, nor before the file ends."""


class _Lines:
    """Text lines for a `csv.reader`, which asks for one more as long as a quote is open.

    Attributes:
        row: the lines that the reader took since whoever reads has cleared it.
    """

    def __init__(self, stream: Iterator[bytes]) -> None:
        self.row: list[bytes] = []
        self._stream, self._waiting = stream, deque[bytes]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = None
        if len(self.row) < MAX_ROW:
            line = self._waiting.popleft() if self._waiting else next(self._stream, None)
        if line is None:
            if self.row:
                raise _OpenQuote
            raise StopIteration
        self.row.append(line)
        return line.decode("utf-8", "replace")

    def again(self) -> None:
        """Give the lines of the row once more, its first one apart."""
        self._waiting.extendleft(reversed(self.row[1:]))
