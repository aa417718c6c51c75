"""The fetcher against everything that goes wrong: the right status each, politely, and nobody waits for another."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import pytest
from faults import HOSTS, KINDS, PHOTO, PLACEHOLDER, FaultOrigin, row

from pipelines.fetch import HEALABLE, Fetcher
from pipelines.fetch_options import FetchOptions
from pipelines.hosts import BREAKER


def options(**kwargs):
    base = {
        "allow_hosts": list(HOSTS), "attempts": 2, "backoff_s": 0.02, "read_s": 1.0, "total_s": 3.0, "grace_s": 0.5,
        "max_bytes": 1 << 20, "placeholders": [hashlib.sha256(PLACEHOLDER).hexdigest()],
    }  # fmt: skip
    return FetchOptions.from_config({**base, **kwargs})


@pytest.fixture
def origin():
    with FaultOrigin() as origin:
        yield origin


def test_every_kind_of_failure_has_its_status(origin):
    assert len(KINDS) >= 25
    urls = {kind: origin.url(kind) for kind in KINDS}
    with Fetcher(options(per_host=4)) as fetcher:
        rows = {r["photo_id"]: r for r in fetcher.fetch([row(u) for u in urls.values()])}
    found = {kind: (rows[u]["status"], rows[u]["attempts"]) for kind, u in urls.items()}
    assert found == {kind: (k.status, k.attempts) for kind, k in KINDS.items()}
    for r in rows.values():
        assert (r["status"] == "ok") == (r["bytes"] == PHOTO) == (r["error"] is None)
        assert r["ms"] < 2 * 3000 + 1000
    assert max(origin.peak.values()) <= 4
    # One request per attempt, except where a kept connection was found dead and the request never got an answer.
    for kind in set(KINDS) - {"redirect_loop", "reset", "hang_up", "garbage"}:
        assert len(origin.requests(f"/{kind}/1.jpg")) == KINDS[kind].attempts, kind


def test_failures_stall_nobody(origin):
    bad = [origin.url(kind, HOSTS[1], f"{i}.jpg") for i in range(8) for kind in ("hang", "hang_body", "drip")]
    good = [origin.url("fine", HOSTS[0], f"{i}.jpg") for i in range(60)]
    mixed = [u for pair in itertools.zip_longest(bad, good) for u in pair if u]
    with Fetcher(options(per_host=8, window=16)) as fetcher:
        rows = list(fetcher.stream(map(row, mixed)))
    # 24 bad rows of two attempts, 8 at a time, hold half of the window: nobody of the others waits for them.
    order = [r["photo_id"] in set(good) for r in rows]
    assert len(rows) == len(mixed)
    assert order.index(True) == 0
    assert all(order[: len(good) // 2])
    assert {r["status"] for r in rows if r["photo_id"] in set(good)} == {"ok"}
    assert {r["status"] for r in rows if r["photo_id"] in set(bad)} == {"timeout"}
    assert max(origin.peak.values()) <= 8


@pytest.mark.parametrize("kind", ["wait_seconds", "wait_date"])
def test_no_request_before_its_retry_after(origin, kind):
    with Fetcher(options(per_host=2)) as fetcher:
        (first,) = fetcher.fetch([row(origin.url("fine", HOSTS[2], "warm.jpg"))])
        urls = [origin.url(kind, HOSTS[2])] + [origin.url("fine", HOSTS[2], f"{i}.jpg") for i in range(30)]
        rows = fetcher.fetch([row(u) for u in urls])
    assert first["status"] == "ok"
    assert {r["status"] for r in rows} == {"ok"}
    at = [t for t, host, _ in origin.asked if host == HOSTS[2]]
    refused, again = origin.requests(f"/{kind}/1.jpg")
    assert again - refused >= 1.0
    # The host is paused for all rows; a request or two may have been on their way.
    assert sum(refused + 0.1 < t < refused + 0.99 for t in at) == 0
    assert len(at) > 30


def test_a_host_that_fails_is_left_alone_and_its_rows_are_kept(origin):
    urls = [origin.url("status_500", HOSTS[1], f"{i}.jpg") for i in range(60)]
    good = [origin.url("fine", HOSTS[0], f"{i}.jpg") for i in range(10)]
    with Fetcher(options(attempts=1, backoff_s=0.2, host_patience_s=1.0)) as fetcher:
        rows = list(fetcher.stream(map(row, urls + good)))
    bad = [r for r in rows if r["photo_id"] in set(urls)]
    assert {r["status"] for r in bad} == {"server_error"}
    assert "server_error" in HEALABLE
    unasked = [r for r in bad if r["attempts"] == 0]
    asked = [p for _, host, p in origin.asked if host == HOSTS[1] and p != "/robots.txt"]
    assert len(asked) == len(bad) - len(unasked) < BREAKER + 30
    assert all("host_patience_s" in r["error"] for r in unasked)
    assert sum(r["status"] == "ok" for r in rows) == 10


def test_the_breaker_only_defers(origin):
    """A host that is down for a while: the circuit opens, and every row after that is fetched in the end."""
    origin.robots[HOSTS[1]] = 404
    origin.down = 2 * BREAKER  # more than are in flight when the circuit opens: some probes find the host down too
    urls = [origin.url("fine", HOSTS[1], f"{i}.jpg") for i in range(60)]
    with Fetcher(options(attempts=1, backoff_s=0.05)) as fetcher:
        rows = list(fetcher.stream(map(row, urls)))
    assert Counter(r["status"] for r in rows) == {"server_error": 2 * BREAKER, "ok": len(urls) - 2 * BREAKER}
    assert all(r["attempts"] == 1 for r in rows)


@pytest.mark.parametrize(("robots", "status"), [(404, "ok"), (403, "ok"), (500, "server_error"), (429, "throttled")])
def test_a_robots_txt_that_cannot_be_had(origin, robots, status):
    origin.robots[HOSTS[3]] = robots
    with Fetcher(options()) as fetcher:
        (found,) = fetcher.fetch([row(origin.url("fine", HOSTS[3]))])
    assert found["status"] == status
    assert len(origin.requests("/fine/1.jpg")) == (status == "ok")
    assert status == "ok" or "robots.txt" in found["error"]


def test_robots_txt_is_asked_for_once_and_can_be_ignored(origin):
    urls = [origin.url("robots_me", HOSTS[0], f"{i}.jpg") for i in range(20)]
    with Fetcher(options()) as fetcher:
        assert {r["status"] for r in fetcher.fetch([row(u) for u in urls])} == {"robots"}
        assert [p for _, _, p in origin.asked] == ["/robots.txt"]
    with Fetcher(options(robots=False)) as fetcher:
        assert {r["status"] for r in fetcher.fetch([row(u) for u in urls])} == {"ok"}
    with Fetcher(options(opt_out=[])) as fetcher:
        assert fetcher.fetch([row(origin.url("opt_out"))])[0]["status"] == "ok"


def test_crawl_delay_is_kept(origin):
    origin.robots[HOSTS[2]] = b"User-agent: wildshape\nCrawl-delay: 0.2\n"
    with Fetcher(options(per_host=8)) as fetcher:
        fetcher.fetch([row(origin.url("fine", HOSTS[2], f"{i}.jpg")) for i in range(6)])
    at = [t for t, _, path in origin.asked if path != "/robots.txt"]
    assert all(b - a > 0.15 for a, b in itertools.pairwise(at))
    assert origin.peak[HOSTS[2]] == 1


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("a.jpg?size=b&x=%20y", "a.jpg?size=b&x=%20y"), ("a b.jpg", "a%20b.jpg"), ("b%C3%A4r.jpg", "b%C3%A4r.jpg"),
        ("bär.jpg", "b%C3%A4r.jpg"), ("熊/🐻.jpg?q=ü", "%E7%86%8A/%F0%9F%90%BB.jpg?q=%C3%BC"), ("a.jpg#part", "a.jpg"),
        ("x%7Ey%2Fz.jpg", "x%7Ey%2Fz.jpg"), ("a+b&c;d=(e).jpg", "a+b&c;d=(e).jpg"),
    ],
)  # fmt: skip
def test_urls_reach_the_host_as_they_are(origin, path, sent):
    with Fetcher(options()) as fetcher:
        (found,) = fetcher.fetch([row(origin.url("fine", name=path))])
    assert found["status"] == "ok"
    assert len(origin.requests("/fine/" + sent)) == 1
