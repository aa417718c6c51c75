"""robots.txt that redirects, is packed or never comes; hosts that never answer; waits that are no waits."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import time
import zlib

import pytest
from faults import HOSTS, FaultOrigin, row

from pipelines.fetch import Fetcher
from pipelines.fetch_options import FetchOptions
from pipelines.host_turns import Desk
from pipelines.robots import MAX_BYTES, unpacked
from pipelines.strangers import Strangers

NO = b"User-agent: *\nDisallow: /\n"


def options(**kwargs):
    base = {"allow_hosts": list(HOSTS), "attempts": 1, "backoff_s": 0.02, "read_s": 2.0, "total_s": 3.0}
    return FetchOptions.from_config({**base, **kwargs})


@pytest.fixture
def origin():
    with FaultOrigin() as origin:
        yield origin


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/robots.txt", "file:///etc/passwd", "http://[::bad/", "http:///", "http://a..b/"]
)
def test_a_robots_txt_that_leads_where_we_may_not_go_is_none(origin, target):
    origin.robots[HOSTS[0]] = lambda c: c.redirect(target)
    with Fetcher(options()) as fetcher:
        rows = fetcher.fetch([row(origin.url("fine", name=f"{i}.jpg")) for i in range(12)])
    assert {(r["status"], r["attempts"]) for r in rows} == {("ok", 1)}
    assert len(origin.requests("/robots.txt")) == 1


def test_two_hosts_whose_robots_txt_lead_to_each_other_wait_for_nobody(origin):
    for host, other in (HOSTS[:2], HOSTS[1::-1]):
        origin.robots[host] = lambda c, other=other: c.redirect(f"http://{other}:{origin.port}/robots.txt")
    urls = [origin.url("fine", HOSTS[i % 2], f"{i}.jpg") for i in range(12)]
    with Fetcher(options(per_host=1, window=1)) as fetcher:
        rows = fetcher.fetch([row(u) for u in urls])
    assert {r["status"] for r in rows} == {"ok"}
    assert len(origin.requests("/robots.txt")) == 12  # six hops for each
    assert max(origin.peak.values()) == 1


def test_who_waits_for_a_robots_txt_holds_no_window(origin):
    origin.robots[HOSTS[1]] = lambda c: c.silence()
    slow = [row(origin.url("fine", HOSTS[1], f"{i}.jpg")) for i in range(8)]
    fast = [row(origin.url("fine", HOSTS[0], f"{i}.jpg")) for i in range(20)]
    with Fetcher(options(window=8, read_s=0.5, per_host=4)) as fetcher:
        rows = list(fetcher.stream(slow + fast))
    assert [r["status"] for r in rows[:20]] == ["ok"] * 20
    assert {(r["status"], r["attempts"]) for r in rows[20:]} == {("timeout", 1)}
    assert sum(host == HOSTS[1] for _, host, _ in origin.asked) == 2  # each for as many rows as may be in flight


def test_a_stream_that_nobody_reads_holds_no_robots_txt_back(origin):
    with Fetcher(options(window=4)) as fetcher:
        idle = fetcher.stream(row(origin.url("fine", HOSTS[0], f"{i}.jpg")) for i in range(400))
        next(idle)
        time.sleep(0.5)
        (found,) = fetcher.fetch([row(origin.url("fine", HOSTS[1], "other.jpg"))])
        idle.close()
    assert found["status"] == "ok"


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(NO), "robots"), ("deflate", zlib.compress(NO), "robots"), ("identity", NO, "robots"),
        ("GZIP", gzip.compress(b"#\n") + gzip.compress(NO), "robots"), ("gzip", gzip.compress(b"#\n"), "ok"),
        ("gzip", b"", "ok"), ("gzip", NO, "server_error"), ("br", b"\x0b\x02\x80abc\x03", "server_error"),
    ],
    # A packed body holds the time, which in a name would make it another test in each process.
    ids=["gzip", "deflate", "plain", "two members", "a comment", "nothing", "not gzip", "brotli"],
)  # fmt: skip
def test_a_packed_robots_txt_is_unpacked_or_counts_as_unreadable(origin, encoding, body, status):
    origin.robots[HOSTS[0]] = lambda c: c.send(200, body, f"Content-Encoding: {encoding}")
    with Fetcher(options()) as fetcher:
        (found,) = fetcher.fetch([row(origin.url("fine"))])
    assert found["status"] == status
    assert len(origin.requests("/fine/1.jpg")) == (status == "ok")


def test_unpacking_has_an_end():
    assert len(unpacked(gzip.compress(bytes(10**8)), "gzip") or b"") == MAX_BYTES


def test_silent_hosts_leave_most_of_the_window_to_others(origin):
    silent = [origin.url("hang", host, f"{i}.jpg") for i in range(8) for host in HOSTS[1:]]
    good = [origin.url("fine", HOSTS[0], f"{i}.jpg") for i in range(40)]
    with Fetcher(options(window=8, per_host=8)) as fetcher:
        fetcher.fetch([row(origin.url("fine"))])  # it is known to answer
        stream = fetcher.stream(map(row, [u for pair in itertools.zip_longest(silent, good) for u in pair if u]))
        rows = list(itertools.islice(stream, 40))
        stream.close()
    assert {r["status"] for r in rows} == {"ok"}


def test_hosts_share_the_places_of_strangers_by_turns_until_they_answer():
    async def scene():
        strangers, order = Strangers(1), []
        a, b = Desk("a"), Desk("b")

        async def ask(desk):
            async with strangers.place(desk):
                order.append(desk.name)
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(ask(desk)) for desk in (a, a, a, a, b, b)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == list("aabba")
        held = asyncio.create_task(ask(a))
        waiting = asyncio.create_task(ask(b))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        b.well = True
        strangers.welcome(b)
        await asyncio.sleep(0)
        assert order[-2:] == ["a", "b"]  # at once, beside the other
        await asyncio.gather(held, waiting)

    asyncio.run(scene())


@pytest.mark.parametrize("kind", ["wait_nothing", "wait_past"])
def test_a_wait_of_nothing_still_backs_off(origin, kind):
    with Fetcher(options(attempts=2, backoff_s=0.4)) as fetcher:
        (found,) = fetcher.fetch([row(origin.url(kind))])
    assert (found["status"], found["attempts"]) == ("ok", 2)
    first, second = origin.requests(f"/{kind}/1.jpg")
    assert second - first >= 0.2
