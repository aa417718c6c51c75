"""The fetcher against a real origin on 127.0.0.1: every status, retries, politeness, and where it must not go."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import cv2
import numpy as np
import pytest

from pipelines.addresses import BadUrlError, ForbiddenError, check_url, is_public
from pipelines.answer import parse_retry_after
from pipelines.fetch import Fetcher
from pipelines.fetch_options import FetchOptions
from sandbox.origin import Origin
from tables import InputError, schema


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8), (160, 120))
    data = cv2.imencode(".jpg", image)[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "cut.jpg").write_bytes(data[:-300])
    (tmp_path / "page.html").write_text("<html>soft 404</html>")
    (tmp_path / "big.jpg").write_bytes(data + bytes(40_000))
    (tmp_path / "wide.png").write_bytes(cv2.imencode(".png", np.zeros((1100, 1000), np.uint8))[1].tobytes())
    return tmp_path


def options(**kwargs):
    base = {"allow_hosts": ["127.0.0.1"], "backoff_s": 0.01, "max_bytes": 40_000, "max_pixels": 10**6}
    return FetchOptions.from_config({**base, **kwargs})


def serve(folder, behaviours):
    (folder / "origin.json").write_text(json.dumps(behaviours))
    return Origin(folder)


def row(url, key="1"):
    return {"photo_id": f"yfcc:{key}", "url": url, "fetch_url": url, "license": "CC", "author": "me", "page_url": "p"}


def fetch(origin, paths, **kwargs):
    rows = [row(p if "://" in p else origin.url + p, str(i)) for i, p in enumerate(paths)]
    with Fetcher(options(**kwargs)) as fetcher:
        return fetcher.fetch(rows)


STATUSES = {
    # path: behaviour, status, HTTP status, requests
    "/ok.jpg": ({"file": "a.jpg"}, "ok", 200, 1),
    "/ok.jpg?size=b&x=%20": ({"file": "a.jpg"}, "ok", 200, 1),
    "/type.jpg": ({"file": "a.jpg", "content_type": "text/plain"}, "ok", 200, 1),
    "/404.jpg": ({"status": 404}, "gone", 404, 1),
    "/410.jpg": ({"status": 410}, "gone", 410, 1),
    "/403.jpg": ({"status": 403}, "forbidden", 403, 1),
    "/400.jpg": ({"status": 400}, "bad_url", 400, 1),
    "/429.jpg": ({"status": 429}, "throttled", 429, 3),
    "/500.jpg": ({"status": 500}, "server_error", 500, 3),
    "/heals.jpg": ({"file": "a.jpg", "status": 503, "fail_first": 2}, "ok", 200, 3),
    "/polite.jpg": ({"file": "a.jpg", "status": 429, "fail_first": 1}, "ok", 200, 2),
    "/short.jpg": ({"file": "a.jpg", "truncate": 900}, "truncated", 200, 3),
    "/cut.jpg": ({"file": "cut.jpg"}, "truncated", 200, 3),
    "/html.jpg": ({"file": "page.html", "content_type": "image/jpeg"}, "not_image", 200, 1),
    "/big.jpg": ({"file": "big.jpg"}, "too_big", 200, 1),
    "/bomb.jpg": ({"file": "wide.png"}, "bomb", 200, 1),
    "/moved.jpg": ({"redirect": "/ok.jpg"}, "ok", 200, 1),
    "/removed.jpg": ({"redirect": "/images/photo_unavailable_l.png"}, "placeholder", 302, 1),
    "/loop.jpg": ({"redirect": "/loop.jpg"}, "bad_url", 302, 6),
    "/file.jpg": ({"redirect": "file:///etc/passwd"}, "forbidden", 302, 1),
    "/meta.jpg": ({"redirect": "http://169.254.169.254/latest/meta-data/"}, "forbidden", 302, 1),
    "/lan.jpg": ({"redirect": "http://10.0.0.1/a.jpg"}, "forbidden", 302, 1),
    "/absent.jpg": (None, "gone", 404, 1),
}


def test_every_url_ends_as_one_row_of_the_right_status(folder):
    import pyarrow as pa

    with serve(folder, {p: b for p, (b, *_) in STATUSES.items() if b}) as origin:
        rows = fetch(origin, list(STATUSES))
    found = {p: (r["status"], r["http_status"], origin.requests[p]) for p, r in zip(STATUSES, rows, strict=True)}
    # The plain photo is also where /moved.jpg leads.
    assert origin.requests.pop("/ok.jpg") == 2
    found["/ok.jpg"] = (*found["/ok.jpg"][:2], 1)
    assert found == {p: tuple(expected) for p, (_, *expected) in STATUSES.items()}
    table = pa.Table.from_pylist(rows, schema("photos"))
    assert table["bytes"].null_count == sum(s != "ok" for s in table["status"].to_pylist())
    photo = rows[0]
    assert photo["bytes"] == (folder / "a.jpg").read_bytes()
    assert (photo["width"], photo["height"], photo["error"]) == (160, 120, None)
    assert len(photo["sha256"]) == 64
    assert [r["attempts"] for r in rows[7:11]] == [3, 3, 3, 2]
    assert rows[16]["final_url"] == origin.url + "/ok.jpg"
    assert (photo["license"], photo["author"], photo["page_url"]) == ("CC", "me", "p")
    assert all(r["error"] for r in rows if r["status"] != "ok")


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://127.0.0.2:{port}/ok.jpg", "forbidden"), ("http://2130706434:{port}/ok.jpg", "forbidden"),
        ("http://0x7f.2:{port}/ok.jpg", "forbidden"), ("http://0177.0.0.2:{port}/ok.jpg", "forbidden"),
        ("http://[::1]:{port}/ok.jpg", "forbidden"), ("http://[::ffff:127.0.0.2]:{port}/ok.jpg", "forbidden"),
        ("http://0.0.0.0:{port}/ok.jpg", "forbidden"), ("http://169.254.169.254/latest", "forbidden"),
        ("http://127.0.0.2:{port}\\@127.0.0.1:{port}/ok.jpg", "bad_url"),
        ("http://user@127.0.0.2:{port}/ok.jpg", "forbidden"),
        ("http://localhost:{port}/ok.jpg", "forbidden"),  # a name: refused after the look-up
        ("ftp://127.0.0.1/ok.jpg", "bad_url"), ("http:///ok.jpg", "bad_url"), ("http://[::1/ok.jpg", "bad_url"),
        ("http://127.0.0.1:99999/ok.jpg", "bad_url"), ("nothing", "bad_url"), ("", "bad_url"),
        ("http://" + "a" * 300 + ".org/ok.jpg", "bad_url"), ("http://bücher..example/ok.jpg", "bad_url"),
    ],
)  # fmt: skip
def test_places_it_must_not_go_are_never_touched(folder, url, status):
    with serve(folder, {"/ok.jpg": {"file": "a.jpg"}, "/to.jpg": {"redirect": "http://x/"}}) as origin:
        port = origin.url.rpartition(":")[2]
        target = url.replace("{port}", port)
        origin.behaviours["/to.jpg"]["redirect"] = target
        with Fetcher(options(attempts=1)) as fetcher:
            (direct,) = fetcher.fetch([row(target)])
            assert (direct["status"], direct["bytes"]) == (status, None)
            if target.startswith(("http://", "ftp")) and not target.startswith("http:///"):  # else it is relative
                (redirected,) = fetcher.fetch([row(origin.url + "/to.jpg", "2")])
                assert redirected["status"] in ("forbidden", "bad_url")
        assert origin.requests["/ok.jpg"] == 0


def test_a_host_that_is_allowed_by_name(folder):
    with serve(folder, {"/ok.jpg": {"file": "a.jpg"}}) as origin:
        url = origin.url.replace("127.0.0.1", "LocalHost") + "/ok.jpg"
        with Fetcher(options(allow_hosts=["localhost"])) as fetcher:
            named, numbered = fetcher.fetch([row(url), row(origin.url + "/ok.jpg", "2")])
    assert (named["status"], numbered["status"]) == ("ok", "forbidden")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "255.255.255.255",
     "nonsense"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


def test_check_url():
    assert check_url("HTTPS://Farm1.StaticFlickr.com./1.jpg", ())[1] == "farm1.staticflickr.com"
    url, host = check_url("http://127.0.0.1/a%20b%7E.jpg?x=%41", {"127.0.0.1"})
    assert (str(url), host) == ("http://127.0.0.1/a%20b%7E.jpg?x=%41", "127.0.0.1")
    with pytest.raises(BadUrlError, match="scheme"):
        check_url("gopher://h/", ())
    with pytest.raises(ForbiddenError, match="scheme"):
        check_url("gopher://h/", (), redirected=True)
    with pytest.raises(ForbiddenError, match="allow_hosts"):
        check_url("http://192.168.0.1/", {"127.0.0.1"})


def test_slow_bodies_and_silent_hosts_are_timeouts_and_stall_nobody(folder):
    behaviours = {
        "/drip.jpg": {"file": "a.jpg", "bytes_per_s": 100},
        "/hang.jpg": {"file": "a.jpg", "delay_s": 30},
        "/late.jpg": {"file": "a.jpg", "delay_s": 0.05},
        **{f"/{i}.jpg": {"file": "a.jpg"} for i in range(30)},
    }
    begun = time.monotonic()
    with serve(folder, behaviours) as origin:
        rows = fetch(origin, list(behaviours), attempts=2, read_s=0.4, total_s=2, grace_s=0.2)
    assert [r["status"] for r in rows] == ["timeout", "timeout", *["ok"] * 31]
    assert "min_bytes_per_s" in rows[0]["error"]
    assert [r["attempts"] for r in rows[:2]] == [2, 2]
    assert time.monotonic() - begun < 3
    with serve(folder, behaviours) as origin:
        late = fetch(origin, ["/drip.jpg"], attempts=1, total_s=0.3, min_bytes_per_s=0)
    assert late[0]["status"] == "timeout"
    assert "total_s" in late[0]["error"]


def test_hosts_that_do_not_answer(folder):
    with serve(folder, {}) as origin:
        pass  # gone again, its port refuses
    with Fetcher(options(attempts=2)) as fetcher:
        refused, unknown = fetcher.fetch([row(origin.url + "/a.jpg"), row("http://no-such-host.invalid/a.jpg", "2")])
    assert (refused["status"], refused["attempts"], refused["http_status"]) == ("server_error", 2, None)
    assert unknown["status"] == "server_error"


def test_never_more_at_one_host_than_allowed(folder):
    behaviours = {f"/{i}.jpg": {"file": "a.jpg", "delay_s": 0.02} for i in range(24)}
    with serve(folder, behaviours) as origin:
        rows = fetch(origin, list(behaviours), per_host=3)
    assert all(r["status"] == "ok" for r in rows)
    assert origin.peak == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_nothing_is_asked_before_retry_after(folder, form):
    value = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    behaviours = {"/a.jpg": {"file": "a.jpg", "status": 429, "fail_first": 1, "retry_after": value}}
    begun = time.monotonic()
    with serve(folder, behaviours) as origin:
        (found,) = fetch(origin, ["/a.jpg"])
    assert found["status"] == "ok"
    assert time.monotonic() - begun >= 1.0
    assert origin.requests["/a.jpg"] == 2


def test_a_long_retry_after_ends_the_row(folder):
    with serve(folder, {"/a.jpg": {"status": 429, "retry_after": "3600"}}) as origin:
        (found,) = fetch(origin, ["/a.jpg"])
    assert (found["status"], found["attempts"], origin.requests["/a.jpg"]) == ("throttled", 1, 1)
    assert "retry_after_max_s" in found["error"]


def test_retry_after_values():
    assert parse_retry_after("7") == 7.0
    assert parse_retry_after(None) is parse_retry_after("soon") is parse_retry_after("-3") is None
    assert parse_retry_after("1.5") == 1.5
    assert parse_retry_after("9" * 11) == parse_retry_after("9" * 5000) == 1e9
    assert parse_retry_after(formatdate(time.time() - 50, usegmt=True)) == 0.0
    assert 50 < (parse_retry_after(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60


def test_bytes_come_from_the_fetch_url(folder):
    with serve(folder, {"/1/a.jpg": {"file": "a.jpg"}}) as origin, Fetcher(options()) as fetcher:
        there = row("http://farm1.staticflickr.com/1/a.jpg") | {"fetch_url": origin.url + "/1/a.jpg"}
        (found,) = fetcher.fetch([there])
    assert found["status"] == "ok"
    assert found["url"] == "http://farm1.staticflickr.com/1/a.jpg"
    assert found["final_url"] == origin.url + "/1/a.jpg"


def test_options_are_checked():
    with pytest.raises(InputError, match=r"fetch\.per_host"):
        options(per_host=0)
    with pytest.raises(InputError, match=r"fetch\.attempts"):
        options(attempts="many")
    with pytest.raises(InputError, match=r"fetch\.per_hosts"):
        options(per_hosts=3)
    assert options(allow_hosts="[::1]").allow_hosts == ("::1",)
    assert options(contact="https://lab.org").agent.endswith(" (+https://lab.org)")
    assert options(user_agent="me/1").agent == "me/1"


def test_one_session_from_many_threads_and_close_twice(folder):
    from concurrent.futures import ThreadPoolExecutor

    with serve(folder, {"/ok.jpg": {"file": "a.jpg", "delay_s": 0.02}}) as origin:
        fetcher = Fetcher(options(per_host=2))
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: fetcher.fetch([row(origin.url + "/ok.jpg", str(i))]), range(8)))
        fetcher.close()
        fetcher.close()
    assert [f[0]["status"] for f in found] == ["ok"] * 8
    assert origin.peak <= 2
