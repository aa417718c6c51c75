"""The selection stage on a small lake: join, rounds, fingerprints, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.select import find_round, overlap, select_round, spread
from tables import Dataset, InputError, Lake, schema, to_column

ROOT = Path(__file__).resolve().parents[1]


def instances(lake: Lake, n: int = 12) -> Dataset:
    rows = pa.table(
        {
            "instance_id": [f"i{i:02d}" for i in range(n)],
            "photo_id": [f"p{i}" for i in range(n)],
            "category": ["deer"] * n,
            "bbox": to_column(np.tile(np.float32([0, 0, 64, 32]), (n, 1))),
            "score": pa.array(np.ones(n), pa.float32()),
            "detector": ["label"] * n,
            "window": to_column(np.tile(np.float32([0, 0, 96]), (n, 1))),
            "crop": [b"jpeg"] * n,
            "dhash": pa.nulls(n, pa.uint64()),
            "duplicate_of": pa.nulls(n, pa.string()),
        }
    )
    out = lake.dataset("instances", "deer", {"n": n})
    out.write("p0", rows, schema("instances"))
    out.finish("x")
    return out


def pseudo_rows(ids: list[str], round: int | None, error: np.ndarray) -> pa.Table:
    n = len(ids)
    ours = np.zeros((n, 16, 3), np.float32)
    reprojected = np.zeros((n, 16, 2), np.float32)
    reprojected[:, :, 0] = error[:, None]
    views = np.zeros((n, 7, 16, 3), np.float32)
    return pa.table(
        {
            "instance_id": ids,
            "round": pa.array([round] * n, pa.int32()),
            "keypoints": to_column(ours),
            "keypoints_aux": to_column([None] * n, 48),
            "keypoints_mt": to_column(views),
            "keypoints_3d": to_column(reprojected),
            "heatmap_3d": to_column([None] * n, 16),
            "model_pose": ["m"] * n,
            "model_aux": ["m"] * n,
            "model_3d": ["m"] * n,
        }
    )


def pseudo(lake: Lake, round: int | None, n: int = 12, offset: float = 0.0) -> Dataset:
    out = lake.dataset("pseudo_labels", "deer", {"round": round, "offset": offset}, slot=f"round={round}")
    error = np.arange(n, dtype=np.float32)[::-1] + offset
    ids = [f"i{i:02d}" for i in range(n)]
    half = n // 2
    out.write("a", pseudo_rows(ids[:half], round, error[:half]), schema("pseudo_labels"))
    # One row stands in both parts, as after a restart.
    out.write("b", pseudo_rows(ids[half - 1 :], round, error[half - 1 :]), schema("pseudo_labels"))
    out.finish("x")
    return out


def test_ranks_over_all_parts_and_commits_one_dataset(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    boxes, labels = instances(lake), pseudo(lake, 1)
    output = select_round(lake, labels, boxes, "cf_cm2", 5, round=1)
    rows = output.read().sort_by("rank").to_pylist()
    assert [r["instance_id"] for r in rows] == [f"i{i:02d}" for i in range(12)][::-1]
    # Error e px on x: D gives e * 256 / 64.
    assert [r["score"] for r in rows] == [4.0 * e for e in range(12)]
    assert [r["selected"] for r in rows] == [True] * 5 + [False] * 7
    assert rows[4]["reason"] == "rank 5 of 12 <= top_n 5"
    assert (output.finished() or {})["summary"] == {"rows": 12, "selected": 5, "leaks": 0}
    assert [d.fingerprint for d in lake.datasets("selections", "deer")] == [output.fingerprint]
    assert output.identity["pseudo_labels"] == labels.fingerprint


def test_done_is_skipped_and_other_settings_are_another_dataset(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    boxes, labels = instances(lake), pseudo(lake, 1)
    first = select_round(lake, labels, boxes, "cf_cm2", 5, round=1)
    when = first.finished()
    assert select_round(lake, labels, [boxes], "cf_cm2", 5, round=1).finished() == when
    others = [
        select_round(lake, labels, boxes, "cf_cm2", 6, round=1),
        select_round(lake, labels, boxes, "kp_conf", 5, round=1),
        select_round(lake, labels, boxes, "random", 5, round=1, seed=1),
        select_round(lake, labels, boxes, "random", 5, round=1, seed=2),
        select_round(lake, pseudo(lake, 1, offset=1.0), boxes, "cf_cm2", 5, round=1),
    ]
    assert len({d.fingerprint for d in [first, *others]}) == 6


def test_an_instance_without_a_box_is_not_selected(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    output = select_round(lake, pseudo(lake, 0), instances(lake, 11), "kp_conf", 99, round=0)
    rows = output.read().sort_by("rank").to_pylist()
    assert [r["selected"] for r in rows] == [True] * 11 + [False]
    assert rows[-1]["instance_id"] == "i11"
    assert rows[-1]["reason"] == "box has no area"


def test_the_round_is_found_and_a_null_round_is_0(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    with pytest.raises(InputError, match="run `wildshape keypoints` first"):
        find_round(lake, "deer", None)
    zero, one = pseudo(lake, None), pseudo(lake, 1)
    assert find_round(lake, "deer", None) == (one, 1)
    assert find_round(lake, "deer", 0) == (zero, 0)
    assert len(select_round(lake, zero, instances(lake), "cf_cm2", 3, round=0).read()) == 12
    with pytest.raises(InputError, match=r"round=2: .* of rounds \[0, 1\] only"):
        find_round(lake, "deer", 2)


def test_what_a_criterion_lacks_is_named(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    boxes, labels = instances(lake), pseudo(lake, 1)
    with pytest.raises(InputError, match="`truth_keypoints`"):
        select_round(lake, labels, boxes, "oracle", 5, round=1)
    # The auxiliary net never ran: a whole column of nulls scores nothing and keeps nothing.
    kept = select_round(lake, labels, boxes, "cf_cm", 5, round=1).read()
    assert set(kept["reason"].to_pylist()) == {"score is not finite"}


def test_rules_join_what_they_need_and_make_another_dataset(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    boxes, labels = instances(lake), pseudo(lake, 1)
    plain = select_round(lake, labels, boxes, "cf_cm2", 5, round=1)
    # A 64 px box: errors of 0 .. 11 px are off by less than 0.05 up to 3 px.
    gated = select_round(lake, labels, boxes, "cf_cm2", 5, round=1, gate=0.05)
    rows = gated.read().sort_by("rank").to_pylist()
    assert [r["score"] for r in rows if r["selected"]] == [0.0, 4.0, 8.0, 12.0]
    assert {r["reason"] for r in rows[4:]} == {"most joints fail the gate"}
    with pytest.raises(InputError, match="`wildshape crawl` first"):
        select_round(lake, labels, boxes, "cf_cm2", 5, round=1, per_user=1)
    photos = lake.dataset("photos", "deer", {"n": 12})
    names = ["Ann"] * 6 + ["Bob"] * 4 + [None]  # one photo is not in the table
    rows_of_photos = {"photo_id": [f"p{i}" for i in range(11)], "status": ["ok"] * 11, "author": names}
    fields = schema("photos")
    made = [
        pa.array(rows_of_photos[f.name], f.type) if f.name in rows_of_photos else pa.nulls(11, f.type) for f in fields
    ]
    photos.write("p0", pa.table(made, schema=fields), fields)
    photos.finish("x")
    quota = select_round(lake, labels, boxes, "cf_cm2", 9, round=1, per_user=2)
    kept = quota.read().filter(quota.read()["selected"]).sort_by("rank")["instance_id"].to_pylist()
    assert kept == ["i11", "i10", "i09", "i08", "i05", "i04"]
    assert len({d.fingerprint for d in (plain, gated, quota)}) == 3
    assert "rules" not in plain.identity
    assert quota.identity["rules"] == {"per_user": 2}


def test_what_is_kept_again_and_from_where_it_is_seen(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    boxes = instances(lake)
    first, second = pseudo(lake, 1), pseudo(lake, 2)
    one = select_round(lake, first, boxes, "cf_cm2", 4, round=1)
    two = select_round(lake, second, boxes, "cf_cm2", 8, round=2)
    assert overlap(lake, two, two.read(), "cf_cm2", 2) == "overlap with round 1 (Jaccard): 0.50"
    assert overlap(lake, one, one.read(), "cf_cm2", 1) is None
    # The joints of these have no confidence.
    assert spread(first, one.read(), 1).startswith("seen from front 0, front right 0, right 0")


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from pipelines import select\n"
        "try: select.main()\n"
        "finally: sys.stderr.write('\\nheavy: ' + ' '.join(m for m in ('ray', 'torch', 'mlflow') if m in sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_command_line(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    instances(lake)
    pseudo(lake, 1)
    done = run("category=deer", f"lake={tmp_path / 'lake'}", "criterion=random", "top_n=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "random, round 1" in done.stdout
    assert "seen from front 0" in done.stdout
    rows = lake.datasets("selections", "deer")[0].read()
    assert sum(rows["selected"].to_pylist()) == 5
    assert done.stderr.splitlines()[-1] == "heavy: "


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["criterion=best"], "error: criterion=best: unknown; choose one of"),
        (["top_n=0"], "error: top_n=0: must be a whole number"),
        (["gate=-1"], "error: gate=-1: must be a share"),
        (["per_view=few"], "error: per_view=few: must be a whole number"),
        (["round=-1"], "error: round=-1: must be a whole number"),
        (["round=one"], "error: round=one: must be a whole number"),
        ([], "error: category=deer: lake "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, args: list[str], message: str) -> None:
    done = run("category=deer", f"lake={tmp_path / 'none'}", *args, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith(message)
    assert lines[1] == "heavy: "
    assert not (tmp_path / "none").exists()
