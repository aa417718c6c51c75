"""Where a crawl may go: public addresses, and hosts that the config names.

URLs and redirects come from strangers. Without this, a row or a redirect could make the crawler read a cloud's
metadata service or a machine of the local network and store the answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Collection
from functools import lru_cache, partial

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

# URLs that need no quoting go to the host byte for byte.
_PLAIN = re.compile(r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?/[A-Za-z0-9/._~?&=+,:;@%-]*")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class ForbiddenError(Exception):
    """The URL leads to a scheme or an address that the crawl may not touch."""


class BadUrlError(Exception):
    """The text is no URL that could be asked for."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, whatever it is wrapped in (IPv4 inside IPv6)."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast


@lru_cache(4096)
def literal_address(host: str) -> str | None:
    """The IP address that a host spells out, also as `2130706433`, `0x7f.1` or `0177.0.0.1`; None for a name."""
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if host[:1].isdigit() else None
    except OSError:
        return None


def check_url(url: str, allow_hosts: Collection[str], redirected: bool = False) -> tuple[URL, str]:
    """The URL as it is asked for, and its host in lower case, if the crawl may ask it.

    Args:
        allow_hosts: hosts that may lie at private addresses.
        redirected: a scheme other than http(s) is a bad URL in a row, and forbidden in a redirect.

    Raises:
        BadUrlError: not a URL with a host.
        ForbiddenError: the address is private, loopback, link-local or otherwise not public.
    """
    try:
        # The parser that also makes the request: two parsers that disagree on the host would be a hole.
        parts = URL(url, encoded=bool(_PLAIN.fullmatch(url)))
        host, _ = (parts.host or "").lower().rstrip("."), parts.port
    except ValueError as error:
        raise BadUrlError(str(error)) from error
    if parts.scheme not in ("http", "https"):
        problem = f"scheme {parts.scheme[:20]!r} is not http or https"
        raise ForbiddenError(problem) if redirected else BadUrlError(problem)
    if not host:
        raise BadUrlError("no host")
    address = literal_address(host)
    if address and host not in allow_hosts and not is_public(address):
        raise ForbiddenError(f"{address} is not a public address; fetch.allow_hosts can allow {host}")
    return parts, host


class PublicResolver(AbstractResolver):
    """DNS that refuses names of private addresses, so that the address checked is the address connected to.

    Look-ups run in the loop's default executor: uvloop's own four threads would all soon wait for dead names.
    """

    def __init__(self, allow_hosts: Collection[str]) -> None:
        self.allow_hosts = allow_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        look_up = partial(
            socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(None, look_up)
        allowed = host.lower().rstrip(".") in self.allow_hosts
        results: list[ResolveResult] = []
        for kind, _, protocol, _, (address, *_) in found:
            # One private answer among public ones is how DNS rebinding looks: the whole name is refused.
            if not allowed and not is_public(str(address)):
                raise ForbiddenError(f"{host} resolves to {address}, not a public address")
            results.append(
                ResolveResult(
                    hostname=host, host=str(address), port=port, family=kind, proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )  # fmt: skip
        return results

    async def close(self) -> None:
        pass
