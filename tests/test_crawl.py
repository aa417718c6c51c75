"""The crawl as a whole: rows in, committed photos out, nothing fetched twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pipelines.crawl import _alone, crawl, mark_duplicates, open_dataset, show_summary
from pipelines.crawl_worker import CrawlWorker, missing, reopen, spool_folder
from pipelines.fetch_options import FetchOptions
from pipelines.plan import make_plan
from pipelines.sources import check_source
from pipelines.spool import Spool
from sandbox.origin import Origin
from tables import InputError, Lake, schema

NO_RAY = SimpleNamespace(address="nobody-listens:1", actors=1, cpus=1, gpus=0, threads=1, failure_budget=0.0)
FETCH = {"allow_hosts": ["127.0.0.1"], "block": 8, "backoff_s": 0.01, "attempts": 2}


def yfcc(key, tag="deer"):
    f = [""] * 25
    f[0], f[1], f[3], f[4], f[10] = key, key, "9@N00", "jane", tag
    f[15], f[16] = f"http://www.flickr.com/{key}/", f"http://farm1.staticflickr.com/1/{key}_s.jpg"
    f[17], f[18], f[23], f[24] = "Attribution License", "http://creativecommons.org/licenses/by/2.0/", "jpg", "0"
    return "\t".join(f)


class Web:
    """A folder of photos, its origin and the metadata file that knows of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, path / "rows.tsv"
        self.behaviours: dict[str, dict] = {}
        self.lines: list[str] = []

    def photo(self, key, seed=None, quality=95, **how):
        if seed is not None:
            rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
            image = cv2.resize(rough, (160, 120), interpolation=cv2.INTER_CUBIC)
            name = f"{seed}-{quality}.jpg"
            cv2.imwrite(str(self.path / name), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
            how["file"] = name
        self.behaviours[f"/1/{key}_s.jpg"] = how
        self.lines.append(yfcc(key))

    def write(self):
        (self.path / "origin.json").write_text(json.dumps(self.behaviours))
        self.rows.write_text("\n".join([*self.lines, yfcc("900", "cat"), "cut row"]) + "\n")

    def source(self, origin, **kwargs):
        return {"path": str(self.rows), "mirror": origin.url, **kwargs}


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web").mkdir()
    web = Web(tmp_path / "web")
    for i in range(20):
        web.photo(str(100 + i), seed=i)
    web.photo("200", seed=0)  # the bytes of 100
    web.photo("201", seed=1, quality=70)  # the picture of 101
    web.photo("202", status=404)
    web.photo("203", redirect="/images/photo_unavailable.png")
    web.photo("204", status=500)
    web.write()
    return web


def test_input_is_checked_before_ray(tmp_path, web):
    lake = Lake(str(tmp_path / "lake"))
    for category, source, fetch, retry, argument in [
        ("a/b", {"path": str(web.rows)}, FETCH, None, "category"),
        ("deer", {"path": str(tmp_path / "none")}, FETCH, None, "source.path"),
        ("deer", {"path": str(web.rows)}, {"block": 0}, None, "fetch.block"),
        ("deer", {"path": str(web.rows)}, FETCH, "all", "retry"),
        ("okapi", {"path": str(web.rows)}, FETCH, None, "source.path"),
    ]:
        with pytest.raises(InputError) as caught:
            crawl(lake, category, source, fetch, NO_RAY, retry)
        assert caught.value.argument == argument
    assert not list((tmp_path / "lake").glob("photos/*/*/*.parquet"))


def test_command_line_error_is_one_line(tmp_path):
    command = [sys.executable, "-m", "pipelines.crawl", "source.path=none.tsv", "category=deer"]
    found = subprocess.run(command, cwd=tmp_path, env=_env(), capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert found.stderr == "error: source.path=none.tsv: no such file\n"
    assert not (tmp_path / "lake").exists()


def _env():
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def prepared(lake, web, origin):
    """The dataset of the web's crawl and a worker for it, as an actor would hold them."""
    options, limits = check_source(web.source(origin), "deer"), FetchOptions.from_config(FETCH)
    dataset = open_dataset(lake, "deer", options, limits.identity())
    plan = make_plan(dataset, options, NO_RAY)
    return dataset, plan, CrawlWorker(dataset, plan, asdict(limits), None)


def test_a_shard_is_committed_in_blocks_and_what_was_spooled_is_not_fetched_again(tmp_path, web):
    with Origin(web.path) as origin:
        dataset, plan, worker = prepared(Lake(str(tmp_path / "lake")), web, origin)
        (shard,) = plan.shards
        rows = plan.shard(shard).to_pylist()
        # What a killed actor leaves: six rows in a spool, one of them a failure that may have been its own end.
        dead = Spool(Path(spool_folder(dataset)) / shard)
        wanted = {"100", "101", "119", "202", "204"}
        dead.append(worker.fetcher.fetch([r for r in rows if r["photo_id"][-3:] in wanted]))
        dead.close()
        before = origin.requests.copy()
        counts = worker(shard, None)
        assert (counts["recovered"], counts["fetched"]) == (4, 21)
        assert {p for p, n in (origin.requests - before).items() if p in before} == {"/1/204_s.jpg"}
        assert (counts["ok"], counts["gone"], counts["placeholder"], counts["server_error"]) == (22, 1, 1, 1)
        assert not Path(spool_folder(dataset), shard).exists()
        assert [m["rows"] for m in dataset.manifests().values()].count(8) == 3
        assert missing(dataset, shard, rows, failed=False) == []
        assert [r["photo_id"] for r in missing(dataset, shard, rows, failed=True)] == ["yfcc:204"]
        # A later pass over the failure finds it gone for good, and that is what counts then.
        origin.behaviours["/1/204_s.jpg"] = {"status": 410}
        second = CrawlWorker(dataset, plan, asdict(FetchOptions.from_config(FETCH)), None, again=1)
        assert second(shard, None)["gone"] == 1
        second.fetcher.close()
        status = {r["photo_id"]: r["status"] for r in dataset.read(["photo_id", "status"]).to_pylist()}
        assert status["yfcc:204"] == "gone"
        assert missing(dataset, shard, rows, failed=True) == []
        assert worker(shard, None) == {}
        worker.fetcher.close()
    mark_duplicates(dataset)
    found = {r["photo_id"]: r for r in dataset.read(["photo_id", "duplicate_of"]).to_pylist()}
    assert {k: r["duplicate_of"] for k, r in found.items() if r["duplicate_of"]} == {"yfcc:200": "yfcc:100"}
    hosts = Counter()
    for manifest in dataset.manifests().values():
        hosts.update({h: sum(v["status"].values()) for h, v in manifest["hosts"].items()})
        assert manifest["body_bytes"] == sum(v["bytes"] for v in manifest["hosts"].values())
    assert hosts == {"127.0.0.1": 26}


def test_what_was_refused_before_a_kill_is_asked_again_and_nothing_else(tmp_path, web):
    with Origin(web.path) as origin:
        dataset, plan, worker = prepared(Lake(str(tmp_path / "lake")), web, origin)
        (shard,) = plan.shards
        rows = plan.shard(shard).to_pylist()
        worker(shard, None)
        undisturbed = dataset.state()
        # The same crawl, whose network went away in the middle of a block.
        for part in dataset.parts()[:2]:
            held = dataset.read(parts=[part]).to_pylist()
            held[3] |= {"status": "server_error", "error": "ClientConnectorError: gone", "bytes": None, "sha256": None}
            table = pa.Table.from_pylist(held, schema("photos"))
            dataset.write(part, table, schema("photos"), refused=1)
        before = origin.requests.copy()
        reopen(dataset)
        assert 0 < len(missing(dataset, shard, rows, failed=False)) <= 16
        worker(shard, None)
        worker.fetcher.close()
    assert dataset.state() == undisturbed
    asked = origin.requests - before
    asked.pop("/1/204_s.jpg", None)  # a failure that can heal is asked again with its block
    assert sum(asked.values()) <= 2


def test_two_crawls_do_not_work_in_one_dataset(tmp_path, web):
    lake = Lake(str(tmp_path / "lake"))
    with Origin(web.path) as origin:
        dataset, _, worker = prepared(lake, web, origin)
        worker.fetcher.close()
        with _alone(dataset), pytest.raises(InputError, match="another crawl is at work"):
            crawl(lake, "deer", web.source(origin), FETCH, NO_RAY)


@pytest.mark.ray
def test_a_retry_also_fetches_what_was_never_asked(tmp_path, web, ray_local):
    lake = Lake(str(tmp_path / "lake"))
    with Origin(web.path) as origin:
        crawl(lake, "deer", web.source(origin), FETCH, ray_local)
    web.photo("301", seed=301)
    web.write()
    with Origin(web.path) as origin:
        _, summary = crawl(lake, "deer", web.source(origin), FETCH, ray_local, retry="failed")
        assert origin.requests["/1/301_s.jpg"] == 1
    assert sum(summary["status"].values()) == summary["wanted"] == 26
    assert not list((tmp_path / "lake").rglob("*.spool"))


@pytest.mark.ray
def test_a_crawl_goes_on_where_it_was_and_grows(tmp_path, web, ray_local, capsys):
    lake = Lake(str(tmp_path / "lake"))
    with Origin(web.path) as origin:
        # A crawl that was killed after one block: that block is committed, nothing else is.
        dataset, plan, worker = prepared(lake, web, origin)
        (shard,) = plan.shards
        worker(shard, None)
        worker.fetcher.close()
        for part in dataset.parts()[1:]:
            dataset.forget(part)
        origin.requests.clear()
        first, summary = crawl(lake, "deer", web.source(origin), FETCH, ray_local)
        assert first.fingerprint == dataset.fingerprint
        assert summary["status"] == {"gone": 1, "ok": 22, "placeholder": 1, "server_error": 1}
        assert (summary["wanted"], summary["duplicates"], summary["photos"]) == (25, 1, 21)
        assert summary["fetched"] in (17, 24)
        assert (summary["lines"], summary["rejected"], summary["dropped"]) == (27, 1, {"words": 1})
        assert lake.latest("photos", "deer").fingerprint == first.fingerprint
        state, once = first.state(), origin.requests.copy()
        photos = {p: n for p, n in once.items() if p != "/robots.txt"}
        assert {p: n for p, n in photos.items() if n != (2 if "204" in p else 1)} == {}
        assert "<html" in lake.files.read(f"{first.path}/summary.html").decode()[:300].lower()

        crawl(lake, "deer", web.source(origin), FETCH, NO_RAY)  # nothing to do: no Ray is asked for
        assert (first.state(), origin.requests) == (state, once)

    # New rows, another port, the file read in ranges; what failed and can heal is asked for again and has healed.
    web.photo("099", seed=0)  # becomes the keeper of 100 and 200
    web.photo("300", seed=300)
    web.behaviours["/1/204_s.jpg"] = {"file": "5-95.jpg"}
    web.write()
    with Origin(web.path) as origin:
        source = web.source(origin, range_mb=0.001)
        crawl(lake, "deer", source, {**FETCH, "read_s": 7}, ray_local)
        second, summary = crawl(lake, "deer", source, {**FETCH, "read_s": 7}, ray_local, retry="failed")
        wanted = {p: n for p, n in origin.requests.items() if p != "/robots.txt"}
        assert wanted == {"/1/099_s.jpg": 1, "/1/300_s.jpg": 1, "/1/204_s.jpg": 1}
    assert second.fingerprint == first.fingerprint
    assert summary["status"] == {"gone": 1, "ok": 25, "placeholder": 1}
    rows = {r["photo_id"]: r for r in second.read().to_pylist()}
    assert len(rows) == 27
    assert {k: r["duplicate_of"] for k, r in rows.items() if r["duplicate_of"]} == {
        "yfcc:100": "yfcc:099", "yfcc:200": "yfcc:099", "yfcc:204": "yfcc:105",
    }  # fmt: skip
    show_summary(second, summary)
    assert "placeholder" in capsys.readouterr().out
