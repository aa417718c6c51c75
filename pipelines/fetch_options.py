"""`conf/fetch`, checked: limits of the fetcher and how a crawl is cut into blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tables import InputError


@dataclass(frozen=True)
class FetchOptions:
    """Times in seconds, sizes in bytes. The keys are explained in `conf/fetch/default.yaml`."""

    per_host: int = 8
    window: int = 64
    attempts: int = 3
    connect_s: float = 5
    read_s: float = 10
    total_s: float = 30
    min_bytes_per_s: int = 4096
    grace_s: float = 2
    max_bytes: int = 33554432
    max_pixels: int = 64000000
    max_redirects: int = 5
    backoff_s: float = 0.5
    retry_after_max_s: float = 60
    allow_hosts: tuple[str, ...] = ()
    contact: str | None = None
    user_agent: str | None = None
    block: int = 64
    retry_failed: bool = False

    @classmethod
    def from_config(cls, fetch: Mapping[str, Any]) -> FetchOptions:
        """Check the section `fetch` of the config; keys left out take their default.

        Raises:
            InputError: an unknown key, or a number that is too small.
        """
        given = dict(fetch)
        names = {f.name: f for f in fields(cls)}
        for name, value in given.items():
            if name not in names:
                raise InputError(f"fetch.{name}", value, f"no such key; known are {', '.join(names)}")
            least = _AT_LEAST.get(name)
            if least is not None and (not isinstance(value, int | float) or not value >= least):
                raise InputError(f"fetch.{name}", value, f"a number of at least {least}")
        hosts = given.get("allow_hosts") or ()
        hosts = [hosts] if isinstance(hosts, str) else hosts
        given["allow_hosts"] = tuple(str(h).lower().strip("[]").rstrip(".") for h in hosts)
        return cls(**given)

    @property
    def agent(self) -> str:
        """The User-Agent: who we are and where to complain."""
        try:
            own = f"wildshape/{version('wildshape')}"
        except PackageNotFoundError:  # run from a checkout
            own = "wildshape"
        return self.user_agent or (f"{own} (+{self.contact})" if self.contact else own)

    def identity(self) -> dict[str, Any]:
        """What decides which photos are ok; speed and politeness do not."""
        return {"max_bytes": self.max_bytes, "max_pixels": self.max_pixels}


_AT_LEAST = {
    "per_host": 1, "window": 1, "attempts": 1, "connect_s": 0.001, "read_s": 0.001, "total_s": 0.001,
    "min_bytes_per_s": 0, "grace_s": 0, "max_bytes": 1, "max_pixels": 1, "max_redirects": 0, "backoff_s": 0,
    "retry_after_max_s": 0, "block": 1,
}  # fmt: skip
