"""Datasets that commit: data file under a unique name first, one small manifest last.

Layout: `<lake>/<table>/category=<c>/<fingerprint>/<part>-<unique>.parquet`, beside `_manifests/<part>.json`.
Readers believe manifests only, so a writer may be killed at any instant and run again.
A dataset's name is the fingerprint of what it was made from: another config is another dataset.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tables.arrays import from_disk, to_disk
from tables.errors import InputError
from tables.files import Files
from tables.ids import fingerprint
from tables.schemas import KEYS, TABLES

# Columns that differ from run to run, or are large and already named by another column: not part of the content.
VOLATILE = {"photos": {"url", "final_url", "attempts", "ms", "error", "bytes"}, "instances": {"crop"}}

AT_ONCE = 16  # files read at a time: an object store takes tens of milliseconds to answer each


@dataclass(frozen=True)
class Dataset:
    """One table of one category made in one way.

    Attributes:
        identity: plain JSON that says what it was made from; its hash is the fingerprint.
        slot: datasets of one slot replace each other, datasets of different slots add up (labels by source).
    """

    files: Files
    table: str
    category: str
    identity: Mapping[str, Any] = field(hash=False)
    slot: str = ""

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint({"table": self.table, "category": self.category, "slot": self.slot, **self.identity})

    @property
    def path(self) -> str:
        return f"{self.table}/category={self.category}/{self.fingerprint}"

    # -- writing ----------------------------------------------------------------------------------------------

    def write(self, part: str, rows: pa.Table, schema: pa.Schema, **notes: Any) -> None:
        """Commit one part: rows in the given schema's column order, and notes for its manifest.

        Raises:
            pa.ArrowException, KeyError: a column is missing or does not fit the schema; nothing is committed.
        """
        rows = rows.select(schema.names).cast(schema)
        sink = pa.BufferOutputStream()
        # JPEGs do not get smaller: to look for repeats in them would be most of the work of a write.
        images = {f.name for f in schema if pa.types.is_binary(f.type)}
        on_disk = to_disk(rows, schema)
        plain = [leaf for leaf in _leaves(on_disk.schema) if leaf not in images]
        codecs = dict.fromkeys(plain, "zstd") | dict.fromkeys(images, "none")
        pq.write_table(
            on_disk, sink, compression=codecs, use_dictionary=plain, write_statistics=plain, row_group_size=1024
        )
        name = f"{part}-{uuid.uuid4().hex[:8]}.parquet"
        self._describe()
        self.files.write(f"{self.path}/{name}", sink.getvalue())
        manifest = {"part": part, "file": name, "rows": len(rows), "digest": self._digest(rows), **notes}
        manifest["widths"] = {f.name: f.type.list_size for f in schema if pa.types.is_fixed_size_list(f.type)}
        self.files.write_json(f"{self.path}/_manifests/{part}.json", manifest)

    def finish(self, input_state: str, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the dataset complete for this state of its input."""
        self._describe()
        now = datetime.now(UTC).isoformat()
        done = {"input_state": input_state, "finished_at": now, "summary": dict(summary or {})}
        self.files.write_json(f"{self.path}/_finished.json", done)

    def unfinish(self) -> None:
        """Take the mark back before more is committed, so that nobody takes a half-extended dataset for a whole one."""
        if self.finished() is not None:
            self.files.fs.delete_file(self.files.full(f"{self.path}/_finished.json"))

    def overlay(self, rows: pa.Table) -> None:
        """Replace columns of committed rows at reading time, by the table's key (say, `duplicate_of`)."""
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        self.files.write(f"{self.path}/_overlay.parquet", sink.getvalue().to_pybytes())

    def forget(self, part: str) -> None:
        """Take back a committed part, so that it is made again."""
        self.files.fs.delete_file(self.files.full(f"{self.path}/_manifests/{part}.json"))

    def keep(self, part: str, ids: pa.ChunkedArray) -> int:
        """Make a committed part anew of the rows whose key is among `ids`; return how many rows went."""
        (manifest,) = self.manifests([part]).values()
        rows = self._open(manifest)
        left = rows.filter(pc.is_in(rows[KEYS[self.table][0]], ids))
        if len(left) < len(rows):
            notes = {k: v for k, v in manifest.items() if k not in ("part", "file", "rows", "digest", "widths")}
            self.write(part, left, _as_made(rows.schema), **notes)
        return len(rows) - len(left)

    def _describe(self) -> None:
        if not self.files.exists(f"{self.path}/_dataset.json"):
            described = {"table": self.table, "category": self.category, "slot": self.slot}
            self.files.write_json(f"{self.path}/_dataset.json", {**described, "identity": dict(self.identity)})

    def _digest(self, rows: pa.Table) -> str:
        keep = [c for c in rows.column_names if c not in VOLATILE.get(self.table, set())]
        return _content_digest(rows.select(keep))

    # -- reading ----------------------------------------------------------------------------------------------

    def parts(self, prefix: str | tuple[str, ...] = "") -> list[str]:
        """Names of the committed parts that begin with `prefix` or one of these, in order."""
        names = self.files.names(f"{self.path}/_manifests", ".json")
        return [n.removesuffix(".json") for n in names if n.startswith(prefix)]

    def manifests(self, parts: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """Manifests of committed parts by name, in name order; of these parts only, if given."""
        names = self.parts() if parts is None else list(parts)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(lambda n: self.files.read_json(f"{self.path}/_manifests/{n}.json"), names)
        return {m["part"]: m for m in found if m}

    def state(self) -> str:
        """Hash of the committed content, the same whenever and wherever it was made."""
        overlay = self.files.read(f"{self.path}/_overlay.parquet")
        parts = [(p, m["digest"]) for p, m in self.manifests().items()]
        over = _content_digest(pq.read_table(pa.BufferReader(overlay))) if overlay else None
        return fingerprint({"dataset": self.fingerprint, "parts": parts, "overlay": over})

    def finished(self) -> dict[str, Any] | None:
        """What `finish` wrote last, or None."""
        return self.files.read_json(f"{self.path}/_finished.json")

    def is_finished(self, input_state: str) -> bool:
        done = self.finished()
        return bool(done and done["input_state"] == input_state)

    def read(self, columns: Sequence[str] | None = None, parts: Iterable[str] | None = None) -> pa.Table:
        """Committed rows sorted by key, one per key (a success beats a failure), overlays applied.

        Args:
            columns: names to read; None reads all.
            parts: only these parts; None reads all.

        Raises:
            InputError: nothing is committed, or it was made by a version that did not know a column.
        """
        manifests = self.manifests(parts)
        if not manifests:
            raise InputError(self.table, self.category, f"nothing is committed in {self.files.uri}/{self.path}")
        keys = KEYS[self.table]
        order = ["status"] if self.table == "photos" else []
        want = None if columns is None else list(dict.fromkeys([*columns, *keys, *order]))
        # Of two failures the one of the later pass counts: rows are made unique by the first that stands.
        ordered = sorted(manifests.values(), key=lambda m: -m.get("pass", 0))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tables = list(pool.map(lambda manifest: self._open(manifest, want), ordered))
        rows = self._apply_overlay(unique_rows(pa.concat_tables(tables), keys))
        for name in columns or ():
            if name not in rows.column_names:
                raise InputError(self.table, self.fingerprint, f"was made before there was a column `{name}`: redo it")
        return rows if columns is None else rows.select(list(columns))

    def _open(self, manifest: Mapping[str, Any], columns: list[str] | None = None) -> pa.Table:
        """The rows of a part as they were committed."""
        with self.files.fs.open_input_file(self.files.full(f"{self.path}/{manifest['file']}")) as f:
            # An object store takes a request for each stretch that is read: stretches side by side in one.
            rows = pq.ParquetFile(f, pre_buffer=not self.files.is_local).read(columns)
            return from_disk(rows, manifest["widths"])

    def _apply_overlay(self, rows: pa.Table) -> pa.Table:
        data = self.files.read(f"{self.path}/_overlay.parquet")
        if data is None:
            return rows
        over = pq.read_table(pa.BufferReader(data))
        key = KEYS[self.table][0]
        where = pc.index_in(rows[key], over[key])
        for name in over.column_names:
            if name != key and name in rows.column_names:
                fresh = over[name].take(where)
                at = rows.column_names.index(name)
                rows = rows.set_column(at, name, pc.if_else(pc.is_valid(where), fresh, rows[name]))
        return rows


def _as_made(schema: pa.Schema) -> pa.Schema:
    """The schema that these rows had before Parquet, which has its own name for what is in a list."""
    fixed = pa.types.is_fixed_size_list
    return pa.schema(
        (f.name, pa.list_(f.type.value_type, f.type.list_size) if fixed(f.type) else f.type) for f in schema
    )


def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the Parquet columns of a schema of flat columns and lists of them."""
    nested = (pa.types.is_list, pa.types.is_fixed_size_list)
    return [f"{f.name}.list.element" if any(is_(f.type) for is_ in nested) else f.name for f in schema]


def _content_digest(rows: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as out:
        out.write_table(rows.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]


def unique_rows(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Rows sorted by key, one per key; where a `status` says so, `ok` beats a failure."""
    order = [(k, "ascending") for k in keys]
    if "status" in rows.column_names:
        failed = pc.not_equal(rows["status"], "ok")
        rows = rows.append_column("_failed", failed)
        order.append(("_failed", "ascending"))
    rows = rows.take(pc.sort_indices(rows, sort_keys=order))
    if "_failed" in rows.column_names:
        rows = rows.drop_columns(["_failed"])
    if len(rows) < 2:
        return rows
    same = None
    for k in keys:
        column = rows[k].combine_chunks()
        equal = pc.equal(column[1:], column[:-1])
        same = equal if same is None else pc.and_(same, equal)
    keep = pa.concat_arrays([pa.array([True]), pc.invert(same)])
    return rows if pc.all(keep).as_py() else rows.filter(keep)


def join_rows(left: pa.Table, right: pa.Table, on: str) -> pa.Table:
    """Left's rows that have a partner, with right's other columns added; `on` is unique in `right`.

    (Arrow's own join refuses list columns.)
    """
    where = pc.index_in(left[on], right[on])
    found = pc.is_valid(where)
    left, where = left.filter(found), where.filter(found)
    for name in right.column_names:
        if name not in left.column_names:
            left = left.append_column(name, right[name].take(where))
    return left.combine_chunks()


class Lake:
    """The folder or bucket that holds the tables, the models and the runs."""

    def __init__(self, uri: str | None) -> None:
        """Raises InputError where `uri` names no folder and no filesystem that pyarrow knows."""
        if not uri:
            raise InputError("lake", uri, "name a folder or a URI that pyarrow.fs knows")
        self.files = Files(str(uri))
        if fault := self.files.fault():
            raise InputError("lake", uri, fault)

    @property
    def uri(self) -> str:
        return self.files.uri

    def dataset(self, table: str, category: str, identity: Mapping[str, Any], slot: str = "") -> Dataset:
        """The dataset made from `identity`; nothing is written until its first commit."""
        if table not in TABLES:
            raise KeyError(table)
        check_category(category)
        return Dataset(self.files, table, category, dict(identity), slot)

    def datasets(self, table: str, category: str) -> list[Dataset]:
        """Finished datasets of a table, the newest of each slot, in slot order.

        Raises:
            InputError: the lake has none.
        """
        newest: dict[str, Dataset] = {}
        for ds in self._all(table, category):
            newest.setdefault(ds.slot, ds)
        if not newest:
            raise self._nothing(table, category)
        return [newest[s] for s in sorted(newest)]

    def _all(self, table: str, category: str) -> list[Dataset]:
        """Finished datasets, newest first."""
        check_category(category)
        base = f"{table}/category={category}"
        names = self.files.names(base)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            described_by = pool.map(self.files.read_json, [f"{base}/{n}/_dataset.json" for n in names])
            finished_at = pool.map(self.files.read_json, [f"{base}/{n}/_finished.json" for n in names])
        found = []
        for described, done in zip(described_by, finished_at, strict=True):
            if described and done:
                ds = Dataset(self.files, table, category, described["identity"], described["slot"])
                found.append((done["finished_at"], ds))
        return [ds for _, ds in sorted(found, key=lambda f: f[0], reverse=True)]

    def latest(self, table: str, category: str, named: str | None = None) -> Dataset:
        """The newest finished dataset of a table whose datasets replace each other, or the one named.

        Raises:
            InputError: there is none.
        """
        if named:
            return self.find(table, category, named)
        for ds in self._all(table, category):
            if not ds.slot:
                return ds
        raise self._nothing(table, category)

    def find(self, table: str, category: str, named: str) -> Dataset:
        """The finished dataset of this fingerprint, in whatever slot.

        Raises:
            InputError: there is none.
        """
        for ds in self._all(table, category):
            if ds.fingerprint == named:
                return ds
        raise InputError(table, named, f"lake {self.uri} has no finished `{table}` of that fingerprint")

    def _nothing(self, table: str, category: str) -> InputError:
        return InputError("category", category, f"lake {self.uri} has no finished `{table}` of it; {_MAKER[table]}")


def check_category(category: Any) -> None:
    """Raise InputError for a category that cannot be a partition's name."""
    if not isinstance(category, str) or not category or set(category) & set("/=") or category.startswith("."):
        raise InputError("category", category, 'a word without "/" or "="')


_MAKER = {
    "photos": "run `wildshape crawl` first",
    "instances": "run `wildshape detect` first",
    "labels": "run `wildshape ingest` first",
    "pseudo_labels": "run `wildshape keypoints` first",
    "selections": "run `wildshape select` first",
    "metrics": "run `wildshape evaluate` first",
}
