"""The fast path over YFCC lines: most rows are surely well formed and surely name no word of the category.

Whole blocks are looked at with NumPy and RE2; only lines that are not so plain go through the parser and the filter,
one by one. The result is the one that these would give for every line.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.source_autotags import tagged_ids
from pipelines.source_files import MAX_LINE
from pipelines.source_options import SourceOptions
from pipelines.source_words import encoded_pattern

DIGITS = 16  # ids of Flickr have 11


class Skim:
    """Call it with a block of whole lines: (lines in it, [n, 3] number, start and end of each to be looked at closer).

    The other lines are photos of an allowed extension whose text has no word and that no autotag speaks for.
    """

    def __init__(self, options: SourceOptions, columns: int) -> None:
        self.columns = columns
        self.pattern = encoded_pattern(options.words)
        self.extensions = np.array([_packed(e) for e in _cases(options.extensions)], np.uint32)
        self.tagged = None if options.autotags is None else tagged_ids(options.autotags)

    def __call__(self, block: bytes) -> tuple[int, np.ndarray]:
        buf = np.frombuffer(block, np.uint8)
        marks = np.flatnonzero(buf - np.uint8(9) < 2)  # tabs and newlines
        newline = np.flatnonzero(buf[marks] == 10)  # [lines], places in `marks`
        ends = marks[newline]
        lines = np.stack([np.arange(len(ends)), np.append(0, ends[:-1] + 1), ends], axis=1)  # [lines, 3]
        whole = np.flatnonzero(np.diff(newline, prepend=-1) == self.columns)
        if not len(whole):
            return len(lines), lines

        def stop(column: int) -> np.ndarray:
            """[rows] where a column of v1, from the user on, ends; the next one begins after it."""
            return marks[newline[whole] - (22 - column)]

        first = lines[whole, 1]
        key = first if self.columns == 23 else marks[newline[whole] - 24] + 1
        plain, ids = self._key(buf, key, (stop(0) if self.columns == 23 else marks[newline[whole] - 23]) - key)
        marker = stop(21) + 1
        plain &= (ends[whole] == marker + 1) & (buf[marker] == ord("0")) & (ends[whole] - first <= MAX_LINE)
        plain &= self._is_url(buf, stop(13) + 1, stop(14))
        if len(self.extensions):
            plain &= self._is_allowed(buf, stop(20) + 1, stop(21))
        plain &= ~self._has_word(block, stop(5), stop(8))
        if self.tagged is not None and len(self.tagged):
            at = np.minimum(np.searchsorted(self.tagged, ids), len(self.tagged) - 1)
            plain &= self.tagged[at] != ids
        return len(lines), np.delete(lines, whole[plain], axis=0)

    def _key(self, buf: np.ndarray, start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether the id is a number of 1 to DIGITS digits, and the number."""
        digits = _gather(buf, start, DIGITS) - np.uint8(48)  # [rows, DIGITS]
        inside = np.arange(DIGITS) < length[:, None]
        plain = (length > 0) & (length <= DIGITS) & ((digits < 10) | ~inside).all(axis=1)
        ids = np.zeros(len(start), np.int64)
        if self.tagged is not None:
            for i in range(DIGITS):
                ids = np.where(inside[:, i], ids * 10 + digits[:, i], ids)
        return plain, ids

    @staticmethod
    def _is_url(buf: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Whether `://` stands where http and https have it."""
        head = _gather(buf, start + 4, 4)
        sign = np.frombuffer(b"://", np.uint8)
        http, https = (head[:, :3] == sign).all(axis=1), (head[:, 1:] == sign).all(axis=1)
        return (stop - start >= 8) & (http | https)

    def _is_allowed(self, buf: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        length = (stop - start)[:, None]
        four = np.where(np.arange(4) < length, _gather(buf, start, 4), np.uint8(9))
        return (length[:, 0] <= 4) & np.isin(four.view(np.uint32)[:, 0], self.extensions)

    def _has_word(self, block: bytes, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Whether title, description or tags may have a word; `start` is the tab before them."""
        # An Arrow array over the block itself: the texts are its even values, what lies between them the odd ones.
        offsets = np.stack([start, stop], axis=1).astype(np.int32)
        count = 2 * len(start) - 1
        values = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(block)])
        texts = values.take(pa.array(np.arange(0, count, 2)))
        return pc.match_substring_regex(texts, self.pattern).to_numpy(zero_copy_only=False)


def _gather(buf: np.ndarray, start: np.ndarray, width: int) -> np.ndarray:
    """[rows, width] bytes from each start on; past the end of the block, its last byte again."""
    return buf[np.minimum(start[:, None] + np.arange(width), len(buf) - 1)]


def _cases(extensions: tuple[str, ...]) -> list[str]:
    return [x for e in extensions for x in {e, e.upper()} if x.isascii() and len(x) <= 4]


def _packed(text: str) -> int:
    """Four bytes as a number, filled up with tabs: no field has one."""
    return int(np.frombuffer(text.encode().ljust(4, b"\t"), np.uint32)[0])
