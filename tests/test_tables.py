"""The ground every stage stands on: ids, arrays, commits, deduplication, overlays."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from tables import (
    KEYS,
    QUADRUPED,
    TABLES,
    Dataset,
    InputError,
    Lake,
    file_digest,
    fingerprint,
    instance_id,
    photo_id,
    schema,
    to_column,
    to_numpy,
    unique_rows,
)

# -- ids ------------------------------------------------------------------------------------------------------------


def test_ids_are_content_and_stay_what_they_are() -> None:
    # Written down: a change here renames every row of every lake.
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2d"
    assert photo_id("http://x/y.jpg", "yfcc", "6985418911") == "yfcc:6985418911"
    assert photo_id("http://x/y.jpg") == photo_id("http://x/y.jpg", "yfcc", None) == "url:ac263348503d94a42fda"
    assert instance_id("ab", [1, 2, 3, 4], "label") == "57108605366f2e2c72b4"


def test_fingerprint_ignores_the_order_of_keys_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})


def test_instance_id_takes_the_box_in_whole_float32_pixels() -> None:
    base = instance_id("ab", [10, 20, 30, 40], "d")
    assert instance_id("ab", np.array([10.4, 19.6, 30.5, 40.0]), "d") == base  # half goes to even: 30.5 -> 30
    assert instance_id("ab", [10, 20, 31.5, 40], "d") == instance_id("ab", [10, 20, 32, 40], "d")
    # float64 noise below float32's grain does not make another animal.
    assert instance_id("ab", [10.5 - 1e-9, 20, 30, 40], "d") == instance_id("ab", [10.5, 20, 30, 40], "d")
    assert len({base, instance_id("ac", [10, 20, 30, 40], "d"), instance_id("ab", [10, 20, 30, 40], "e"),
                instance_id("ab", [11, 20, 30, 40], "d")}) == 4  # fmt: skip


def test_file_digest_follows_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"two")
    assert file_digest(tmp_path / "a") != file_digest(tmp_path / "b")


# -- schemas and arrays ---------------------------------------------------------------------------------------------


def test_schemas_follow_keypoints_and_transforms() -> None:
    s = schema("pseudo_labels", keypoints=17, transforms=5)
    assert s.field("keypoints").type.list_size == 51
    assert s.field("keypoints_mt").type.list_size == 5 * 3 * 17
    assert s.field("keypoints_3d").type.list_size == 34
    for table in TABLES:
        assert set(KEYS[table]) <= set(schema(table).names)
    with pytest.raises(KeyError):
        schema("nothing")


def test_the_skeleton_mirrors_onto_itself() -> None:
    assert len(QUADRUPED) == 16
    for k, name in enumerate(QUADRUPED.names):
        mirrored = QUADRUPED.names[QUADRUPED.flip[k]]
        swap = {"L": "R_" + name[2:], "R": "L_" + name[2:]}
        assert mirrored == (swap[name[0]] if name[1] == "_" else name)
        assert QUADRUPED.flip[QUADRUPED.flip[k]] == k
    assert all(0 <= a < 16 and 0 <= b < 16 and a != b for a, b in QUADRUPED.edges)


def test_arrays_go_in_and_come_back_without_a_copy() -> None:
    values = np.random.default_rng(0).normal(size=(5, 16, 3)).astype(np.float32)
    column = to_column(values)
    assert column.type == pa.list_(pa.float32(), 48)
    back = to_numpy(column, 16, 3)
    np.testing.assert_array_equal(back, values)
    np.testing.assert_array_equal(to_numpy(column, -1, 3), values)
    assert np.shares_memory(back, to_numpy(column, 48))
    np.testing.assert_array_equal(to_numpy(column.slice(2, 2), 16, 3), values[2:4])
    chunked = pa.chunked_array([column.slice(3), column.slice(0, 3)])
    np.testing.assert_array_equal(to_numpy(chunked, 16, 3), values[[3, 4, 0, 1, 2]])


def test_missing_arrays_are_null_and_read_as_nan() -> None:
    one = np.ones((2, 2), np.float32)
    column = to_column([one, None, one * 2])
    assert column.null_count == 1
    assert column[1].as_py() is None
    back = to_numpy(column, 2, 2)
    np.testing.assert_array_equal(back[[0, 2]], [one, one * 2])
    assert np.isnan(back[1]).all()
    assert to_column([None, None], 4).null_count == 2
    assert to_numpy(to_column(np.zeros((0, 4)), 4), 4).shape == (0, 4)
    with pytest.raises(ValueError, match="width"):
        to_column([None])
    with pytest.raises(ValueError, match="width=5"):
        to_column(np.ones((2, 4)), 5)


def labels(ids: list[str], camera: list[np.ndarray | None], split: str = "train") -> pa.Table:
    n = len(ids)
    return pa.table(
        {
            "instance_id": ids,
            "keypoints": to_column(np.arange(n * 48, dtype=np.float32).reshape(n, 48)),
            "camera": to_column(camera, 7),
            "mask": pa.array([b"png"] * n),
            "split": [split] * n,
        }
    )


@pytest.mark.parametrize("nulls", [[], [0], [1], [0, 2], [0, 1, 2]])
def test_nullable_arrays_survive_the_lake(tmp_path: Path, nulls: list[int]) -> None:
    camera = [None if i in nulls else np.arange(7, dtype=np.float32) + i for i in range(3)]
    rows = labels(["a", "b", "c"], camera)
    ds = Lake(str(tmp_path)).dataset("labels", "deer", {"source": "x"})
    ds.write("p", rows, schema("labels"))
    back = ds.read()
    assert back.schema.field("camera").type == pa.list_(pa.float32(), 7)
    assert back["camera"].to_pylist() == rows["camera"].to_pylist()
    assert ds.read(["camera"])["camera"].null_count == len(nulls)
    np.testing.assert_array_equal(to_numpy(back["keypoints"], 16, 3), to_numpy(rows["keypoints"], 16, 3))


# -- commits --------------------------------------------------------------------------------------------------------


def dataset(root: Path, **identity: object) -> Dataset:
    return Lake(str(root)).dataset("labels", "deer", identity or {"source": "x"})


def test_a_dataset_is_named_by_what_it_was_made_from(tmp_path: Path) -> None:
    assert dataset(tmp_path, a=1, b=2).path == dataset(tmp_path, b=2, a=1).path
    assert dataset(tmp_path, a=1).path != dataset(tmp_path, a=2).path
    assert dataset(tmp_path, a=1).path.startswith("labels/category=deer/")
    with pytest.raises(KeyError):
        Lake(str(tmp_path)).dataset("nothing", "deer", {})
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_tables import dataset, labels
from tables import Files, schema

point = {point!r}
if point == "manifest":
    whole = Files.write
    def write(self, path, data):
        if "_manifests/" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, path, data)
    Files.write = write
else:
    os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
dataset(Path({root!r})).write("p1", labels(["c", "d"], [None, None]), schema("labels"))
"""


