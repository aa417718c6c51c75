"""The fetcher as a stream: lazy, bounded, cancellable; and what it keeps in each mode."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from pipelines.fetch import _UNREAD, Fetcher
from pipelines.fetch_options import FetchOptions
from sandbox.origin import Origin


def options(**kwargs):
    return FetchOptions.from_config({"allow_hosts": ["127.0.0.1"], "backoff_s": 0.01, **kwargs})


def row(url):
    return {"photo_id": url, "url": url, "fetch_url": url, "license": "", "author": "", "page_url": ""}


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8), (640, 480))
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.fixture
def origin(tmp_path, photo):
    (tmp_path / "a.jpg").write_bytes(photo)
    (tmp_path / "noise.jpg").write_bytes(b"\xff\xd8\xff" + bytes(500))
    paths = {f"/{i}.jpg": {"file": "a.jpg"} for i in range(400)}
    paths |= {"/noise.jpg": {"file": "noise.jpg"}, "/slow.jpg": {"file": "a.jpg", "delay_s": 30}}
    (tmp_path / "origin.json").write_text(json.dumps(paths))
    with Origin(tmp_path) as origin:
        yield origin


def test_rows_come_as_they_end_and_are_taken_as_needed(origin):
    taken = []

    def source():
        for i in itertools.count():
            taken.append(i)
            yield row(f"{origin.url}/{i}.jpg")

    with Fetcher(options(pending=20)) as fetcher:
        stream = fetcher.stream(source())
        assert taken == []
        found = [next(stream) for _ in range(30)]
        assert len(taken) <= 30 + 20
        stream.close()
        assert {r["status"] for r in found} == {"ok"}
        assert len(fetcher.fetch([row(f"{origin.url}/{i}.jpg") for i in range(5)])) == 5


def test_nothing_more_is_asked_while_nobody_takes_what_came(origin):
    with Fetcher(options(window=8)) as fetcher:
        batches = fetcher.batches(row(f"{origin.url}/{i}.jpg") for i in range(400))
        taken = len(next(batches))
        asked = -1
        while asked != sum(origin.requests.values()):
            asked = sum(origin.requests.values())
            time.sleep(0.3)
        assert _UNREAD <= asked <= taken + _UNREAD + 8
        assert taken + sum(map(len, batches)) == 400


def test_a_closed_stream_cancels_its_rows_and_frees_their_places(origin):
    with Fetcher(options(per_host=1, window=1)) as fetcher:
        stream = fetcher.stream(row(origin.url + path) for path in ("/1.jpg", "/slow.jpg", "/2.jpg"))
        assert next(stream)["status"] == "ok"
        while not origin.requests["/slow.jpg"]:
            time.sleep(0.01)
        stream.close()
        assert fetcher.fetch([row(origin.url + "/9.jpg")])[0]["status"] == "ok"
    assert origin.requests["/2.jpg"] == 0


def test_closing_ends_streams_of_other_threads(origin):
    fetcher = Fetcher(options())
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(fetcher.fetch, [row(origin.url + "/slow.jpg")])
        while not origin.requests["/slow.jpg"]:
            time.sleep(0.01)
        fetcher.close()
        with pytest.raises(RuntimeError, match="closed"):
            work.result(timeout=10)


def test_streams_share_the_limits(origin):
    with Fetcher(options(per_host=3)) as fetcher, ThreadPoolExecutor(4) as pool:
        urls = [[row(f"{origin.url}/{i}.jpg") for i in range(k, 400, 4)] for k in range(4)]
        found = list(pool.map(lambda rows: list(fetcher.stream(rows)), urls))
    assert [len(f) for f in found] == [100] * 4
    assert origin.peak <= 3


def test_an_error_in_the_source_is_the_callers(origin):
    def source():
        yield row(origin.url + "/1.jpg")
        raise KeyError("broken source")

    with Fetcher(options()) as fetcher, pytest.raises(KeyError, match="broken source"):
        list(fetcher.stream(source()))


def test_modes(origin, photo):
    urls = [row(origin.url + "/1.jpg"), row(origin.url + "/noise.jpg")]
    with Fetcher(options(mode="keep")) as fetcher:
        kept, noise = fetcher.fetch(urls)
    assert (kept["bytes"], kept["width"], kept["height"], kept["dhash"]) == (photo, 640, 480, None)
    assert noise["status"] == "truncated"
    with Fetcher(options(mode="raw")) as fetcher:
        raw, noise = fetcher.fetch(urls)
    assert (raw["bytes"], raw["width"], raw["height"]) == (photo, None, None)
    assert noise["status"] == "ok"
    with Fetcher(options(mode="resize", resize_px=120)) as fetcher:
        small, noise = fetcher.fetch(urls)
    assert (small["width"], small["height"]) == (160, 120)
    assert small["dhash"] is not None
    assert small["sha256"] == hashlib.sha256(small["bytes"]).hexdigest()
    assert cv2.imdecode(np.frombuffer(small["bytes"], np.uint8), cv2.IMREAD_COLOR).shape == (120, 160, 3)
    assert noise["status"] == "truncated"


def test_files_only_below_folders_that_are_named(tmp_path, photo):
    inside, outside = tmp_path / "in side", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(photo)
    (inside / "big.jpg").write_bytes(photo + bytes(10**5))
    (inside / "link.jpg").symlink_to(outside / "a.jpg")
    where = inside.as_uri()
    expected = {
        where + "/a.jpg": "ok",
        where + "/none.jpg": "gone",
        where: "gone",
        where + "/big.jpg": "too_big",
        where + "/link.jpg": "forbidden",
        where + "/../outside/a.jpg": "forbidden",
        outside.as_uri() + "/a.jpg": "forbidden",
        "file://elsewhere" + str(inside) + "/a.jpg": "forbidden",
        where + "/%00.jpg": "bad_url",
    }
    with Fetcher(options(allow_files=[str(inside)], max_bytes=len(photo) + 100)) as fetcher:
        found = fetcher.fetch([row(u) for u in expected])
    assert {r["url"]: r["status"] for r in found} == expected
    assert found[0]["bytes"] == photo
    with Fetcher(options()) as fetcher:
        assert fetcher.fetch([row(where + "/a.jpg")])[0]["status"] == "bad_url"
