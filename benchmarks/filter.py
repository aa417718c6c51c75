"""Filtering rows of the v2 dump: rows a second of one core, memory, and what that means for the real 100 million.

    PYTHONPATH=. python benchmarks/filter.py          # 10 million rows, some minutes; writes results/filter.json

Rows are made on the fly and read through a pipe, so that nothing of them lies on a disk. Each figure is the CPU time
and the peak memory of a process of its own, which does what a task of the crawl does with a split. The plan is made of
rows that all pass, the worst case of it.
"""

from __future__ import annotations

import argparse
import bz2
import json
import os
import platform
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from pipelines.plan_shards import arrange, write_shards
from pipelines.source_files import whole_lines
from pipelines.source_options import SourceOptions
from pipelines.sources import WANTED, read_split
from sandbox import yfcc

RESULTS = Path(__file__).parent / "results" / "filter.json"
POOL = 20_000  # rows that are drawn; the others are these with other ids
FIRST_ID = 1_000_000_000
REAL = 100_000_000
SYNONYMS = {"horse": ["mare", "stallion", "foal", "pony"]}


def blocks(rows: int) -> Iterator[bytes]:
    """v2 rows with ids of their own: one in 100 names a horse, one in 125 is a video, one in 10,000 is broken."""
    rng = np.random.default_rng(0)
    drawn = [
        yfcc.line(yfcc.draw(rng, i, FIRST_ID + i, "horse" if i % 100 == 0 else None, video=i % 125 == 1))
        if i % 10_000 != 7
        else yfcc.malformed(rng)
        for i in range(POOL)
    ]
    ends = np.cumsum([len(line) + 1 for line in drawn])
    pool = np.frombuffer(("\n".join(drawn) + "\n").encode(), np.uint8).copy()
    at, which = [], []  # where the id's digits stand: its own column and two URLs
    for i, (line, end) in enumerate(zip(drawn, ends, strict=True)):
        start, place = end - len(line) - 1, -1
        while (place := line.find(str(FIRST_ID + i), place + 1)) >= 0:
            at.append(start + place)
            which.append(i)
    where = np.array(at)[:, None] + np.arange(10)
    for first in range(0, rows, POOL):
        ids = FIRST_ID + first + np.array(which)
        pool[where] = ids[:, None] // 10 ** np.arange(9, -1, -1) % 10 + ord("0")
        yield pool[: ends[min(POOL, rows - first) - 1]].tobytes()


def options(path: str) -> SourceOptions:
    given = {"path": path, "format": "yfcc_v2", "synonyms": SYNONYMS, "extensions": ["jpg", "jpeg", "png", "gif"]}
    return SourceOptions.from_config(given, "horse")


def read(path: str, skim: bool = True) -> dict[str, Any]:
    """One process reads and filters a file or pipe."""
    began, lines, wanted, dropped = time.process_time(), 0, 0, Counter[str]()
    with mock.patch("pipelines.sources.line_blocks", opened) if stat.S_ISFIFO(os.stat(path).st_mode) else nullcontext():
        for block in read_split(options(path), {}, skim):
            lines, wanted, dropped = lines + block.lines, wanted + len(block.wanted), dropped + block.dropped
    cpu = time.process_time() - began
    return {"rows": lines, "wanted": wanted, "dropped": dropped, "rows_per_s_per_core": round(lines / cpu)}


def opened(path: str, *_: Any) -> Iterator[bytes]:
    """Arrow opens files only; of a pipe Python reads the same blocks."""
    with open(path, "rb") as pipe:
        yield from whole_lines(pipe.read)


def plan(rows: int) -> dict[str, Any]:
    """One process brings so many wanted rows into shards."""
    row = {"license": "Attribution License http://creativecommons.org/licenses/by/2.0/", "author": "jane"}

    def tables() -> Iterator[pa.Table]:
        for first in range(0, rows, POOL):
            ids = [str(FIRST_ID + i) for i in range(first, min(first + POOL, rows))]
            urls = [f"http://farm1.staticflickr.com/7205/{i}_df7747990d.jpg" for i in ids]
            yield pa.Table.from_pydict({
                "photo_id": [f"yfcc:{i}" for i in ids], "url": urls, "fetch_url": urls,
                "license": [row["license"]] * len(ids), "author": [row["author"]] * len(ids),
                "page_url": [f"http://www.flickr.com/photos/39089491@N00/{i}/" for i in ids],
                "user": [f"{int(i) % 5000}@N00" for i in ids],
            }, WANTED)  # fmt: skip

    began, kept = time.process_time(), 0
    with tempfile.TemporaryDirectory() as scratch:
        for table in arrange(tables(), rows, 4096, 0, Path(scratch), Counter()):
            write_shards(table, 4096)
            kept += len(table)
    return {"rows": kept, "rows_per_s_per_core": round(rows / (time.process_time() - began))}


def measured(*arguments: str, feed: int = 0) -> dict[str, Any]:
    """Run this file as a process with a pipe of `feed` rows; its figures, its wall time and peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        if feed:
            pipe = f"{folder}/rows.tsv"
            os.mkfifo(pipe)
            arguments = (*arguments, pipe)
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, __file__, "--child", *arguments], stdout=subprocess.PIPE, text=True)
        if feed:
            with open(pipe, "wb") as out:
                for block in blocks(feed):
                    out.write(block)
        found = json.loads(child.communicate()[0])
    return {**found, "wall_s": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, value = arguments.child
        found = plan(int(value)) if what == "plan" else read(value, skim=what == "read")
        # Not getrusage: its maximum begins with the parent's at the fork.
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        found["peak_mb"] = round(int(peak[1]) / 1024) if peak else None
        sys.stdout.write(json.dumps(found))
        return
    few, many = arguments.rows // 10, arguments.rows
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "rows.tsv.bz2"
        packed.write_bytes(bz2.compress(b"".join(blocks(few // 5))))
        bytes_per_row = sum(map(len, blocks(POOL))) / POOL
        found = {
            "plain": [measured("read", feed=few), measured("read", feed=many)],
            "bz2": measured("read", str(packed)),
            "line_by_line": measured("lines", feed=few // 5),
            "plan": [measured("plan", str(few)), measured("plan", str(many))],
        }
    for name in ("plain", "bz2"):
        figures = found[name][-1] if name == "plain" else found[name]
        found[f"hours_for_100_million_{name}_one_core"] = round(REAL / figures["rows_per_s_per_core"] / 3600, 3)
    found |= {"bytes_per_row": round(bytes_per_row), "cores": os.cpu_count(), "python": platform.python_version(),
              "pyarrow": pa.__version__, "numpy": np.__version__}  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(RESULTS.read_text())


if __name__ == "__main__":
    main()
