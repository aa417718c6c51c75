"""Metadata rows of web photos: YFCC100M dumps (v1, v2) and lists of URLs, streamed, parsed and filtered.

A row that cannot be parsed is a reject with its line number and reason; a row that is not wanted is counted by reason.
Nothing here holds more of the file than what passed the filter.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.source_filter import RowFilter, SourceOptions
from tables import InputError, photo_id

MAX_LINE = 64 << 20
MAX_REJECTS = 100_000  # kept in full; beyond that they are only counted


class RowError(ValueError):
    """A line that is no row of its format."""


@dataclass(frozen=True)
class PhotoRow:
    """One photo that the metadata knows of. Text is decoded; what the source does not tell is empty."""

    photo_id: str
    url: str
    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    license: str = ""
    license_url: str = ""
    author: str = ""
    page_url: str = ""
    extension: str = ""
    video: bool = False

    def to_fetch(self) -> dict[str, str]:
        """What the fetcher needs and the `photos` table keeps; the licence is its name and its URL."""
        return {
            "photo_id": self.photo_id, "url": self.url, "license": f"{self.license} {self.license_url}".strip(),
            "author": self.author, "page_url": self.page_url,
        }  # fmt: skip


@dataclass
class Selection:
    """What reading a source gave: rows to fetch in file order, and the count of everything else."""

    rows: list[dict[str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    rejected: int = 0
    lines: int = 0

    def add(self, later: Selection) -> None:
        """Append the selection of the lines that follow; its line numbers count from its own start."""
        for reject in later.rejects[: MAX_REJECTS - len(self.rejects)]:
            self.rejects.append({**reject, "line": reject["line"] + self.lines})
        self.rows += later.rows
        self.dropped += later.dropped
        self.rejected += later.rejected
        self.lines += later.lines

    def without_repeats(self) -> Selection:
        """The first row of each photo id; the others are dropped as `repeated`."""
        first: dict[str, dict[str, str]] = {}
        for row in self.rows:
            first.setdefault(row["photo_id"], row)
        self.dropped += Counter(repeated=len(self.rows) - len(first))
        self.rows = list(first.values())
        return self


def check_source(source: Any, category: str) -> SourceOptions:
    """The checked options of `conf/source`, with `format` told from the file's first lines.

    Raises:
        InputError: the file is missing, empty or in no known format, or an option has a value it cannot have.
    """
    options = SourceOptions.from_config(source, category)
    with _readable(options):
        filesystem, name = locate(options.path)
        kind = filesystem.get_file_info(name).type
    if kind != pafs.FileType.File:
        raise InputError("source.path", options.path, "no such file" if kind == pafs.FileType.NotFound else "no file")
    with _readable(options), filesystem.open_input_stream(name) as f:
        first = [line for line in f.read(1 << 20).split(b"\n")[:100] if line]
    if not first:
        raise InputError("source.path", options.path, "the file is empty")
    found = {name: sum(_parses(name, line) for line in first) for name in PARSERS}
    if options.format != "auto":
        if not found[options.format]:
            best = max(found, key=lambda f: found[f])
            hint = f"it looks like {best}" if found[best] else f"known are {', '.join(PARSERS)}"
            raise InputError("source.path", options.path, f"no row of it is {options.format}; {hint}")
        return options
    best = max(found, key=lambda f: found[f])
    if not found[best]:
        known = "YFCC v2 (25 tab-separated columns), YFCC v1 (23), or one URL or JSON object a line"
        raise InputError("source.path", options.path, f"no known format; known are {known}")
    return options.with_format(best)


def read_source(options: SourceOptions) -> Selection:
    """Rows that pass the filter. A big plain file is read in byte ranges by Ray Data on the Ray in use, so every node
    must see it at the same path; any other file is streamed here.

    Raises:
        InputError: the file breaks off (a cut archive) or has a line longer than any row.
    """
    size, step = source_size(options), int(options.range_mb * 2**20)
    if not options.in_ranges(size):
        with _readable(options):
            return select_lines(stream_lines(options.path), options).without_repeats()
    import ray

    ranges = [{"start": s, "stop": min(s + step, size)} for s in range(0, size, step)]
    if "://" not in options.path:  # tasks may have another working directory
        options = replace(options, path=os.path.abspath(options.path))
    spans = ray.data.from_items(ranges, override_num_blocks=len(ranges))
    read = spans.map(partial(_read_range, options), num_cpus=1)
    # Ranges may come in any order: line numbers and "first row wins" need theirs.
    parts = sorted(read.iter_rows(), key=lambda r: r["start"])
    total = Selection()
    for part in parts:
        found = json.loads(part["found"])
        total.add(Selection(**{**found, "dropped": Counter(found["dropped"])}))
    return total.without_repeats()


def _read_range(options: SourceOptions, span: dict[str, Any]) -> dict[str, Any]:
    found = select_lines(stream_lines(options.path, span["start"], span["stop"]), options)
    return {"start": span["start"], "found": json.dumps(vars(found))}


def select_lines(lines: Iterable[bytes], options: SourceOptions) -> Selection:
    """Parse and filter lines (without their newline); empty lines are skipped but counted."""
    parse, wanted = PARSERS[options.format], RowFilter(options)
    out = Selection()
    for line in lines:
        out.lines += 1
        if not line or line == b"\r":
            continue
        try:
            row = parse(line.decode("utf-8", "replace").removesuffix("\r"))
        except RowError as error:
            out.rejected += 1
            if len(out.rejects) < MAX_REJECTS:
                out.rejects.append({"line": out.lines, "reason": str(error)})
            continue
        keep, reason = wanted(row)
        if keep:
            out.rows.append(row.to_fetch())
        else:
            out.dropped[reason] += 1
    return out


# -- bytes to lines --------------------------------------------------------------------------------------------------


def locate(path: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem and name of a local path or URI."""
    if "://" in path:
        return pafs.FileSystem.from_uri(path)
    return pafs.LocalFileSystem(), os.path.abspath(path)


