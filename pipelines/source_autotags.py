"""Autotags: what a classifier saw in each photo of YFCC100M, as `photoid TAB tag:score,tag:score`."""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import unquote_plus

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.source_files import line_blocks, readable
from pipelines.source_options import Autotags
from pipelines.source_words import encoded_pattern, word_pattern
from tables import InputError, locate

_LINE = re.compile(rb"\d{1,18}\t(?:[^\t\n]*:[0-9.eE+-]+)?\r?")


def check_autotags(tags: Autotags) -> None:
    """Raises InputError where the file is missing or its first lines are none of its format."""
    with readable("source.autotags.path", tags.path):
        first = next(line_blocks(tags.path), b"").split(b"\n")[:100]
    if not any(_LINE.fullmatch(line) for line in first):
        raise InputError("source.autotags.path", tags.path, "no row of it is `photoid TAB tag:score,tag:score`")


def read_tagged(tags: Autotags) -> np.ndarray:
    """Sorted int64 ids of the photos that have one of the words, as a whole tag, at or above the threshold.

    The file is streamed; a `.npy` is such an array already. Lines that are none of the format tell nothing.
    """
    with readable("source.autotags.path", tags.path):
        if tags.path.endswith(".npy"):
            filesystem, name = locate(tags.path)
            with filesystem.open_input_stream(name) as f:
                return np.load(io.BytesIO(f.read()))
        exact, coarse, ids = word_pattern(tags.words), encoded_pattern(tags.words), array("q")
        for block in line_blocks(tags.path):
            for line in _candidates(block, coarse):
                if _LINE.fullmatch(line) and _speaks(line, exact, tags.threshold):
                    ids.append(int(line.partition(b"\t")[0]))
    return np.unique(np.frombuffer(ids, np.int64))


tagged_ids = lru_cache(maxsize=1)(read_tagged)  # read once for all splits of a process


def is_tagged(photo_id: str, ids: np.ndarray) -> bool:
    """Whether a photo of the dump is among the sorted ids."""
    source, _, key = photo_id.partition(":")
    if source != "yfcc" or not (key.isascii() and key.isdigit()) or len(key) > 18:
        return False
    at = np.searchsorted(ids, int(key))
    return bool(at < len(ids) and ids[at] == int(key))


def _candidates(block: bytes, coarse: str) -> Sequence[bytes]:
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10).astype(np.int32)
    # Each value begins with the newline before it; the first line has none and is looked at in any case.
    lines = pa.Array.from_buffers(pa.binary(), len(ends) - 1, [None, pa.py_buffer(ends), pa.py_buffer(block)])
    found = lines.filter(pc.match_substring_regex(lines, coarse)) if len(ends) > 1 else []
    return [block[: ends[0]], *(line.as_py()[1:] for line in found)]


def _speaks(line: bytes, exact: re.Pattern[str], threshold: float) -> bool:
    for pair in line.partition(b"\t")[2].decode("utf-8", "replace").split(","):
        tag, _, score = pair.rpartition(":")
        try:
            if float(score) >= threshold and exact.fullmatch(unquote_plus(tag).replace("_", " ")):
                return True
        except ValueError:
            continue
    return False
