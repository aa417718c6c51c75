"""What a crawl has fetched and not committed yet: an append-only local file, so that a kill costs no finished download.

A record is a fixed head (magic, length of the row, length of the body, CRC-32 of the row), the row as JSON and the
body. Each goes out in one write when its photo ends; a process that dies in between leaves at most one cut record,
which reading back stops at. Not synced to disk: a kill keeps what was written, a power cut may not.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

_HEAD = struct.Struct("<4sIII")
_MAGIC = b"WSP1"


class Ref(NamedTuple):
    """Where a record lies: byte offset, length of its row, length of its body."""

    offset: int
    row: int
    body: int


class Spool:
    """One file for one writer. Rows are those of `photos`; their `bytes` are stored as they are."""

    def __init__(self, folder: str | Path) -> None:
        """The file is made below `folder` under a name that no other writer has."""
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, f"{uuid.uuid4().hex}.spool")
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._end = 0

    def append(self, row: Mapping[str, Any]) -> Ref:
        """Write a row behind the others.

        Raises:
            OSError: the disk is full or gone; what was written before stays readable.
        """
        body: bytes = row["bytes"] or b""
        text = json.dumps({k: v for k, v in row.items() if k != "bytes"}).encode()
        ref = Ref(self._end, len(text), len(body))
        record = [memoryview(_HEAD.pack(_MAGIC, len(text), len(body), zlib.crc32(text)) + text), memoryview(body)]
        while record:
            sent = os.pwritev(self._file, record, self._end)
            self._end += sent
            while record and sent >= len(record[0]):
                sent -= len(record.pop(0))
            if record:
                record[0] = record[0][sent:]
        return ref

    def rows(self, refs: Sequence[Ref]) -> list[dict[str, Any]]:
        """The rows at `refs`, without their bytes."""
        return [json.loads(os.pread(self._file, ref.row, ref.offset + _HEAD.size)) for ref in refs]

    def bodies(self, refs: Sequence[Ref]) -> pa.Array:
        """The bytes of the rows at `refs` as a binary column, null where a row has none.

        They are read into one buffer, which the column is made of: they are most of a crawl's bytes, and each copy
        costs as much as all else that is done with a row.
        """
        sizes = np.array([0, *(ref.body for ref in refs)])
        offsets = sizes.cumsum()
        held = pa.allocate_buffer(int(offsets[-1]))
        view = memoryview(held)
        for ref, start in zip(refs, offsets.tolist(), strict=False):
            if ref.body:
                os.preadv(self._file, [view[start : start + ref.body]], ref.offset + _HEAD.size + ref.row)
        valid = pa.array(sizes[1:] > 0).buffers()[1]
        buffers = [valid, pa.py_buffer(offsets.astype(np.int64)), held]
        return pa.Array.from_buffers(pa.large_binary(), len(refs), buffers).cast(pa.binary())

    def close(self) -> None:
        os.close(self._file)


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