def source_size(options: SourceOptions) -> int:
    """Bytes of the file as it lies."""
    filesystem, name = locate(options.path)
    return filesystem.get_file_info(name).size


@contextmanager
def _readable(options: SourceOptions) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError("source.path", options.path, f"cannot be read: {error}") from error


def stream_lines(path: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Lines without their newline, unpacked on the way (.gz, .bz2).

    With a byte range: the lines that begin in [start, stop), so that ranges side by side give every line once.
    """
    filesystem, name = locate(path)
    if stop is None:
        with filesystem.open_input_stream(name) as f:  # compression is told from the file name
            yield from _lines(f, None)
        return
    with filesystem.open_input_file(name) as f:
        f.seek(max(start - 1, 0))
        lines = _lines(f, stop - max(start - 1, 0))
        if start:
            next(lines, None)  # the end of a line that began before; empty if one ends right before `start`
        yield from lines


def _lines(f: Any, length: int | None) -> Iterator[bytes]:
    """Split by newline only (other line separators may stand inside a field); stop at lines that begin at `length`."""
    rest, begin = b"", 0
    while chunk := f.read(1 << 20):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE:
            raise OSError(f"a line of more than {MAX_LINE} bytes")
        for line in lines:
            if length is not None and begin >= length:
                return
            yield line
            begin += len(line) + 1
    if rest and (length is None or begin < length):
        yield rest


# -- lines to rows ---------------------------------------------------------------------------------------------------

_PHOTO_KEY = re.compile(r"[0-9A-Za-z_.-]{1,64}")


def _yfcc(line: str, columns: int, first: int) -> PhotoRow:
    """A YFCC100M row: tab separated, no quoting, text URL-encoded. `first` is the column of the photo id."""
    f = line.split("\t")  # never strip() the line: empty fields at its edge would vanish
    if len(f) != columns:
        raise RowError(f"{len(f)} columns, not {columns}")
    # v2 has the photo's hash between id and user; from the user on, the columns are those of v1.
    key, f = f[first], f[columns - 22 :]
    if not _PHOTO_KEY.fullmatch(key):
        raise RowError(f"photo id {key[:40]!r}")
    url, marker = f[13], f[21]
    if "://" not in url:
        raise RowError(f"download URL {url[:80]!r}")
    if marker not in ("0", "1"):
        raise RowError(f"marker {marker[:20]!r} is neither 0 (photo) nor 1 (video)")
    return PhotoRow(
        photo_id=photo_id(url, "yfcc", key),
        url=url,
        title=unquote_plus(f[5]),
        description=unquote_plus(f[6]),
        tags=tuple(unquote_plus(t) for t in f[7].split(",") if t),
        license=unquote_plus(f[14]),
        license_url=f[15],
        author=unquote_plus(f[1]) or f[0],
        page_url=f[12],
        extension=f[20].lower(),
        video=marker == "1",
    )


def _yfcc_v1(line: str) -> PhotoRow:
    return _yfcc(line, 23, 0)


def _yfcc_v2(line: str) -> PhotoRow:
    return _yfcc(line, 25, 1)


def _url_line(line: str) -> PhotoRow:
    """A URL, or a JSON object with `item_download_url` (the export of the YFCC100M search page)."""
    url: Any = line.strip()
    if url.startswith("{"):
        try:
            found = json.loads(url)
        except ValueError as error:
            raise RowError(f"no JSON: {error}") from error
        url = found.get("item_download_url") if isinstance(found, Mapping) else None
    if not isinstance(url, str) or not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S", url):
        raise RowError("no URL and no JSON object with item_download_url")
    # The list was made for the category: rows without any text pass the word filter.
    return PhotoRow(photo_id=photo_id(url), url=url)


PARSERS = {"yfcc_v2": _yfcc_v2, "yfcc_v1": _yfcc_v1, "urls": _url_line}


def _parses(name: str, line: bytes) -> bool:
    try:
        PARSERS[name](line.decode("utf-8", "replace").removesuffix("\r"))
    except RowError:
        return False
    return True
