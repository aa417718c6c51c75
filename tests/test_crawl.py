"""The crawl as a whole: rows in, committed photos out, nothing fetched twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from pipelines.crawl import FetchBlock, crawl, mark_duplicates, open_dataset, show_summary
from pipelines.fetch_options import FetchOptions
from pipelines.sources import check_source
from sandbox.origin import Origin
from tables import InputError, Lake

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
    for category, source, fetch, radius, argument in [
        ("a/b", {"path": str(web.rows)}, FETCH, 4, "category"),
        ("deer", {"path": str(tmp_path / "none")}, FETCH, 4, "source.path"),
        ("deer", {"path": str(web.rows)}, {"block": 0}, 4, "fetch.block"),
        ("deer", {"path": str(web.rows)}, FETCH, 64, "dedup.radius"),
        ("okapi", {"path": str(web.rows)}, FETCH, 4, "source.path"),
    ]:
        with pytest.raises(InputError) as caught:
            crawl(lake, category, source, fetch, NO_RAY, radius)
        assert caught.value.argument == argument
    assert not (tmp_path / "lake").exists()


def test_command_line_error_is_one_line(tmp_path):
    command = [sys.executable, "-m", "pipelines.crawl", "source.path=none.tsv", "category=deer"]
    found = subprocess.run(command, cwd=tmp_path, env=_env(), capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert found.stderr == "error: source.path=none.tsv: no such file\n"
    assert not (tmp_path / "lake").exists()


def _env():
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def test_a_block_is_committed_with_all_its_rows(tmp_path, web):
    with Origin(web.path) as origin:
        options = check_source(web.source(origin), "deer")
        dataset = open_dataset(Lake(str(tmp_path / "lake")), "deer", options, {})
        worker = FetchBlock(dataset, {**FETCH, "allow_hosts": ("127.0.0.1",)}, origin.url)
        rows = [
            {"photo_id": f"yfcc:{k}", "url": yfcc(k).split("\t")[16], "license": "l", "author": "a", "page_url": "p"}
            for k in ("100", "101", "200", "201", "202")
        ]
        counts = worker("part", rows)
        worker.fetcher.close()
    assert counts == Counter(ok=4, gone=1)
    mark_duplicates(dataset, radius=4)
    found = dataset.read(["photo_id", "status", "duplicate_of"]).to_pylist()
    assert [(r["status"], r["duplicate_of"]) for r in found] == [
        ("ok", None), ("ok", None), ("ok", "yfcc:100"), ("ok", "yfcc:101"), ("gone", None),
    ]  # fmt: skip


@pytest.mark.ray
def test_a_crawl_goes_on_where_it_was_and_grows(tmp_path, web, ray_local, capsys):
    lake = Lake(str(tmp_path / "lake"))
    with Origin(web.path) as origin:
        # A crawl that was killed after its second block: that block is committed, nothing else is.
        options = check_source(web.source(origin), "deer")
        dataset = open_dataset(lake, "deer", options, FetchOptions.from_config(FETCH).identity())
        worker = FetchBlock(dataset, {**FETCH, "allow_hosts": ("127.0.0.1",)}, origin.url)
        worker("early", [{"photo_id": f"yfcc:{k}", "url": yfcc(str(k)).split("\t")[16], "license": "", "author": "",
                          "page_url": ""} for k in range(108, 116)])  # fmt: skip
        worker.fetcher.close()
        first, summary = crawl(lake, "deer", web.source(origin), FETCH, ray_local)
        assert first.fingerprint == dataset.fingerprint
        assert summary["status"] == {"gone": 1, "ok": 22, "placeholder": 1, "server_error": 1}
        assert (summary["wanted"], summary["fetched"], summary["duplicates"], summary["photos"]) == (25, 17, 2, 20)
        assert (summary["lines"], summary["rejected"], summary["dropped"]) == (27, 1, {"words": 1})
        assert lake.latest("photos", "deer").fingerprint == first.fingerprint
        rejects = lake.files.read_json(f"{first.path}/_rejects.json")
        assert rejects["rows"] == [{"line": 27, "reason": "1 columns, not 25"}]
        state, once = first.state(), origin.requests.copy()
        assert all(n == (2 if "204" in p else 1) for p, n in once.items())

        crawl(lake, "deer", web.source(origin), FETCH, NO_RAY)  # nothing to do: no Ray is asked for
        assert (first.state(), origin.requests) == (state, once)

    # New rows, another port, the file read in ranges; what failed and can heal is asked for again and has healed.
    web.photo("099", seed=0)  # becomes the keeper of 100 and 200
    web.photo("300", seed=300)
    web.behaviours["/1/204_s.jpg"] = {"file": "5-95.jpg"}
    web.write()
    with Origin(web.path) as origin:
        source = web.source(origin, range_mb=0.001)
        second, summary = crawl(lake, "deer", source, {**FETCH, "read_s": 7, "retry_failed": True}, ray_local)
        assert origin.requests == {"/1/099_s.jpg": 1, "/1/300_s.jpg": 1, "/1/204_s.jpg": 1}
    assert second.fingerprint == first.fingerprint
    assert summary["status"] == {"gone": 1, "ok": 25, "placeholder": 1}
    rows = {r["photo_id"]: r for r in second.read().to_pylist()}
    assert len(rows) == 27
    assert {k: r["duplicate_of"] for k, r in rows.items() if r["duplicate_of"]} == {
        "yfcc:100": "yfcc:099", "yfcc:200": "yfcc:099", "yfcc:201": "yfcc:101", "yfcc:204": "yfcc:105",
    }  # fmt: skip
    assert lake.files.read_json(f"{second.path}/_rejects.json")["rows"][0]["line"] == 29
    show_summary(second, summary)
    assert "placeholder" in capsys.readouterr().out
