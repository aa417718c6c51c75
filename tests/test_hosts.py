"""The host book: no host is asked more than it bears, whoever asks, whoever dies, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

import pytest

from pipelines import host_turns, hosts
from pipelines.fetch_options import FetchOptions
from pipelines.host_turns import AsideError, HostTurns
from pipelines.hosts import HostBook, Report, backoff

HOST = "h.example"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Client:
    """A client by hand: applies what the book says, and tells it."""

    def __init__(self, book: HostBook, name: str) -> None:
        self.book, self.name, self.seen, self.slots, self.grant = book, name, 0, 0, None
        self.loop = book.loop

    def tell(self, busy=0, want=8, **saw):
        self.loop.run(self.book.tell(self.name, self.seen, [Report(HOST, self.slots, busy, want, **saw)]))
        return self

    def hear(self):
        self.seen, reset, grants = self.loop.run(self.book.watch(self.name, self.seen))
        self.slots = 0 if reset else self.slots
        for grant in grants:
            self.grant, self.slots = grant, grant.slots
        return self


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(hosts, "POLL_S", 0.01)
    with asyncio.Runner() as Clock.loop:
        yield Clock()


def make_book(clock, grace_s=0.0, **kwargs):
    book = HostBook(FetchOptions(**{"per_host": 8, "backoff_s": 1.0, **kwargs}), clock, grace_s)
    book.loop = clock.loop
    return book


def test_a_slot_moves_only_when_its_holder_says_that_it_is_free(clock):
    book = make_book(clock)
    a, b = Client(book, "a"), Client(book, "b")
    assert a.tell().hear().slots == 8
    a.tell(busy=8)
    assert b.tell().hear().slots == 0  # all of them may be in use
    assert a.hear().slots == 4
    assert b.tell().hear().slots == 0
    a.tell(busy=6)  # it heard, but two requests too many are still on their way
    assert b.hear().slots == 2
    a.tell(busy=3)
    assert b.hear().slots == 4
    b.tell(busy=4, want=4)
    a.tell(busy=0, want=0).hear()
    a.tell(want=0)
    assert b.tell().hear().slots == 8


def test_who_wants_little_leaves_the_rest_to_others(clock):
    book = make_book(clock)
    a, b = Client(book, "a"), Client(book, "b")
    a.tell(want=2).hear()
    assert a.slots == 8
    b.tell(want=8)
    a.hear().tell(want=2, busy=2)
    assert (a.slots, b.hear().slots) == (2, 6)


def test_fewer_slots_than_clients_go_round(clock):
    book = make_book(clock, per_host=1)
    clients = [Client(book, c) for c in "abc"]
    had = set()
    for _ in range(30):
        for c in clients:
            c.tell(want=1).hear().tell(want=1)
        assert sum(c.slots for c in clients) <= 1
        had |= {c.name for c in clients if c.slots}
        clock.now += 1
    assert had == {"a", "b", "c"}


def test_a_silent_client_loses_its_share_and_must_forget_it(clock):
    book = make_book(clock)
    a, b = Client(book, "a"), Client(book, "b")
    a.tell().hear().tell(busy=8)
    for _ in range(10):
        clock.now += 2
        b.tell().hear()
    assert b.slots == 8
    a.hear()
    assert a.slots == 0


def test_a_new_book_waits_for_the_clients_of_the_one_that_died(clock):
    a = Client(make_book(clock), "a")
    a.tell().hear().tell(busy=5)
    assert a.slots == 8
    a.book = make_book(clock, grace_s=15)
    b = Client(a.book, "b")
    assert b.tell().hear().slots == 0
    a.hear()
    assert a.slots == 0
    clock.now += 10
    a.tell(busy=5)
    clock.now += 6
    assert b.tell().hear().slots == 3
    assert a.tell(busy=0).hear().slots == 4


def test_refusals_halve_and_answers_raise(clock):
    book = make_book(clock, per_host=16)
    a = Client(book, "a")
    a.tell(want=16).hear()
    a.tell(want=16, throttled=1, retry_after=0.0).hear()
    assert a.slots == 8
    a.tell(want=16, throttled=5, retry_after=0.0)  # of the same burst
    clock.now += 2
    a.tell(want=16, throttled=1, retry_after=0.0).hear()
    assert a.slots == 4
    for _ in range(30):
        a.tell(want=16, answered=4, ms=40.0)
    assert a.hear().slots > 6
    for _ in range(60):
        a.tell(want=16, answered=8, ms=80.0)
    assert a.hear().slots == 16


def test_a_host_that_becomes_slow_is_asked_less(clock):
    book = make_book(clock)
    a = Client(book, "a")
    a.tell(answered=8, ms=8 * 50).hear()
    for _ in range(4):
        clock.now += 2
        a.tell(answered=1, ms=3000)
    assert a.hear().slots < 6


def test_retry_after_pauses_the_host_for_all(clock):
    book = make_book(clock)
    a, b = Client(book, "a"), Client(book, "b")
    a.tell(want=4).hear()
    b.tell(want=4).hear()
    a.tell(throttled=1, retry_after=30.0)
    assert b.hear().grant.wait == a.hear().grant.wait == 30
    clock.now += 10
    c = Client(book, "c")
    assert c.tell().hear().grant.wait == 20


def test_a_wait_that_is_too_long_sets_the_host_aside(clock):
    book = make_book(clock, retry_after_max_s=60)
    a, b = Client(book, "a"), Client(book, "b")
    a.tell().hear().tell(throttled=1, retry_after=3600.0)
    b.tell()
    for client in (a, b):
        status, why = client.hear().grant.aside
        assert status == "throttled"
        assert "3600 s" in why


def test_the_circuit_opens_and_one_request_tries_it(clock):
    book = make_book(clock)
    a = Client(book, "a")
    a.tell().hear().tell(failed=hosts.BREAKER)
    assert a.hear().slots == 1
    first = a.grant.wait
    assert 0.5 <= first <= 1.5
    a.tell(failed=3)  # still on their way when it opened: nothing new
    assert a.hear().grant.wait == first
    clock.now += first
    a.tell(failed=1).hear()
    assert 1.0 <= a.grant.wait <= 3.0
    clock.now += a.grant.wait
    a.tell(answered=1, ms=10.0)
    assert a.hear().slots == 2


def test_patience_with_a_host_ends(clock):
    book = make_book(clock, host_patience_s=600)
    a = Client(book, "a")
    a.tell().hear()
    waits = []
    while not (a.grant and a.grant.aside):
        a.tell(failed=hosts.BREAKER).hear()
        waits.append(a.grant.wait)
        clock.now += max(a.grant.wait, 0.1)
        assert len(waits) < 100
    assert clock.now - 1000 >= 600
    assert max(waits) <= 90
    assert a.grant.aside[0] == "server_error"


def test_backoff_grows_and_repeats():
    waits = [backoff(0.5, n, "yfcc:1") for n in (1, 2, 3)]
    assert waits == [backoff(0.5, n, "yfcc:1") for n in (1, 2, 3)]
    for n, wait in enumerate(waits):
        assert 0.25 * 2**n <= wait <= 0.75 * 2**n
    assert backoff(0.5, 1, "yfcc:1") != backoff(0.5, 1, "yfcc:2")
    assert backoff(0.5, 10**9, "yfcc:1") <= 45


class FarBook(HostBook):
    """A book at the end of a slow line."""

    async def tell(self, *args):
        await asyncio.sleep(random.uniform(0, 0.02))
        await super().tell(*args)
        await asyncio.sleep(random.uniform(0, 0.02))

    async def watch(self, *args):
        await asyncio.sleep(random.uniform(0, 0.02))
        found = await super().watch(*args)
        await asyncio.sleep(random.uniform(0, 0.02))
        return found


class Site:
    """A host that counts who is there at once."""

    def __init__(self) -> None:
        self.now = self.peak = self.total = 0

    async def visit(self, turns, host, outcome="answered"):
        desk = await turns.take(host)
        self.now += 1
        self.total += 1
        self.peak = max(self.peak, self.now)
        await asyncio.sleep(random.uniform(0, 0.01))
        self.now -= 1
        turns.give(desk, outcome, 5.0)


@pytest.mark.parametrize("per_host", [1, 3])
def test_never_above_the_limit_with_many_clients_that_come_and_go(per_host):
    random.seed(per_host)
    sites = {f"h{i}": Site() for i in range(3)}
    options = FetchOptions(per_host=per_host)

    async def client(book, visits, after):
        await asyncio.sleep(after)
        turns = HostTurns(book, options)
        turns.start()
        await asyncio.gather(*(sites[h].visit(turns, h) for h in random.choices(list(sites), k=visits)))
        await turns.close()

    async def all_of_them():
        book = FarBook(options)
        await asyncio.gather(*(client(book, 60, 0.1 * i) for i in range(4)))

    begun = time.monotonic()
    asyncio.run(all_of_them())
    assert sum(s.total for s in sites.values()) == 240
    assert all(s.peak <= per_host for s in sites.values())
    assert max(s.peak for s in sites.values()) == per_host
    assert time.monotonic() - begun < 30


def test_a_cancelled_wait_gives_its_turn_on():
    async def scene():
        turns = HostTurns(HostBook(FetchOptions(per_host=1)), FetchOptions(per_host=1))
        turns.start()
        desk = await turns.take(HOST)
        waiting = [asyncio.create_task(turns.take(HOST)) for _ in range(3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        turns.give(desk, "answered", 1.0)
        waiting[1].cancel()  # it has just been given the turn
        got = await asyncio.wait_for(waiting[2], 2)
        assert got.busy == 1
        await turns.close()

    asyncio.run(scene())


def test_crawl_delay_spaces_requests():
    async def scene():
        turns = HostTurns(HostBook(FetchOptions()), FetchOptions())
        turns.start()
        turns.give(await turns.take(HOST), "answered", 1.0)
        turns.set_delay(HOST, 0.1)
        at = []
        for _ in range(4):
            desk = await turns.take(HOST)
            at.append(time.monotonic())
            turns.give(desk, "answered", 1.0)
        assert all(b - a >= 0.099 for a, b in itertools.pairwise(at))
        await turns.close()

    asyncio.run(scene())


def test_rows_of_a_host_set_aside_do_not_wait():
    async def scene():
        options = FetchOptions(per_host=1, retry_after_max_s=5)
        turns = HostTurns(HostBook(options), options)
        turns.start()
        desk = await turns.take(HOST)
        waiting = asyncio.create_task(turns.take(HOST))
        await asyncio.sleep(0.01)
        turns.give(desk, "throttled", 1.0, 6.0)
        with pytest.raises(AsideError, match="6 s"):
            await asyncio.wait_for(waiting, 2)
        await turns.close()

    asyncio.run(scene())


def test_hosts_no_longer_used_are_forgotten(monkeypatch):
    monkeypatch.setattr(hosts, "TURN_S", 0.05)
    monkeypatch.setattr(host_turns, "IDLE_S", 0.2)
    monkeypatch.setattr(host_turns, "BEAT_S", 0.02)

    async def scene():
        book, site = HostBook(FetchOptions()), Site()
        turns = HostTurns(book, FetchOptions())
        turns.start()
        for start in range(0, 300, 100):
            await asyncio.gather(*(site.visit(turns, f"h{start + i}.example") for i in range(100)))
        while turns._desks or book._hosts:
            await asyncio.sleep(0.02)
        await turns.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


@pytest.mark.ray
def test_one_limit_for_all_actors_also_when_actors_and_the_keeper_die(tmp_path, ray_local):
    import json

    import ray

    from sandbox.origin import Origin

    paths = {f"/{i}.jpg": {"status": 404, "delay_s": 0.02} for i in range(400)}
    (tmp_path / "origin.json").write_text(json.dumps(paths))
    limits = FetchOptions.from_config({"allow_hosts": ["127.0.0.1"], "per_host": 3})

    @ray.remote(num_cpus=0)
    class Actor:
        def __init__(self, keeper):
            from pipelines.fetch import Fetcher

            self.fetcher = Fetcher(limits, keeper)

        def fetch(self, urls):
            rows = [
                {"photo_id": u, "url": u, "fetch_url": u, "license": "", "author": "", "page_url": ""} for u in urls
            ]
            return [r["status"] for r in self.fetcher.fetch(rows)]

    with Origin(tmp_path) as origin:
        urls = [origin.url + p for p in paths]
        keeper = hosts.keeper_actor(limits)
        actors = [Actor.remote(keeper) for _ in range(3)]
        work = [a.fetch.remote(urls[i::4]) for i, a in enumerate(actors)]
        while sum(origin.requests.values()) < 60:
            time.sleep(0.05)
        ray.kill(actors[0])
        ray.kill(keeper, no_restart=False)
        late = Actor.remote(keeper)
        found = ray.get([*work[1:], late.fetch.remote(urls[3::4])], timeout=90)
        assert [len(f) for f in found] == [100] * 3
        assert {s for f in found for s in f} == {"gone"}
        assert origin.peak <= 3
        for actor in (keeper, late, *actors[1:]):
            ray.kill(actor)
