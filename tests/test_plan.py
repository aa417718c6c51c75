"""Plans: wanted rows on disk, each once, in shards that stay where they are."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from test_sources import v2

from pipelines import plan as plan_module
from pipelines import plan_shards
from pipelines.plan import make_plan, needs_ray
from pipelines.plan_shards import lineage
from pipelines.sources import WANTED, check_source, splits
from tables import InputError, Lake

RESOURCES = SimpleNamespace(cpus=1)


class Source:
    """A metadata file that can be changed, and the dataset it is planned for."""

    def __init__(self, tmp_path):
        self.path, self.lake = tmp_path / "rows.tsv", Lake(str(tmp_path / "lake"))
        self.dataset = self.lake.dataset("photos", "deer", {"stage": "test"})

    def write(self, lines):
        self.path.write_text("\n".join(lines) + "\n")

    def options(self, **kwargs):
        return check_source({"path": str(self.path), **kwargs}, "deer")

    def plan(self, **kwargs):
        return make_plan(self.dataset, self.options(**kwargs), RESOURCES)


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def rows_of(plan):
    return [row for name in plan.shards for row in plan.shard(name).to_pylist()]


def where(plan):
    return {row["photo_id"]: name for name in plan.shards for row in plan.shard(name).to_pylist()}


def test_every_wanted_row_is_in_one_shard(source):
    lines = [v2(key=str(k)) for k in range(3000)]
    source.write([*lines, v2(key="7", title="deer+again"), v2(key="x", tags="cat", title=""), "cut row"])
    plan = source.plan()
    assert plan.counts == {"lines": 3003, "rejected": 1, "dropped": {"repeated": 1, "words": 1}, "wanted": 3000}
    assert plan.shards == [f"s04_{i:04d}" for i in range(16)]
    for name in plan.shards:
        shard = plan.shard(name)
        assert shard.schema.equals(WANTED)
        ids = shard["photo_id"].to_pylist()
        assert ids == sorted(set(ids))
        assert 128 < len(ids) < 256
    found = {r["photo_id"]: r for r in rows_of(plan)}
    assert set(found) == {f"yfcc:{k}" for k in range(3000)}
    assert rows_of(pickle.loads(pickle.dumps(plan))) == rows_of(plan)
    rejects = pq.read_table(source.dataset.files.full(f"{plan.path}/rejects.parquet"))
    assert rejects.to_pylist() == [{"line": 3003, "reason": "1 columns, not 25", "text": "cut row"}]


def test_the_first_row_of_a_photo_wins_over_ranges(source):
    source.write([v2(key=str(k % 40), user=f"u{k}") for k in range(200)])
    whole = rows_of(source.plan())
    assert {r["user"] for r in whole} == {f"u{k}" for k in range(40)}
    other = source.lake.dataset("photos", "deer", {"stage": "other"})
    options = source.options(range_mb=0.002)
    assert len(splits(options)) > 10
    assert needs_ray(options, other)
    plan = make_plan(other, options, RESOURCES)
    assert rows_of(plan) == whole
    assert plan.counts["dropped"] == {"repeated": 160}
    assert not needs_ray(options, other)


def test_shards_stay_when_rows_are_added_and_are_split_when_these_are_many(source):
    lines = [v2(key=str(k)) for k in range(600)]
    source.write(lines)
    first = source.plan()
    before, old = where(first), rows_of(first)
    assert {lineage(name)[0] for name in first.shards} == set(first.shards)
    source.write([*lines, *(v2(key=str(1000 + k)) for k in range(2000))])
    second = source.plan()
    after = where(second)
    assert second.path != first.path
    assert len(after) == 2600
    assert second.shards == first.shards
    assert {k: after[k] for k in before} == before
    assert rows_of(first) == old
    source.write([*lines, *(v2(key=str(1000 + k)) for k in range(5000))])
    third = where(source.plan())
    assert len(set(third.values())) == 32
    assert all(before[k] in lineage(third[k]) for k in before)


def test_the_same_plan_is_there_at_once(source, monkeypatch):
    source.write([v2()])
    first = source.plan()
    monkeypatch.setattr(plan_module, "read_split", None)
    again = source.plan(range_mb=0.0001, mirror="http://127.0.0.1:8000/photos")
    assert (again.path, again.counts) == (first.path, first.counts)
    assert rows_of(again)[0]["url"] == rows_of(first)[0]["fetch_url"] == "http://farm1.staticflickr.com/1/101_ab.jpg"
    assert rows_of(again)[0]["fetch_url"] == "http://127.0.0.1:8000/photos/1/101_ab.jpg"
    monkeypatch.undo()
    assert source.plan(license="by-nc").counts["wanted"] == 0
    assert rows_of(source.plan(license="by-nc")) == []
    source.write([v2(), v2(key="102")])
    os.utime(source.path, ns=(1, 1))
    assert source.plan().counts["wanted"] == 2


def test_a_killed_plan_reads_no_split_twice(source, monkeypatch):
    source.write([v2(key=str(k)) if k % 10 else "cut" for k in range(300)])
    options = source.options(range_mb=0.01)
    total = len(splits(options))
    read, real = [], plan_module.read_split

    def dying(options, split):
        read.append(json.dumps(split))
        for block in real(options, split):
            yield block
            if len(read) == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(plan_module, "read_split", dying)
    monkeypatch.setattr(plan_module, "_ray_is_up", lambda: False)  # another test's Ray would not see `dying`
    with pytest.raises(KeyboardInterrupt):
        make_plan(source.dataset, options, RESOURCES)
    read.append("a pause")
    plan = make_plan(source.dataset, options, RESOURCES)
    assert len(read) == total + 2
    assert read[3] == read[5]
    assert (len(rows_of(plan)), plan.counts["rejected"]) == (270, 30)
    rejects = pq.read_table(source.dataset.files.full(f"{plan.path}/rejects.parquet"))
    assert rejects["line"].to_pylist() == list(range(1, 300, 10))
    assert not source.dataset.files.exists(f"{plan.path}/splits")


def test_many_rows_go_through_files(source, monkeypatch):
    """The same plan, whether the rows fit into memory or not."""
    source.write([v2(key=str(k % 1900), user=f"u{k % 37}") for k in range(2000)])
    whole = source.plan(per_user=20)
    monkeypatch.setattr(plan_shards, "GROUP_ROWS", 100)
    monkeypatch.setattr(plan_module, "BATCH", 64)
    other = source.lake.dataset("photos", "deer", {"stage": "other"})
    parts = make_plan(other, source.options(per_user=20), RESOURCES)
    assert len({file for file, _ in parts.groups.values()}) == 8
    assert len({file for file, _ in whole.groups.values()}) == 1
    assert parts.counts == whole.counts
    assert parts.counts["dropped"] == {"quota": 1900 - 37 * 20, "repeated": 100}
    assert parts.shards == whole.shards
    assert all(parts.shard(name).equals(whole.shard(name)) for name in whole.shards)


def test_quota_takes_the_same_photos_whatever_their_order(source):
    lines = [v2(key=str(k), user=f"u{k % 3}" if k % 4 else "") for k in range(60)]
    source.write(lines)
    first = rows_of(source.plan(per_user=5))
    source.write(lines[::-1])
    plan = source.plan(per_user=5)
    assert sorted(r["photo_id"] for r in rows_of(plan)) == sorted(r["photo_id"] for r in first)
    users = [r["user"] for r in first]
    assert {u: users.count(u) for u in set(users)} == {"u0": 5, "u1": 5, "u2": 5, "": 15}
    assert plan.counts["dropped"] == {"quota": 30}


def test_rejects_are_capped(source, monkeypatch):
    monkeypatch.setattr(plan_module, "MAX_REJECTS", 7)
    source.write(["bad"] * 50 + [v2()])
    options = source.options(range_mb=0.00002)
    plan = make_plan(source.dataset, options, RESOURCES)
    assert plan.counts["rejected"] == 50
    rejects = pq.read_table(source.dataset.files.full(f"{plan.path}/rejects.parquet"))
    assert rejects["line"].to_pylist() == list(range(1, 8))


def test_a_cut_source_is_an_input_error(source, tmp_path):
    source.path = tmp_path / "rows.tsv.gz"
    whole = gzip.compress("".join(v2(key=str(k)) + "\n" for k in range(999)).encode())
    source.path.write_bytes(whole)
    options = source.options()
    source.path.write_bytes(whole[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        make_plan(source.dataset, options, RESOURCES)


@pytest.mark.ray
def test_splits_are_read_on_ray(source, ray_local, tmp_path, monkeypatch):
    source.write([v2(key=str(k), title="", tags="" if k % 2 else "deer") for k in range(300)])
    (tmp_path / "tags.txt").write_text("".join(f"{k}\tdeer:0.9\n" for k in range(0, 300, 3)))
    monkeypatch.chdir(tmp_path)
    tags = {"path": "tags.txt"}
    options = check_source({"path": "rows.tsv", "range_mb": 0.02, "autotags": tags}, "deer")
    assert len(splits(options)) > 2
    plan = make_plan(source.dataset, options, ray_local)
    assert len(rows_of(plan)) == 200
