"""The best of a stream is the best of the whole, in constant memory, whatever the blocks and their order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection import CRITERIA, score, select, select_stream
from selection.columns import BLOCK
from tables import InputError, to_column

STREAMED = [name for name, found in CRITERIA.items() if found.cuts]


def rows(n: int, seed: int = 0, rounds: int = 2) -> pa.Table:
    """Coarse values, so that scores tie; some rows without a box or a prediction."""
    rng = np.random.default_rng(seed)
    box = rng.integers(-1, 3, (n, 4)).astype(np.float32) * 32
    widths = {"keypoints": 48, "keypoints_aux": 48, "keypoints_mt": 144, "truth_keypoints": 48, "heatmap_3d": 16}
    made = {k: to_column(rng.integers(0, 2, (n, w)).astype(np.float32), w) for k, w in widths.items()}
    three = [None if rng.random() < 0.1 else rng.integers(0, 2, 32).astype(np.float32) for _ in range(n)]
    names = rng.permutation(n)
    return pa.table(
        {
            "instance_id": [f"i{i:05d}" for i in names], "round": pa.array(rng.integers(0, rounds, n), pa.int32()),
            "bbox": to_column(box, 4), "keypoints_3d": to_column(three, 32), **made,
        }
    )  # fmt: skip


def blocks(table: pa.Table, cuts: list[int]) -> Iterator[pa.RecordBatch]:
    edges = [0, *sorted(min(c, len(table)) for c in cuts), len(table)]
    for start, end in pairwise(edges):
        part = table.slice(start, end - start).combine_chunks()
        yield part.to_batches()[0] if len(part) else pa.RecordBatch.from_pylist([], schema=part.schema)


@pytest.mark.parametrize("criterion", STREAMED)
def test_a_stream_keeps_what_select_keeps(criterion: str) -> None:
    table = rows(300)
    for top_n, policy in ((1, {}), (20, {}), (9999, {}), (20, {"gate": 0.02})):
        whole = select(table, criterion, top_n, **policy)
        streamed = select_stream(blocks(table, [7, 7, 90, 250]), criterion, top_n, **policy)
        assert streamed.equals(whole.filter(whole["selected"]).combine_chunks())


@settings(max_examples=25)
@given(
    n=st.integers(0, 60), seed=st.integers(0, 5), top_n=st.integers(1, 12), cuts=st.lists(st.integers(0, 60)),
    order=st.randoms(use_true_random=False), criterion=st.sampled_from(["kp_conf", "cf_cm2", "rank_fusion"]),
)  # fmt: skip
def test_neither_blocks_nor_order_matter(n, seed, top_n, cuts, order, criterion) -> None:
    table = rows(n, seed)
    whole = select(table, criterion, top_n)
    shuffled = list(range(n))
    order.shuffle(shuffled)
    streamed = select_stream(blocks(table.take(pa.array(shuffled, pa.int64())), cuts), criterion, top_n)
    assert streamed.equals(whole.filter(whole["selected"]).combine_chunks())


def test_scores_do_not_depend_on_the_block_they_are_in() -> None:
    n = BLOCK + 5
    rng = np.random.default_rng(0)
    made = {"keypoints": rng.random((n, 48)), "keypoints_3d": rng.random((n, 32)), "bbox": rng.random((n, 4))}
    table = pa.table(
        {"instance_id": pa.array(np.arange(n)).cast(pa.string())} | {k: to_column(v) for k, v in made.items()}
    )
    whole = score("cf_cm2", table)
    np.testing.assert_array_equal(whole[BLOCK - 3 :], score("cf_cm2", table.slice(BLOCK - 3)))
    kept = select_stream([table.slice(0, 100), table.slice(100)], "cf_cm2", 3)
    assert kept["reason"].to_pylist()[2] == f"rank 3 of {n} <= top_n 3"


def test_what_needs_all_rows_is_refused() -> None:
    table = rows(10)
    for criterion, policy in (("all", {}), ("kp_conf", {"per_view": 2})):
        with pytest.raises(InputError, match="use `select`"):
            select_stream([table], criterion, 3, **policy)
    with pytest.raises(InputError, match="at least one block"):
        select_stream([], "kp_conf", 3)
    with pytest.raises(InputError, match="top_n=0"):
        select_stream([table], "kp_conf", 0)


MEMORY = """
import resource, sys
import numpy as np, pyarrow as pa
from selection import select_stream
from tables import to_column
rng = np.random.default_rng(0)
def blocks(count):
    for b in range(count):
        ids = pa.array(np.arange(8192) + 8192 * b).cast(pa.string())
        keypoints = to_column(rng.random((8192, 48), np.float32))
        yield pa.RecordBatch.from_pydict({"instance_id": ids, "keypoints": keypoints})
peak = []
for count in (4, 100):
    assert len(select_stream(blocks(count), "kp_conf", 500)) == 500
    peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
assert peak[1] - peak[0] < 60, peak
"""


def test_memory_does_not_grow_with_the_rows() -> None:
    """Twenty-five times as many rows (157 MB of keypoints) and not 60 MB more."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