@pytest.mark.parametrize("point", ["manifest", "rename"])
def test_a_writer_killed_before_its_manifest_has_written_nothing(tmp_path: Path, point: str) -> None:
    ds = dataset(tmp_path)
    ds.write("p0", labels(["a", "b"], [None, None]), schema("labels"))
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(tmp_path), point=point)
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [p.name for p in (tmp_path / ds.path).iterdir() if p.name.startswith("p1-")]
    assert len(left) == 1, "the kill came between the data file and its manifest"
    assert list(ds.manifests()) == ["p0"]
    assert ds.read(["instance_id"])["instance_id"].to_pylist() == ["a", "b"]
    before = ds.state()
    # The same part again: committed once, and the orphan stays unread.
    ds.write("p1", labels(["c", "d"], [None, None]), schema("labels"))
    assert list(ds.manifests()) == ["p0", "p1"]
    assert ds.read(["instance_id"])["instance_id"].to_pylist() == ["a", "b", "c", "d"]
    assert ds.state() != before


def test_rows_that_do_not_fit_commit_nothing(tmp_path: Path) -> None:
    ds = dataset(tmp_path)
    rows = labels(["a"], [None])
    with pytest.raises(KeyError):
        ds.write("p", rows.drop_columns("split"), schema("labels"))
    with pytest.raises(pa.ArrowTypeError):
        ds.write("p", rows.set_column(1, "keypoints", to_column(np.zeros((1, 6)))), schema("labels"))
    assert ds.manifests() == {}
    with pytest.raises(InputError, match="nothing is committed"):
        ds.read()


