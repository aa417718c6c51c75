"""Duplicates among ten million photos on one core: seconds and peak memory of both searches.

    PYTHONPATH=. python benchmarks/duplicates.py      # 10 million photos, minutes; writes results/duplicates.json

Each figure is of a process of its own: the CPU time of the search, and the peak memory of the whole process beside the
memory before the search, which its input columns (ids, hashes) take. Hashes are random; one in twenty is up to three
bits from another. In the crowd one in fifty besides has few bits set, as pictures of sky and snow have: they are near
each other by the thousand.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.duplicates import find_exact, find_near

RESULTS = Path(__file__).parent / "results" / "duplicates.json"
CASES = ("exact", "near", "near_crowd")


def flips(rng: np.random.Generator, count: int, bits: int) -> np.ndarray:
    """Up to `bits` bits set in each of `count` words."""
    out = np.zeros(count, np.uint64)
    for _ in range(bits):
        out |= (np.uint64(1) << rng.integers(0, 64, count, np.uint64)) * (rng.random(count) < 0.7)
    return out


def hashes(rng: np.random.Generator, count: int, crowd: bool) -> pa.ChunkedArray:
    bits = rng.integers(0, 2**64, count, np.uint64)
    if crowd:
        bits[rng.choice(count, count // 50, replace=False)] = flips(rng, count // 50, 8)
    copies = rng.choice(count, count // 20, replace=False)
    bits[copies] = bits[rng.integers(0, count, len(copies))] ^ flips(rng, len(copies), 3)
    return pa.chunked_array([bits])


def names(numbers: np.ndarray, head: str, tail: str = "") -> pa.ChunkedArray:
    """Strings of 20 digits between `head` and `tail`, made by Arrow so that the process stays small until measured."""
    slabs = [pa.array(numbers[at : at + 10**5]).cast(pa.string()) for at in range(0, len(numbers), 10**5)]
    return pa.chunked_array([pc.binary_join_element_wise(head, pc.utf8_lpad(s, 20, "0"), tail, "") for s in slabs])


def measure(case: str, count: int, radius: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    ids = names(rng.permutation(count), "yfcc:")
    if case == "exact":
        own = rng.permutation(count)
        own[rng.choice(count, count // 20, replace=False)] = rng.integers(0, count, count // 20)
        spread = own.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
        column = names(spread, "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b")
    else:
        column = hashes(rng, count, case == "near_crowd")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    removed = find_exact(ids, column) if case == "exact" else find_near(ids, column, radius)
    spent = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "photos": count, "removed": len(removed), "cpu_s": round(spent, 1),
        "us_per_photo": round(1e6 * spent / count, 2), "mib_before": before // 1024, "mib_peak": peak // 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--radius", type=int, default=4)
    parser.add_argument("--case", choices=CASES, help="measure this alone, in this process")
    args = parser.parse_args()
    if args.case:
        sys.stdout.write(json.dumps(measure(args.case, args.photos[0], args.radius)) + "\n")
        return
    found: dict[str, list[dict[str, float]]] = {}
    for case in CASES:
        for count in args.photos:
            command = [sys.executable, __file__, "--case", case, "--photos", str(count), "--radius", str(args.radius)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.setdefault(case, []).append(json.loads(done.stdout))
            sys.stdout.write(f"{case}: {found[case][-1]}\n")
            sys.stdout.flush()
    about = {"radius": args.radius, "machine": platform.machine(), "numpy": np.__version__, "arrow": pa.__version__}
    RESULTS.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
