"""What a crawl has fetched and not committed yet: an append-only local file, so that a kill costs no finished download.

A record is a fixed head (magic, length of the row, length of the body, CRC-32 of the row), the row as JSON and the
body, written when its photo ends; a process that dies in between leaves at most one cut record,
which reading back stops at. Not synced to disk: a kill keeps what was written, a power cut may not.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

_HEAD = struct.Struct("<4sIII")
_MAGIC = b"WSP1"
_AT_ONCE = 512  # pieces in one call of the system, which takes no more than 1,024


class Ref(NamedTuple):
    """Where a record lies: byte offset, length of its row, length of its body."""

    offset: int
    row: int
    body: int

    @property
    def end(self) -> int:
        return self.offset + _HEAD.size + self.row + self.body


class Spool:
    """One file for one writer. Rows are those of `photos`; their `bytes` are stored as they are."""

    def __init__(self, folder: str | Path) -> None:
        """The file is made below `folder` under a name that no other writer has."""
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, f"{uuid.uuid4().hex}.spool")
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._end = 0

    def append(self, rows: Iterable[Mapping[str, Any]]) -> list[Ref]:
        """Write rows behind the others.

        Raises:
            OSError: the disk is full or gone; what was written before stays readable.
        """
        refs: list[Ref] = []
        pieces: list[bytes] = []
        at = self._end
        for row in rows:
            body: bytes = row["bytes"] or b""
            text = json.dumps({k: v for k, v in row.items() if k != "bytes"}).encode()
            pieces += (_HEAD.pack(_MAGIC, len(text), len(body), zlib.crc32(text)) + text, body)
            refs.append(Ref(at, len(text), len(body)))
            at = refs[-1].end
        self._end = _all(os.pwritev, self._file, pieces, self._end)
        return refs

    def read(self, refs: Sequence[Ref]) -> tuple[list[dict[str, Any]], pa.Array]:
        """The rows at `refs` without their bytes, and these as a binary column, null where a row has none.

        The bytes are read into one buffer, which the column is made of: they are most of a crawl's bytes, and each
        copy costs as much as all else that is done with a row.
        """
        sizes = np.array([0, *(ref.body for ref in refs)])
        offsets = sizes.cumsum()
        held = pa.allocate_buffer(int(offsets[-1]))
        view = memoryview(held)
        texts = [bytearray(_HEAD.size + ref.row) for ref in refs]
        begun, end, run = 0, 0, list[Any]()
        for i in sorted(range(len(refs)), key=refs.__getitem__):
            if refs[i].offset != end:  # the record before is not one of ours
                _all(os.preadv, self._file, run, begun)
                begun, run = refs[i].offset, []
            run += (texts[i], view[offsets[i] : offsets[i + 1]])
            end = refs[i].end
        _all(os.preadv, self._file, run, begun)
        valid = pa.array(sizes[1:] > 0).buffers()[1]
        buffers = [valid, pa.py_buffer(offsets.astype(np.int64)), held]
        bodies = pa.Array.from_buffers(pa.large_binary(), len(refs), buffers).cast(pa.binary())
        return [json.loads(text[_HEAD.size :]) for text in texts], bodies

    def close(self) -> None:
        os.close(self._file)


def _all(call: Callable[..., int], file: int, pieces: Sequence[Any], at: int) -> int:
    """Write or read all the pieces from offset `at` on, with few calls of the system; return where they end."""
    left = [memoryview(piece) for piece in pieces if len(piece)]
    while left:
        done = call(file, left[:_AT_ONCE], at)
        if not done:
            raise OSError(f"the spool ends at byte {at}: it was cut while it was in use")
        at += done
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if done:
            left[0] = left[0][done:]
    return at


def left_behind(spool: Spool) -> Iterator[dict[str, Any]]:
    """Whole rows of the other spools in a spool's folder, whose writers may be dead. A cut record ends its file."""
    own = Path(spool.path)
    for path in sorted(own.parent.glob("*.spool")):
        if path == own:
            continue
        with path.open("rb") as f:
            while len(head := f.read(_HEAD.size)) == _HEAD.size:
                magic, row_length, body_length, check = _HEAD.unpack(head)
                text, body = f.read(row_length), f.read(body_length)
                if magic != _MAGIC or zlib.crc32(text) != check or len(body) != body_length:
                    break
                yield {**json.loads(text), "bytes": body or None}


def discard(spool: Spool) -> None:
    """Remove a spool's folder, once the rows of all spools in it are committed."""
    shutil.rmtree(os.path.dirname(spool.path), ignore_errors=True)