def test_state_is_the_content_and_not_the_moment(tmp_path: Path) -> None:
    a, b = dataset(tmp_path / "a"), dataset(tmp_path / "b")
    for ds, order in ((a, ("p0", "p1")), (b, ("p1", "p0"))):
        for part in order:
            ds.write(part, labels([part], [None]), schema("labels"))
    b.write("p0", labels(["p0"], [None]), schema("labels"))
    assert a.state() == b.state()
    b.write("p1", labels(["p1"], [np.zeros(7, np.float32)]), schema("labels"))
    assert a.state() != b.state()


def test_finished_is_for_one_state_of_the_input(tmp_path: Path) -> None:
    ds = dataset(tmp_path)
    assert ds.finished() is None
    ds.finish("s1", {"rows": 3})
    assert ds.is_finished("s1")
    assert not ds.is_finished("s2")
    assert (ds.finished() or {})["summary"] == {"rows": 3}


# -- reading --------------------------------------------------------------------------------------------------------


def photos(ids: list[str], status: list[str], attempts: int = 1) -> pa.Table:
    n = len(ids)
    values = {"photo_id": ids, "status": status, "attempts": [attempts] * n}
    arrays = [pa.array(values.get(f.name, [None] * n), f.type) for f in schema("photos")]
    return pa.table(arrays, schema=schema("photos"))


def test_one_row_per_key_and_a_success_beats_a_failure(tmp_path: Path) -> None:
    ds = Lake(str(tmp_path)).dataset("photos", "deer", {"rows": "x"})
    ds.write("p0", photos(["b", "a", "c"], ["ok", "timeout", "http"]), schema("photos"))
    ds.write("p1", photos(["a", "b", "c"], ["ok", "gone", "http"]), schema("photos"))
    rows = ds.read(["photo_id", "status"])
    assert rows.to_pylist() == [
        {"photo_id": "a", "status": "ok"},
        {"photo_id": "b", "status": "ok"},
        {"photo_id": "c", "status": "http"},
    ]
    assert ds.read(["photo_id"], parts=["p1"])["photo_id"].to_pylist() == ["a", "b", "c"]


def test_unique_rows_over_several_keys() -> None:
    rows = pa.table({"i": ["b", "a", "a", "a"], "round": [0, 1, 0, 1], "x": [1, 2, 3, 2]})
    assert unique_rows(rows, ["i", "round"]).to_pylist() == [
        {"i": "a", "round": 0, "x": 3},
        {"i": "a", "round": 1, "x": 2},
        {"i": "b", "round": 0, "x": 1},
    ]
    assert unique_rows(rows.slice(0, 1), ["i"]).num_rows == 1
    assert unique_rows(rows.slice(0, 0), ["i"]).num_rows == 0
    chunked = pa.concat_tables([rows, rows])
    assert unique_rows(chunked, ["i", "round"]).num_rows == 3


def test_the_url_and_the_clock_are_not_content(tmp_path: Path) -> None:
    a, b = (Lake(str(tmp_path / n)).dataset("photos", "deer", {"rows": "x"}) for n in "ab")
    a.write("p", photos(["a"], ["ok"], attempts=1), schema("photos"))
    b.write("p", photos(["a"], ["ok"], attempts=3), schema("photos"))
    assert a.state() == b.state()
    b.write("p", photos(["a"], ["http"]), schema("photos"))
    assert a.state() != b.state()


def test_an_overlay_replaces_columns_at_reading(tmp_path: Path) -> None:
    ds = Lake(str(tmp_path)).dataset("photos", "deer", {"rows": "x"})
    ds.write("p", photos(["a", "b", "c"], ["ok", "ok", "ok"]), schema("photos"))
    before = ds.state()
    ds.overlay(pa.table({"photo_id": ["c", "b"], "duplicate_of": ["a", None]}))
    rows = ds.read(["photo_id", "duplicate_of", "status"]).to_pylist()
    assert [r["duplicate_of"] for r in rows] == [None, None, "a"]
    assert {r["status"] for r in rows} == {"ok"}
    assert ds.state() != before


