"""Metadata files as bytes: whole lines, some megabytes at a time, whatever the file's size."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs as pafs

from tables import InputError, locate

PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
MAX_LINE = 1 << 20  # no row of a known format is longer
STEP = 4 << 20


@contextmanager
def readable(argument: str, path: str) -> Iterator[None]:
    """Turns what goes wrong while reading into an InputError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise InputError(argument, path, f"cannot be read: {' '.join(str(error).split())}") from error


def packing(path: str) -> str | None:
    """How the file is packed, by the end of its name in any case; None if it is not."""
    return PACKED.get(os.path.splitext(path)[1].lower())


@contextmanager
def open_unpacked(path: str) -> Iterator[gzip.GzipFile | pa.NativeFile]:
    """The file's bytes from its beginning, unpacked on the way."""
    filesystem, name = locate(path)
    kind = packing(path)
    if kind == "gzip":  # Arrow takes the zeros that tape and some web servers put behind it for one more stream
        with filesystem.open_input_stream(name, compression=None) as packed, gzip.GzipFile(fileobj=packed) as f:
            yield f
        return
    with filesystem.open_input_stream(name, compression=kind) as f:
        yield f


def file_state(argument: str, path: str) -> dict[str, int]:
    """Size in bytes and time of the last change, in nanoseconds.

    Raises:
        InputError: there is no such file.
    """
    with readable(argument, path):
        filesystem, name = locate(path)
        info = filesystem.get_file_info(name)
    if info.type != pafs.FileType.File:
        raise InputError(argument, path, "no such file" if info.type == pafs.FileType.NotFound else "no file")
    return {"size": info.size, "mtime_ns": info.mtime_ns or 0}


def byte_ranges(size: int, step: int) -> list[dict[str, int]]:
    return [{"start": s, "stop": min(s + step, size)} for s in range(0, size, step)]


def line_blocks(path: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Blocks of whole lines, each line with its newline; unpacked on the way (.gz, .bz2, .zst, .lz4).

    With `stop`: the lines that begin in [start, stop) of a plain file, so that ranges side by side give every line
    once. Of a line much longer than MAX_LINE only the beginning is kept.
    """
    if stop is None:
        with open_unpacked(path) as f:
            yield from whole_lines(f.read)
        return
    filesystem, name = locate(path)
    with filesystem.open_input_file(name) as f:
        begin, end = _line_start(f, start), _line_start(f, stop)
        f.seek(begin)
        yield from whole_lines(lambda n: f.read(min(n, end - f.tell())))


def _line_start(f: pa.NativeFile, at: int) -> int:
    """Where the first line begins that begins at `at` or later."""
    if at == 0:
        return 0
    f.seek(at - 1)
    while chunk := f.read(1 << 16):
        if (found := chunk.find(b"\n")) >= 0:
            return f.tell() - len(chunk) + found + 1
    return f.tell()


def whole_lines(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """What `read` gives, cut at newlines."""
    rest = b""
    while chunk := read(STEP):
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield rest + chunk[:cut]
            rest = chunk[cut:]
        else:
            rest = (rest + chunk)[: 2 * MAX_LINE]
    if rest:
        yield rest + b"\n"
