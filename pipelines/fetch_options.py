"""`conf/fetch`, checked: limits of the fetcher and how a crawl is cut into blocks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tables import InputError


@dataclass(frozen=True)
class FetchOptions:
    """Times in seconds, sizes in bytes. The keys are explained in `conf/fetch/default.yaml`."""

    mode: str = "keep"
    resize_px: int = 256
    per_host: int = 8
    window: int = 64
    pending: int = 4096
    attempts: int = 3
    connect_s: float = 5.0
    read_s: float = 10.0
    total_s: float = 30.0
    min_bytes_per_s: float = 4096.0
    grace_s: float = 2.0
    max_bytes: int = 33554432
    max_pixels: int = 64000000
    max_ratio: float = 50.0
    max_redirects: int = 5
    backoff_s: float = 0.5
    retry_after_max_s: float = 60.0
    host_patience_s: float = 600.0
    robots: bool = True
    opt_out: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    placeholders: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    allow_files: tuple[str, ...] = ()
    contact: str | None = None
    user_agent: str | None = None
    block: int = 64

    @classmethod
    def from_config(cls, fetch: Mapping[str, Any]) -> FetchOptions:
        """Check the section `fetch` of the config; keys left out take their default.

        Raises:
            InputError: an unknown key, or a value of the wrong kind or size.
        """
        names = {f.name: f for f in fields(cls)}
        given = {}
        for name, value in dict(fetch).items():
            if name not in names:
                raise InputError(f"fetch.{name}", value, f"no such key; known are {', '.join(names)}")
            given[name] = _checked(name, value, names[name].default)
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
        """What decides which photos are ok and what is kept of them; speed and retries do not."""
        keys = ["mode", "max_bytes", "max_pixels", "max_ratio", "robots", "opt_out"]
        return {k: getattr(self, k) for k in keys + ["resize_px"] * (self.mode == "resize")}


_MODES = ("keep", "raw", "resize")
_LEAST = {
    "connect_s": 0.001, "read_s": 0.001, "total_s": 0.001, "min_bytes_per_s": 0, "grace_s": 0, "max_ratio": 1,
    "max_redirects": 0, "backoff_s": 0, "retry_after_max_s": 0, "host_patience_s": 0,
}  # fmt: skip
_MOST = {"resize_px": 16384, "pending": 100_000, "max_redirects": 50, "attempts": 100}


def _checked(name: str, value: Any, default: Any) -> Any:
    """The value as the option holds it."""
    problem = ""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            problem = "true or false"
    elif isinstance(default, int | float):
        kinds: Any = int if isinstance(default, int) else (int, float)
        least, most = _LEAST.get(name, 1), _MOST.get(name, 1e15)
        if isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most:
            return type(default)(value)
        whole = "whole " if kinds is int else ""
        problem = f"a {whole}number of at least {least}" + (f" and at most {most}" if name in _MOST else "")
    elif isinstance(default, tuple):
        return _texts(name, value)
    elif name == "mode":
        if value not in _MODES:
            problem = f"one of {', '.join(_MODES)}"
    elif value is not None and not (isinstance(value, str) and value.isascii() and value.isprintable()):
        problem = "ASCII text on one line, for a header"
    if problem:
        raise InputError(f"fetch.{name}", value, problem)
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(given, list | tuple) or not all(isinstance(v, str) and v and v.isprintable() for v in given):
        raise InputError(f"fetch.{name}", value, "a list of texts, each on one line")
    if name == "allow_hosts":
        return tuple(v.lower().strip("[]").rstrip(".") for v in given)
    if name == "allow_files":
        return tuple(os.path.abspath(v) for v in given)  # actors may have another working directory
    if name == "placeholders" and not all(re.fullmatch("[0-9a-fA-F]{64}", v) for v in given):
        raise InputError("fetch.placeholders", value, "a list of sha256 digests, 64 hex digits each")
    return tuple(sorted({v.lower() for v in given}))
