"""Any text in, no crash: URLs, headers, robots.txt, bytes from the wire."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.addresses import BadUrlError, ForbiddenError, check_url, is_public, literal_address
from pipelines.answer import Answer, parse_retry_after, read_file
from pipelines.fetch import Fetcher
from pipelines.fetch_options import FetchOptions
from pipelines.robots import agent_token, opted_out, parse_robots
from tables import InputError

STATUSES = {
    "ok", "gone", "forbidden", "throttled", "server_error", "timeout", "truncated", "not_image", "placeholder",
    "too_big", "bomb", "opt_out", "robots", "bad_url",
}  # fmt: skip
# Text around what URLs are made of, so that the parsers get past the first character.
PIECES = st.sampled_from(
    ["http://", "https://", "file://", "ftp:", "//", "/", "\\", "@", ":", "[", "]", "::1", "%", "%2f", "%zz", "?", "#",
     "127.0.0.1", "0x7f.1", "169.254.169.254", "localhost", "bücher", "xn--", "..", "a", "ä", "\u202e", "\0", "\n",
     " ", "99999", "\ud800"]
)  # fmt: skip
URLS = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=12).map("".join))


@given(URLS, st.booleans())
def test_any_url_is_checked_or_refused(url, redirected):
    try:
        parts, host = check_url(url, {"allowed.example"}, redirected)
    except (BadUrlError, ForbiddenError):
        return
    assert parts.scheme in ("http", "https")
    assert host
    assert (address := literal_address(host)) is None or is_public(address)


@given(st.text())
def test_any_address(text):
    assert is_public(text) in (True, False)


@given(
    st.one_of(st.text(), st.integers().map(str), st.datetimes().map(lambda d: d.strftime("%a, %d %b %Y %H:%M:%S GMT")))
)
def test_any_retry_after(text):
    found = parse_retry_after(text)
    assert found is None or found >= 0


LINES = st.sampled_from(
    ["User-agent: *", "User-agent: wildshape", "Disallow: /", "Disallow: /*a$", "Allow: /b", "Crawl-delay: 2",
     "Crawl-delay: inf", "Crawl-delay: x", "Sitemap: /", "disallow", ":", "Request-rate: 1/0", "Visit-time: 9-8"]
)  # fmt: skip


@given(
    st.one_of(
        st.binary(),
        st.lists(st.one_of(LINES, st.text(max_size=20)), max_size=20).map(
            lambda x: "\n".join(x).encode("utf-8", "replace")
        ),
    ),
    st.text(),
)
def test_any_robots_txt(body, path):
    rules = parse_robots(body)
    if rules:
        assert rules.can_fetch("http://h/" + path, "wildshape") in (True, False)
        assert (rules.crawl_delay("wildshape") or 0.0) is not None


@given(st.lists(st.text()), st.text())
def test_any_opt_out_header_and_agent(headers, agent):
    assert opted_out(headers, ("noai",), "wildshape") in ("", "noai")
    assert agent_token(agent)


@given(URLS)
def test_any_file_url(url):
    answer = Answer(final_url="file://" + url)
    try:
        read_file(answer, ["/no/such/folder"], 100)
    except (ForbiddenError, ValueError):
        return
    assert answer.status == "gone"


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.text()),
)


@given(st.dictionaries(st.one_of(st.sampled_from(sorted(FetchOptions.__dataclass_fields__)), st.text()), JUNK))
def test_any_config_is_options_or_an_input_error(config):
    try:
        options = FetchOptions.from_config(config)
    except InputError:
        return
    assert hash(options) is not None
    assert FetchOptions(**{f: getattr(options, f) for f in FetchOptions.__dataclass_fields__}) == options


@contextmanager
def sink() -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers every request with `wire[0]` and closes."""
    wire, ready, port = [b""], threading.Event(), [0]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(wire[0])
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def serve() -> None:
        nonlocal loop, stop
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port[0] = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()

    loop = stop = None
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(10)
    try:
        yield port[0], wire
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@pytest.fixture(scope="module")
def line():
    limits = {
        "allow_hosts": ["127.0.0.1"],
        "attempts": 1,
        "robots": False,
        "read_s": 2,
        "host_patience_s": 1e9,
        "backoff_s": 0,
    }
    with sink() as (port, wire), Fetcher(FetchOptions.from_config(limits)) as fetcher:
        yield fetcher, port, wire


HEADERS = st.lists(
    st.one_of(
        st.sampled_from(
            [b"Content-Length: 5", b"Content-Length: -1", b"Transfer-Encoding: chunked", b"Location: /",
             b"Location: //x:y", b"Location: \xff", b"Retry-After: 0", b"X-Robots-Tag: noai",
             b"Content-Encoding: gzip", b"Connection: close"]
        ),
        st.binary(max_size=12),
    ),
    max_size=4,
)  # fmt: skip
WIRE = st.one_of(
    st.binary(max_size=200),
    st.tuples(st.integers(100, 599), HEADERS, st.binary(max_size=60)).map(
        lambda t: b"HTTP/1.1 %d X\r\n" % t[0] + b"".join(h + b"\r\n" for h in t[1]) + b"\r\n" + t[2]
    ),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=WIRE, path=URLS)
def test_any_answer_is_one_row(line, data, path):
    fetcher, port, wire = line
    wire[0] = data
    url = f"http://127.0.0.1:{port}/{path}"
    (found,) = fetcher.fetch(
        [{"photo_id": "1", "url": url, "fetch_url": url, "license": "", "author": "", "page_url": ""}]
    )
    assert found["status"] in STATUSES
    assert not (found["error"] or "").startswith("unexpected")
