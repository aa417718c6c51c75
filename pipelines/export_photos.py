"""A crawl's photos for other tools: Parquet or WebDataset shards, and the names of those who made the photos."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from pipelines.attribution import Attribution, licence_of
from tables import Dataset, InputError

if TYPE_CHECKING:
    import pyarrow as pa

FACTS = ("photo_id", "url", "page_url", "author", "license", "width", "height", "sha256")
_MAGIC = ((b"\x89PNG", "png"), (b"GIF8", "gif"), (b"RIFF", "webp"))  # what the crawl calls ok and is no JPEG
# Most that a photo adds to a tar beside its bytes and JSON (two heads of 512 bytes, two paddings), and the tar's end.
_EACH, _END = 2048, tarfile.RECORDSIZE
_ROW_GROUP = 256
_LONGEST_KEY = 80  # a longer name in a tar would take a head of its own


@dataclass(frozen=True)
class Photo:
    """A photo on its way out: `facts` are the columns FACTS and `license_url`, plain JSON; `data` the file's bytes."""

    facts: dict[str, Any]
    data: bytes

    @cached_property
    def key(self) -> str:
        """File name without ending, the same for the same id and different for different ids: `yfcc_6985418911`."""
        name = quote(self.facts["photo_id"], safe="").replace("_", "%5F").replace(".", "%2E").replace("%3A", "_")
        return name if len(name) <= _LONGEST_KEY else self.facts["sha256"]

    @cached_property
    def json(self) -> bytes:
        return (json.dumps(self.facts, ensure_ascii=False, sort_keys=True) + "\n").encode()

    @property
    def ending(self) -> str:
        return next((end for magic, end in _MAGIC if self.data.startswith(magic)), "jpg")

    @property
    def file(self) -> str:
        """File name: the key, and what the bytes are."""
        return f"{self.key}.{self.ending}"


class Exported(NamedTuple):
    """What an export wrote: `photos`, `shards`, and `unlicensed` photos among them, whose licence nobody stated."""

    photos: int
    shards: int
    unlicensed: int


def export_photos(dataset: Dataset, kind: str, folder: str, shard_mb: int) -> Exported:
    """Write the crawl's ok photos that are no duplicates, and ATTRIBUTION.csv and .md, to a new folder.

    The same photos give the same bytes: shards follow the parts of the crawl, photos within them their ids. The folder
    appears when everything is in it. One shard is held in memory.

    Args:
        kind: `parquet` or `webdataset` (tar files of `<key>.jpg` and `<key>.json`).
        folder: a local path where nothing lies yet, or an empty folder.
        shard_mb: MiB that no shard's file exceeds, except where one photo alone does.

    Raises:
        InputError: the crawl has no ok photo, or the folder cannot be made.
    """
    write, ending = {"parquet": (write_parquet, "parquet"), "webdataset": (write_tar, "tar")}[kind]
    photos = shards = 0
    with new_folder(folder) as scratch, Attribution(scratch, f"Photos of {dataset.category}") as attribution:
        for shard in _shards(ok_photos(dataset), shard_mb * 2**20):
            name = f"photos-{shards:05d}.{ending}"
            write(os.path.join(scratch, name), shard)
            for photo in shard:
                attribution.add(name, photo.key, photo.facts)
            photos, shards = photos + len(shard), shards + 1
            shard.clear()  # before the next one is gathered, or two would be in memory
        if not photos:
            raise InputError("category", dataset.category, f"the crawl {dataset.path} has no photo to export")
    return Exported(photos, shards, attribution.licences["", ""])


def photo_rows(dataset: Dataset, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of ok photos that are no duplicates, a shard of the crawl at a time, sorted by id: memory stays flat.

    A photo's ok row lies in the parts of one shard, whose name their names begin with.
    """
    for _, parts in groupby(dataset.parts(), key=shard_of):
        yield only_ok(dataset.read([*columns, "status", "duplicate_of"], list(parts))).select(list(columns))


def shard_of(part: str) -> str:
    """Name of the crawl's shard that a part belongs to."""
    return part.partition("-")[0]


def only_ok(rows: pa.Table) -> pa.Table:
    """Rows whose status is ok and that are no duplicate of another."""
    import pyarrow.compute as pc

    return rows.filter(pc.and_(pc.equal(rows["status"], "ok"), pc.is_null(rows["duplicate_of"])))


def ok_photos(dataset: Dataset) -> Iterator[Photo]:
    """The photos to export, in order."""
    for rows in photo_rows(dataset, [*FACTS, "bytes"]):
        yield from as_photos(rows)


def as_photos(rows: pa.Table) -> Iterator[Photo]:
    """The rows that have bytes, of a table with the columns FACTS and `bytes`."""
    for facts, data in zip(rows.select(FACTS).to_pylist(), rows["bytes"], strict=True):
        name, url = licence_of(facts["license"])
        if data.is_valid:
            yield Photo({**facts, "license": name, "license_url": url}, data.as_py())


def _shards(photos: Iterator[Photo], limit: int) -> Iterator[list[Photo]]:
    shard: list[Photo] = []
    size = _END
    for photo in photos:
        more = len(photo.data) + len(photo.json) + _EACH
        if shard and size + more > limit:
            yield shard
            shard, size = [], _END
        shard.append(photo)
        size += more
    if shard:
        yield shard


def write_tar(path: str, photos: Sequence[Photo]) -> None:
    """A WebDataset shard: for each photo its file and its JSON under one key, with no trace of when and by whom."""
    with tarfile.open(path, "w") as tar:
        for photo in photos:
            for name, data in ((photo.file, photo.data), (f"{photo.key}.json", photo.json)):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))


def write_parquet(path: str, photos: Sequence[Photo]) -> None:
    """A Parquet shard: a row for each photo, `key`, its facts and its `bytes`, which are stored uncompressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = ["key", "photo_id", "url", "page_url", "author", "license", "license_url", "sha256"]
    pixels = ["width", "height"]
    kinds = [(n, pa.string()) for n in text] + [(n, pa.int32()) for n in pixels] + [("bytes", pa.binary())]
    codecs = dict.fromkeys([*text, *pixels], "zstd") | {"bytes": "none"}
    with pq.ParquetWriter(path, pa.schema(kinds), compression=codecs, use_dictionary=text) as out:
        for start in range(0, len(photos), _ROW_GROUP):
            rows = [{"key": p.key, **p.facts, "bytes": p.data} for p in photos[start : start + _ROW_GROUP]]
            out.write_table(pa.Table.from_pylist(rows, out.schema))


@contextmanager
def new_folder(path: str) -> Iterator[str]:
    """The scratch name of a folder that gets its name when everything is in it; after an error there is nothing."""
    path = os.path.abspath(path)
    scratch = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        try:
            os.makedirs(scratch)
        except OSError as error:
            raise InputError("out", path, f"cannot be written: {error.strerror}") from None
        yield scratch
        try:
            os.rename(scratch, path)  # also onto an empty folder
        except OSError as error:
            raise InputError("out", path, f"cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
