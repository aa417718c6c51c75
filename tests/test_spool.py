"""The spool: what was written whole comes back after a kill, wherever the last record was cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.spool import Spool, discard, left_behind


def row(i: int, body: bytes | None) -> dict[str, Any]:
    return {"photo_id": f"yfcc:{i}", "status": "ok" if body else "gone", "error": None, "ms": 1.5, "bytes": body}


ROWS = [row(0, b"\xff\xd8one"), row(1, None), row(2, bytes(1000)), row(3, b"WSP1WSP1")]


def test_rows_are_read_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    refs = spool.append(ROWS[:1]) + spool.append(ROWS[1:])
    for picked in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0], []):  # behind each other, out of order, with gaps, none
        rows, bodies = spool.read([refs[i] for i in picked])
        found = [{**r, "bytes": b} for r, b in zip(rows, bodies.to_pylist(), strict=True)]
        assert found == [ROWS[i] for i in picked]
    spool.close()


@pytest.mark.parametrize("cut", [1, 10, 16, 20, 30])
def test_a_cut_record_costs_itself_alone(tmp_path: Path, cut: int) -> None:
    dead = Spool(tmp_path)
    last = dead.append(ROWS)[-1]
    dead.close()
    os.truncate(dead.path, last.offset + cut)
    alive = Spool(tmp_path)
    assert list(left_behind(alive)) == ROWS[:-1]
    alive.close()


def test_noise_ends_a_file_and_the_own_file_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "a.spool").write_bytes(b"not a record, but longer than the head of one")
    own = Spool(tmp_path)
    own.append(ROWS[:1])
    assert list(left_behind(own)) == []
    discard(own)
    assert not tmp_path.exists()
    own.close()
