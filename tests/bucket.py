"""A bucket of an S3-compatible server on loopback, for lakes in an object store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

NAME = "bucket"


@dataclass
class Bucket:
    """What a test sees and changes of the server.

    Attributes:
        requests: `METHOD /path?query` of each request so far.
        busy: so many of the next requests are answered with 503.
    """

    url: str
    requests: list[str] = field(default_factory=list)
    busy: int = 0

    def answer(self, app: Any, environ: dict[str, Any], start: Any) -> Any:
        query = environ["QUERY_STRING"]
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{'?' * bool(query)}{query}")
        if self.busy:
            self.busy -= 1
            start("503 Slow Down", [("Content-Length", "0"), ("Connection", "close")])
            return []
        return app(environ, start)


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """The bucket keeps its own record."""


@contextmanager
def open_bucket() -> Iterator[Bucket]:
    """Serve `s3://bucket`, empty; the environment says where it is, to this process and to those that it starts."""
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server(
        "127.0.0.1", 0, lambda e, s: bucket.answer(app, e, s), threaded=True, request_handler=_Quiet
    )  # fmt: skip
    bucket = Bucket(f"http://127.0.0.1:{server.port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        patch.setenv("AWS_ENDPOINT_URL", bucket.url)
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        store = boto3.client("s3")
        store.create_bucket(Bucket=NAME)
        yield bucket
        for page in store.get_paginator("list_objects_v2").paginate(Bucket=NAME):  # moto's state is the process's
            for thing in page.get("Contents", []):
                store.delete_object(Bucket=NAME, Key=thing["Key"])
        store.delete_bucket(Bucket=NAME)
    server.shutdown()
    thread.join()
    server.server_close()
