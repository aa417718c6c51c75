"""Files of a lake, on a local disk or in an object store: one filesystem a process, and writes that are whole or not.

What S3 needs to be told is told by the variables that every S3 tool reads: `AWS_ENDPOINT_URL` (a server other than
Amazon's), `AWS_REGION`, and credentials (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, a profile, or the machine's
role). So a URI is a plain path, which a file's name may be put behind, and no secret is written anywhere.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from tables.errors import InputError
from tables.ids import fingerprint

# What pyarrow.fs.FileSystem.from_uri opens.
SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
# Seconds to wait for an object store, and times to ask: the defaults of AWS' client (1 s, 3 s, 3 times) give up on a
# server that is merely busy.
CONNECT_S, ANSWER_S, ATTEMPTS = 10, 60, 5


def locate(path: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem and name of a local path or URI; the filesystem of a store is opened once in a process.

    Raises:
        OSError, pa.ArrowException: there is no such filesystem, or it cannot be reached.
    """
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.abspath(path)
    parts = urlsplit(path)
    if parts.scheme != "s3" or parts.query:
        return pafs.FileSystem.from_uri(path)
    return _s3(parts.netloc, _endpoint(), _region()), f"{parts.netloc}{unquote(parts.path)}".rstrip("/")


def read_file(argument: str, path: str, missing: str = "no such file") -> bytes:
    """Content of the file at a local path or URI.

    Raises:
        InputError: naming `argument`: there is no such file (`missing` says so), or it cannot be read.
    """
    try:
        filesystem, name = locate(path)
        with filesystem.open_input_stream(name, compression=None) as f:
            return f.read()
    except FileNotFoundError:
        raise InputError(argument, path, missing) from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(argument, path, f"cannot be read ({str(error).splitlines()[0]})") from error


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


@lru_cache(maxsize=16)
def _s3(bucket: str, endpoint: str | None, region: str | None) -> pafs.S3FileSystem:
    if region is None and endpoint is None:
        region = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        endpoint_override=endpoint, region=region, connect_timeout=CONNECT_S, request_timeout=ANSWER_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # what fits into one part is one put, not three requests
    )  # fmt: skip


def write_atomically(path: str, data: bytes | pa.Buffer) -> None:
    """Write a local file whole or not at all; its folder is made if need be."""
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    scratch = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(scratch, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, path)
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)


class Files:
    """A root folder on any pyarrow filesystem, with atomic writes.

    Attributes:
        uri: an absolute path where the root is a local folder, else a URI; without a slash at its end.
    """

    def __init__(self, uri: str) -> None:
        if uri.startswith("file://"):
            uri = unquote(urlsplit(uri).path)
        scheme, remote, rest = uri.partition("://")
        self.uri = f"{scheme}://{rest.rstrip('/')}" if remote else os.path.abspath(uri)

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri

    def fault(self) -> str | None:
        """What is wrong with the URI itself, for a person; nothing is opened."""
        scheme, _, rest = self.uri.partition("://")
        if self.is_local:
            there = os.path.exists(self.uri) and not os.path.isdir(self.uri)
            return "is a file: name a folder" if there else None
        if scheme not in SCHEMES:
            return f"no filesystem of that name: use a folder or one of {', '.join(SCHEMES)}"
        if not rest.strip("/") or "#" in rest:
            return "name a bucket, and a folder in it without #"
        if "?" in rest or (scheme == "s3" and "@" in rest):
            return "name bucket and folder alone; the rest goes into AWS_ENDPOINT_URL, AWS_REGION and AWS credentials"
        return None

    def unreachable(self) -> str | None:
        """Why the bucket cannot be used: no server, no credentials, no bucket. None: it can, or the lake is local."""
        if not self.uri.startswith("s3://"):
            return None
        try:
            bucket = self._fs_root[1].partition("/")[0]
            there = self.fs.get_file_info(bucket).type != pafs.FileType.NotFound
        except (OSError, pa.ArrowException) as error:
            return f"cannot be reached ({str(error).splitlines()[0]})"
        return None if there else f"there is no bucket {bucket}: make it first"

    @cached_property
    def _fs_root(self) -> tuple[pafs.FileSystem, str]:
        return locate(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    @property
    def fs(self) -> pafs.FileSystem:
        return self._fs_root[0]

    def full(self, path: str) -> str:
        """`path` below the root, as the filesystem names it."""
        return f"{self._fs_root[1]}/{path}" if path else self._fs_root[1]

    def local(self, path: str) -> str:
        """The folder of this machine for `path`, for what an object store cannot hold: files that grow, locks.

        In the lake itself where that is a folder, else below the machine's temporary one (`TMPDIR`), apart from those
        of other lakes and other people.
        """
        if self.is_local:
            return os.path.join(self.uri, path)
        lake = fingerprint({"uri": self.uri, "endpoint": _endpoint()})
        return os.path.join(tempfile.gettempdir(), f"wildshape-{os.getuid()}", lake, path)

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Write a whole file or nothing: rename on a local disk, one put on an object store.

        What is larger than a part of S3's goes up in parts, which become a file when the last one is there.
        """
        target = self.full(path)
        if not self.is_local:
            with self.fs.open_output_stream(target) as out:
                out.write(data)
            return
        write_atomically(target, data)

    def read(self, path: str) -> bytes | None:
        """The file's bytes, or None if there is no such file."""
        try:
            with self.fs.open_input_stream(self.full(path)) as f:
                return f.read()
        except (FileNotFoundError, NotADirectoryError):  # the latter: a stray file where a folder is expected
            return None

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, (json.dumps(value, indent=1, default=str) + "\n").encode())

    def read_json(self, path: str) -> Any:
        """The parsed file, or None if there is no such file."""
        data = self.read(path)
        return None if data is None else json.loads(data)

    def exists(self, path: str) -> bool:
        return self.fs.get_file_info(self.full(path)).type != pafs.FileType.NotFound

    def names(self, path: str, suffix: str = "") -> list[str]:
        """Sorted base names in a folder, without hidden ones (`.nfs...`, `.DS_Store`); empty if it is not there."""
        infos = self.fs.get_file_info(pafs.FileSelector(self.full(path), allow_not_found=True))
        names = (i.base_name for i in infos)
        return sorted(n for n in names if n.endswith(suffix) and not n.endswith(".tmp") and not n.startswith("."))
