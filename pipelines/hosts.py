"""Politeness: one book of hosts for a whole crawl says how many requests each fetcher may have at each host, and when.

Every fetcher is a client of the book. A client leases a share of a host's slots and then asks the host without asking
the book; it reports what it saw, and changes reach it by a long poll. The shares of all clients never add up to more
than `per_host`, also while they move: a slot goes to another client only after the one that had it said that it is
free. The book is plain asyncio; `keeper_actor` puts it into a Ray actor for a cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.fetch_options import FetchOptions

LEASE_S = 15.0  # a client not heard of for so long has lost its shares; it stops using them at half of that
POLL_S = 2.0  # a long poll without news ends after this: the heartbeat
TURN_S = 2.0  # where there are fewer slots than clients, the next clients get them after this
BREAKER = 10  # failures in a row that open a host's circuit
CUT_S = 1.0  # one burst of refusals halves the limit once
SLOW_MS = 1000.0  # answers that take less are never a reason to ask less
FORGET_S = 600.0


class Report(NamedTuple):
    """What a client saw at a host since its last report, and what it holds there."""

    host: str
    slots: int  # its share as it knows it
    busy: int  # requests in flight
    want: int  # slots it could use; 0 gives the lease back
    answered: int = 0
    ms: float = 0.0  # until the header, summed over `answered`
    failed: int = 0  # no connection, or a 5xx
    silent: int = 0  # connected, and no answer within its time
    throttled: int = 0  # 429 and 503
    retry_after: float = -1.0  # the longest wait that the host asked for, seconds; negative: it said nothing
    delay: float = 0.0  # Crawl-delay of its robots.txt, seconds


class Grant(NamedTuple):
    """What a client may do at a host from now on."""

    host: str
    slots: int
    wait: float  # seconds before the next request
    delay: float  # seconds between requests
    aside: tuple[str, str] | None  # status and reason of rows that are not to be asked for in this run


@dataclass(slots=True)
class _Lease:
    share: int = 0
    held: int = 0  # the most that the client may be using, given what it is known to have heard
    want: int = 0
    sent: float = 0.0  # version of the reply that told it of its share; infinite while none did


@dataclass(slots=True)
class _Client:
    seen_at: float
    version: int
    reset: bool = False
    news: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Host:
    name: str
    limit: float
    heard: float
    leases: dict[str, _Lease] = field(default_factory=dict)
    paused: float = 0.0
    answered: float = float("-inf")  # when it last was
    cut: float = 0.0
    base_ms: float | None = None
    run: int = 0  # failures since the last answer
    trips: int = 0  # pauses since the last answer
    failing_since: float | None = None
    delay: float = 0.0
    aside: tuple[str, str] | None = None


class HostBook:
    """Limits, pauses and leases of all hosts. Methods are coroutines only so that a Ray actor can stand in for it."""

    def __init__(self, options: FetchOptions, clock: Callable[[], float] = time.monotonic, grace_s: float = 0.0):
        """`grace_s`: give nothing for so long, because clients of a book that died may still be at work."""
        self.options, self._clock = options, clock
        self._hosts: dict[str, _Host] = {}
        self._clients: dict[str, _Client] = {}
        self._open_at = clock() + grace_s
        self._next_tick = 0.0
        # Versions grow over restarts of the book, so that what a client heard from a dead one confirms nothing.
        self._version = time.time_ns() // 1000

    async def tell(self, client: str, seen: int, reports: Sequence[Report]) -> None:
        """Take a client's reports. `seen` is the version of the last reply to `watch` that it has applied."""
        now, me = self._clock(), self._client(client, seen)
        for r in reports:
            host = self._hosts.get(r.host) or _Host(r.host, self.options.per_host, now)
            self._hosts[r.host] = host
            lease = host.leases.get(client)
            if lease is None:
                lease = host.leases[client] = _Lease(held=r.slots, sent=float("inf"))
                me.news.add(r.host)  # it may be aside, or paused
            heard = seen >= lease.sent and not me.reset
            lease.held = max(lease.share, r.busy, 0 if heard else max(lease.held, r.slots))
            lease.want = r.want
            self._learn(host, r, now)
            self._divide(host, now)
            if not (lease.want or lease.share or lease.held) and r.host not in me.news:
                del host.leases[client]
        if me.news:
            me.changed.set()
        self._tick(now)

    async def watch(self, client: str, seen: int) -> tuple[int, bool, list[Grant]]:
        """Wait for news. Returns its version, whether the client must first forget all it has, and changed grants."""
        me = self._client(client, seen)
        try:
            async with asyncio.timeout(POLL_S):
                await me.changed.wait()
        except TimeoutError:
            self._tick(self._clock())
        now = self._clock()
        me.changed.clear()
        self._version += 1
        me.version, reset, me.reset = self._version, me.reset, False
        grants = []
        for name in me.news:
            if (host := self._hosts.get(name)) and (lease := host.leases.get(client)):
                lease.sent = me.version
                wait = max(0.0, host.paused - now)
                grants.append(Grant(name, lease.share, wait, host.delay, host.aside))
        me.news.clear()
        return me.version, reset, grants

    async def leave(self, client: str) -> None:
        """The client has ended: its shares are free."""
        self._clients.pop(client, None)
        for host in self._hosts.values():
            if host.leases.pop(client, None):
                self._divide(host, self._clock())

    def _client(self, name: str, seen: int) -> _Client:
        me = self._clients.get(name)
        if me is None:
            me = self._clients[name] = _Client(self._clock(), 0, reset=seen > 0)
            if seen:
                me.changed.set()
        me.seen_at = self._clock()
        return me

    def _tick(self, now: float) -> None:
        """Drop clients that fell silent and hosts nobody uses; pass scarce slots on."""
        if now < self._next_tick:
            return
        self._next_tick = now + TURN_S
        silent = [c for c, me in self._clients.items() if now - me.seen_at > LEASE_S]
        for client in silent:
            del self._clients[client]
        for host in list(self._hosts.values()):
            for client in silent:
                host.leases.pop(client, None)
            if host.leases:
                self._divide(host, now)
            elif not host.aside and (now - host.heard > FORGET_S or self._is_fresh(host, now)):
                del self._hosts[host.name]

    def _is_fresh(self, host: _Host, now: float) -> bool:
        return host.limit >= self.options.per_host and not (host.run or host.delay) and now >= host.paused

    def _learn(self, host: _Host, r: Report, now: float) -> None:
        """Additive increase, multiplicative decrease; pauses; the circuit breaker."""
        o, was = self.options, (host.paused, host.delay, host.aside)
        host.heard = now
        host.delay = max(host.delay, min(r.delay, o.retry_after_max_s))
        bad = r.failed + r.throttled
        if r.answered:
            host.run, host.trips, host.failing_since, host.answered = 0, 0, None, now
            host.limit = min(o.per_host, host.limit + r.answered / host.limit)
            mean = r.ms / r.answered
            host.base_ms = min(mean, (host.base_ms or mean) * 1.002)  # a host may become slower for good
            if mean > max(SLOW_MS, 4 * host.base_ms):  # asked less, but half as much in any case: it does answer
                self._cut(host, 0.75, now, min(host.limit, o.per_host / 2))
        elif bad or r.silent:
            # Single URLs may hang at a host that is well; only one that answers nothing is down.
            bad += r.silent if now - host.answered > 2 * o.total_s else 0
            host.run += bad
            host.failing_since = now if host.failing_since is None else host.failing_since
        if r.throttled:
            self._cut(host, 0.5, now, 1.0)
        status = "throttled" if r.throttled else "server_error"
        if r.retry_after > o.retry_after_max_s:
            why = f"the host asks for a wait of {r.retry_after:.0f} s, longer than fetch.retry_after_max_s"
            host.aside = host.aside or (status, why)
        elif r.retry_after > 0:
            host.paused = max(host.paused, now + r.retry_after)
        broken = host.run >= BREAKER
        if (broken or (r.throttled and r.retry_after <= 0)) and bad and now >= host.paused:
            host.trips += 1
            host.paused = now + backoff(o.backoff_s, host.trips, host.name, 60.0)
        if broken:
            host.limit = 1.0  # after the pause one request goes ahead and tells whether the host is back
        if host.failing_since is not None and now - host.failing_since >= o.host_patience_s:
            why = f"every request to the host failed for {now - host.failing_since:.0f} s (fetch.host_patience_s)"
            host.aside = host.aside or (status, why)
        if was != (host.paused, host.delay, host.aside):
            self._announce(host, host.leases)

    def _cut(self, host: _Host, factor: float, now: float, least: float) -> None:
        if now >= host.cut:
            host.limit, host.cut = max(1.0, least, host.limit * factor), now + CUT_S

    def _divide(self, host: _Host, now: float) -> None:
        """Even shares for those who can use them, what is left over for whoever may need it next."""
        limit = 1 if host.delay else int(host.limit)
        if now < self._open_at:
            limit = 0
        names = sorted(c for c, lease in host.leases.items() if lease.want)
        if len(names) > 1:  # whose turn it is to get the odd slot
            at = int(now / TURN_S) % len(names)
            names = names[at:] + names[:at]
        target = dict.fromkeys(host.leases, 0)
        for wanting in (True, False):
            while limit > 0:
                open_ = [c for c in names if not wanting or target[c] < host.leases[c].want]
                if not open_:
                    break
                for c in open_[:limit]:
                    target[c] += 1
                limit -= min(limit, len(open_))
        # Shares shrink at once, and grow only by what nobody may still be using.
        for c, lease in host.leases.items():
            if target[c] < lease.share:
                self._share(host, c, target[c])
        free = self.options.per_host if not host.delay else 1
        free -= sum(lease.held for lease in host.leases.values())
        for c in names:
            lease = host.leases[c]
            share = min(target[c], lease.held + max(0, free))
            if share > lease.share:
                free -= max(0, share - lease.held)
                lease.held = max(lease.held, share)
                self._share(host, c, share)

    def _share(self, host: _Host, client: str, share: int) -> None:
        host.leases[client].share = share
        self._announce(host, (client,))

    def _announce(self, host: _Host, clients: Any) -> None:
        for client in clients:
            host.leases[client].sent = float("inf")
            if me := self._clients.get(client):
                me.news.add(host.name)
                me.changed.set()


def backoff(base_s: float, attempt: int, key: str, most_s: float = 30.0) -> float:
    """Seconds before attempt + 1: exponential, times 0.5-1.5 from the key, so that a rerun waits the same."""
    jitter = int.from_bytes(hashlib.sha256(f"{key}|{attempt}".encode()).digest()[:4], "big") / 2**32
    return min(base_s * 2 ** min(attempt - 1, 30), most_s) * (0.5 + jitter)


def keeper_actor(options: FetchOptions) -> Any:
    """A Ray actor that keeps the book for every fetcher of the Ray in use: pass the handle to each `Fetcher`."""
    import ray

    class Keeper(HostBook):
        def __init__(self) -> None:
            again = ray.get_runtime_context().was_current_actor_reconstructed
            super().__init__(options, grace_s=LEASE_S if again else 0.0)

    return ray.remote(num_cpus=0, max_restarts=-1)(Keeper).remote()
