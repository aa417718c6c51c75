"""What selecting costs and what it is worth.

    python -m benchmarks.selection --rows 10000000 --lake ./lake --out benchmarks/results/selection.json

`speed`: for each criterion, the best 3,000 of so many rows by `select_stream`, in a process of its own. Rows are record
batches of random predictions, made on the fly, of the columns that the criterion reads and no others; `rows_per_s` is
by the CPU time of the process less that of making them, so it is of one core, whatever else the machine does.
`peak_mb` is the most memory the process ever held.

`aurc`: the criteria on the pseudo-labels of a `selftrain` run in the sandbox, whose truth no training sees. `error` of
an instance: mean over its visible joints by the box's longer side, at most 0.5, which is also that of a detection that
is none of the animals. `captured`: 0 is random choice, 100 the order of the errors (`selection.aurc_table`).

`selected`: the 150 best by each: PCK at 0.1 of the joints that training would see, how many are none of the animals,
and from where they are seen, with and without the rules beside the criterion.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sandbox.truth import true_keypoints
from selection import (
    CRITERIA,
    VIEW_NAMES,
    aurc_table,
    passing,
    pseudo_label_pck,
    score,
    select,
    select_stream,
    viewpoint_histogram,
)
from tables import Lake, join_rows, schema, to_column, to_numpy

BATCH = 16_384
KEPT = 3000
WRONG = 0.5  # error of a detection that is none of the animals, and the most any instance is charged
HEX = np.array([f"{i:02x}" for i in range(256)], "S2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--criteria", nargs="+", default=[c for c, found in CRITERIA.items() if found.cuts])
    parser.add_argument("--one", action="store_true", help="measure the first criterion in this process")
    parser.add_argument("--lake", help="a lake of a selftrain run in the sandbox, for `aurc`")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(measure(args.criteria[0], args.rows)))
        return
    out: dict[str, Any] = {
        "command": "python -m benchmarks.selection " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "pyarrow": pa.__version__, "numpy": np.__version__,
        "kept": KEPT, "speed": [apart(c, args.rows) for c in args.criteria],
    }  # fmt: skip
    if args.lake:
        out["sandbox"] = areas(Lake(args.lake))
    text = json.dumps(out, indent=1) + "\n"
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def apart(criterion: str, rows: int) -> dict[str, Any]:
    """`measure` in a process of its own, so that its peak memory is its own too."""
    command = [sys.executable, "-m", "benchmarks.selection", "--one", "--criteria", criterion, "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    sys.stderr.write(f"{found}\n")
    return found


def measure(criterion: str, rows: int) -> dict[str, Any]:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = [0.0]
    made = batches(criterion, rows, spent)
    started = time.process_time()
    kept = select_stream(made, criterion, KEPT)
    seconds = time.process_time() - started - spent[0]
    assert kept["rank"].to_pylist() == list(range(1, KEPT + 1))
    return {
        "criterion": criterion, "columns": list(CRITERIA[criterion].columns), "rows": rows,
        "rows_per_s": round(rows / seconds), "cpu_s": round(seconds, 1), "making_rows_cpu_s": round(spent[0], 1),
        "wall_s": round(time.monotonic() - began, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "before_mb": before // 1024,
    }  # fmt: skip


def batches(criterion: str, rows: int, spent: list[float]) -> Iterator[pa.RecordBatch]:
    """Random rows of the columns that a criterion reads; adds the CPU seconds of making them to `spent`."""
    rng = np.random.default_rng(0)
    for first in range(0, rows, BATCH):
        started = time.process_time()
        n = min(BATCH, rows - first)
        columns = {"instance_id": ids(rng, n)}
        for name in CRITERIA[criterion].columns:
            if name != "instance_id":
                columns[name] = to_column(rng.random((n, WIDTHS[name]), np.float32))
        batch = pa.RecordBatch.from_pydict(columns)
        spent[0] += time.process_time() - started
        yield batch


WIDTHS = {f.name: f.type.list_size for f in schema("pseudo_labels") if pa.types.is_fixed_size_list(f.type)}
WIDTHS |= {"bbox": 4, "truth_keypoints": 48, "heatmap_3d": 16}


def ids(rng: np.random.Generator, n: int) -> pa.Array:
    """Ids of 20 hexadecimal digits, as `tables.instance_id` gives them."""
    digits = HEX[np.frombuffer(rng.bytes(10 * n), np.uint8)]
    ends = np.arange(0, 20 * (n + 1), 20, dtype=np.int32)
    return pa.StringArray.from_buffers(n, pa.py_buffer(ends), pa.py_buffer(digits))


def areas(lake: Lake) -> list[dict[str, Any]]:
    """One table for each round of pseudo-labels."""
    category = lake.files.names("pseudo_labels")[0].partition("=")[2]
    truth = next(Path(lake.uri, "sandbox").glob("*/truth.parquet"))
    found = []
    for pseudo in lake.datasets("pseudo_labels", category):
        instances = lake.find("instances", category, pseudo.identity["instances"])
        rows = join_rows(pseudo.read(), instances.read(["instance_id", "photo_id", "bbox"]), "instance_id")
        rows = rows.append_column("truth_keypoints", true_keypoints(rows, str(truth)))
        error = score("oracle", rows)
        error = np.where(np.isfinite(error), np.minimum(error, WRONG), WRONG)
        table = aurc_table(rows, error).to_pylist()
        for row in table:
            row |= {"aurc": round(row["aurc"], 4), "captured": round(row["captured"], 1)}
        kept = [chosen(rows, c) for c in [r["criterion"] for r in table if r["criterion"] != "oracle"] + ["all"]]
        kept += [chosen(rows, c, **rule) for c in ("cf_cm2", "kp_conf") for rule in ({"gate": 0.1}, {"per_view": 30})]
        mean = round(float(error.mean()), 4)
        found.append({"pseudo_labels": pseudo.slot, "mean_error": mean, "aurc": table, "selected": kept})
        found[-1]["views"] = ", ".join(VIEW_NAMES)
    return found


def chosen(rows: pa.Table, criterion: str, top_n: int = 150, **rule: Any) -> dict[str, Any]:
    """How good the selected pseudo-labels are; a gate's masked joints do not count."""
    made = select(rows, criterion, top_n, **rule)
    ids = made.filter(made["selected"])["instance_id"]
    rows = rows.take(pc.index_in(ids, rows["instance_id"]).combine_chunks())
    keep = passing(rows, rule["gate"]) if "gate" in rule else np.ones((len(rows), 16), bool)
    truth = to_numpy(rows["truth_keypoints"], 16, 3) * keep[..., None]
    share = len(rows) and rows["truth_keypoints"].null_count / len(rows)
    rows = rows.set_column(rows.column_names.index("truth_keypoints"), "truth_keypoints", to_column(truth))
    good = pseudo_label_pck(rows, np.ones(len(rows), bool), (0.1,))[0]
    return {
        "criterion": criterion, **rule, "instances": len(rows), "pck_0.1": round(float(good), 1),
        "other_animals": round(100 * share, 1),
        "views": " ".join(str(n) for n in viewpoint_histogram(rows)),
    }  # fmt: skip


if __name__ == "__main__":
    main()