# -- the lake -------------------------------------------------------------------------------------------------------


def test_the_newest_of_each_slot_counts(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    with pytest.raises(InputError, match=r"category=deer: .* run `wildshape ingest` first"):
        lake.datasets("labels", "deer")
    made = {}
    for name, slot in (("old", "train"), ("other", "val"), ("new", "train"), ("unfinished", "train")):
        made[name] = lake.dataset("labels", "deer", {"name": name}, slot)
        made[name].write("p", labels([name], [None]), schema("labels"))
        if name != "unfinished":
            made[name].finish("s")
    found = lake.datasets("labels", "deer")
    assert [d.fingerprint for d in found] == [made["new"].fingerprint, made["other"].fingerprint]
    assert [d.slot for d in found] == ["train", "val"]
    with pytest.raises(InputError):
        lake.datasets("labels", "horse")


def test_a_lake_on_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rename there: every file is one put, and the manifest still comes last."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    lake = Lake("s3://bucket/lake")
    lake.files.__dict__["_fs_root"] = (pafs.PyFileSystem(pafs.FSSpecHandler(memory)), "/bucket/lake")
    ds = lake.dataset("labels", "deer", {"source": "x"})
    ds.write("p", labels(["a", "b"], [None, np.zeros(7, np.float32)]), schema("labels"))
    ds.finish("s")
    assert ds.read()["camera"].null_count == 1
    assert [d.fingerprint for d in lake.datasets("labels", "deer")] == [ds.fingerprint]
    assert not [p for p in memory.find("/bucket") if p.endswith(".tmp")]
    memory.rm("/bucket", recursive=True)


def test_stray_files_and_fragments(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    made = lake.dataset("labels", "deer", {"from": "here"})
    made.write("p", labels(["a"], [None]), schema("labels"))
    made.finish("s")
    for stray in (".nfs0001", "notes.txt"):  # what a network disk or a person leaves there
        (tmp_path / "labels" / "category=deer" / stray).touch()
    assert [d.fingerprint for d in lake.datasets("labels", "deer")] == [made.fingerprint]
    for uri in ("s3://bucket/run #3/lake", "s3://", "gs:///"):
        with pytest.raises(InputError, match="name a bucket"):
            Lake(uri)


def test_a_lake_travels_to_workers(tmp_path: Path) -> None:
    ds = dataset(tmp_path)
    ds.write("p", labels(["a"], [None]), schema("labels"))
    there = pickle.loads(pickle.dumps(ds))
    assert there.path == ds.path
    assert there.state() == ds.state()


def test_input_error_names_argument_value_and_fix_and_travels() -> None:
    error = pickle.loads(pickle.dumps(InputError("rounds", -1, "must be 0 or more")))
    assert str(error) == "rounds=-1: must be 0 or more"
    assert (error.argument, error.value) == ("rounds", "-1")


@pytest.mark.parametrize("category", ["a/b", "", ".hidden", "a=b", 7, None])
def test_a_category_is_a_partition_name(tmp_path, category):
    lake = Lake(str(tmp_path / "lake"))
    for use in (lambda: lake.dataset("photos", category, {}), lambda: lake.datasets("photos", category)):
        with pytest.raises(InputError, match="category="):
            use()


def test_a_column_that_came_later_is_named(tmp_path: Path) -> None:
    new = schema("pseudo_labels")
    old = pa.schema([f for f in new if f.name != "heatmap_3d"])
    values = {"instance_id": ["a", "b"], "keypoints": to_column(np.zeros((2, 48), np.float32))}
    rows = pa.table([values.get(f.name, pa.nulls(2, f.type)) for f in old], schema=old)
    made = Lake(str(tmp_path)).dataset("pseudo_labels", "deer", {"n": 1})
    made.write("p", rows, old)
    assert made.read().column_names == old.names
    assert made.read(["instance_id", "keypoints_3d"])["keypoints_3d"].null_count == 2
    with pytest.raises(InputError, match="was made before there was a column `heatmap_3d`"):
        made.read(["heatmap_3d"])
