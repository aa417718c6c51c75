"""What a crawl is to fetch, on disk: the wanted rows of a source, each once, in shards by the hash of their photo id.

`<dataset>/_plan/<fingerprint>/`, named by the metadata file's state and what is wanted of it:
`splits/` holds what each split gave and is gone when the plan is made, `rows-*.parquet` a row group for each shard,
`rejects.parquet` the rows that could not be read, `plan.json` (written last) the rest. A split is read once, however
often the driver is killed. `<dataset>/_shards.json` keeps the number of shards, so that rows added to the metadata fall
into the same shards, or into parts of them where they are many.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.plan_shards import arrange, set_digest, shard_count, write_shards
from pipelines.source_autotags import read_tagged
from pipelines.source_files import file_state
from pipelines.source_options import SourceOptions
from pipelines.source_origin import mirrored
from pipelines.sources import REJECTS, WANTED, read_split, splits
from tables import Dataset, Files, InputError, fingerprint, locate

MAX_REJECTS = 100_000  # kept to be looked at; beyond that they are only counted
BATCH = 8192  # rows of a row group on the way


@dataclass(frozen=True)
class Plan:
    """A committed plan; plain, so that actors may have it.

    Attributes:
        counts: `lines`, `rejected`, `dropped` (by reason; `repeated` is a photo id that had a row before, `quota` a
            user with too many) and `wanted`.
        ids: stands for the set of photo ids, whatever file told them.
        groups: shard -> file and row group; shards without rows are left out.
        mirror: `source.mirror`, which is no part of what was planned.
    """

    files: Files
    path: str
    counts: dict[str, Any]
    ids: str
    groups: dict[str, tuple[str, int]]
    mirror: str | None

    @property
    def shards(self) -> list[str]:
        return sorted(self.groups)

    def shard(self, name: str) -> pa.Table:
        """Its rows (WANTED), unique, sorted by `photo_id`, `fetch_url` at the mirror if there is one."""
        file, group = self.groups[name]
        with self.files.fs.open_input_file(self.files.full(f"{self.path}/{file}")) as f:
            rows = pq.ParquetFile(f, metadata=_footer(self.files.uri, f"{self.path}/{file}")).read_row_group(group)
        at = WANTED.get_field_index("fetch_url")
        return rows.set_column(at, WANTED.field(at), mirrored(rows["fetch_url"], self.mirror))


@lru_cache(maxsize=8)
def _footer(uri: str, path: str) -> pq.FileMetaData:
    """Kept: with thousands of row groups it takes longer to read than a shard. Plan files never change."""
    files = Files(uri)
    return pq.read_metadata(files.full(path), filesystem=files.fs)


def needs_ray(options: SourceOptions, dataset: Dataset | None = None) -> bool:
    """Whether `make_plan` has enough to read for several nodes; not, if the dataset has the plan already."""
    if dataset is not None and dataset.files.exists(f"{_folder(dataset, options)}/plan.json"):
        return False
    return len(splits(options)) > 1


def make_plan(dataset: Dataset, options: SourceOptions, resources: Any) -> Plan:
    """Read and filter the source, unless this very plan is there: the same file in the same state, the same options.

    Several splits are read by tasks on the Ray in use, each booking `resources.cpus`, so every node must see the file
    at the same path; without Ray they are read here, one after another.

    Raises:
        InputError: the source breaks off or cannot be read.
    """
    files, folder = dataset.files, _folder(dataset, options)
    plan = files.read_json(f"{folder}/plan.json")
    if plan is None:
        parts = _read_splits(files, folder, options, resources)
        plan = _arrange(dataset, folder, parts, options.per_user)
        _keep_rejects(files, folder, parts)
        files.write_json(f"{folder}/plan.json", plan)
        if parts:
            files.fs.delete_dir(files.full(f"{folder}/splits"))
    groups = {name: (file, group) for name, (file, group) in plan["groups"].items()}
    return Plan(files, folder, plan["counts"], plan["ids"], groups, options.mirror)


def _folder(dataset: Dataset, options: SourceOptions) -> str:
    state = {"version": 3, "file": file_state("source.path", options.path), "at": locate(options.path)[1]}
    if options.autotags is not None:
        state["autotags"] = file_state("source.autotags.path", options.autotags.path)
    return f"{dataset.path}/_plan/{fingerprint({**state, **options.plan_identity()})}"


def _arrange(dataset: Dataset, folder: str, parts: list[dict[str, Any]], per_user: int) -> dict[str, Any]:
    """Write the shards' files; returns what `plan.json` holds."""
    counts = {name: sum(p[name] for p in parts) for name in ("lines", "rejected", "wanted")}
    dropped = sum((Counter(p["dropped"]) for p in parts), Counter[str]())
    groups: dict[str, tuple[str, int]] = {}
    kept = digest = 0
    if counts["wanted"]:
        shards = shard_count(dataset, counts["wanted"])
        with tempfile.TemporaryDirectory() as scratch:
            rows = _read_back(dataset.files, folder, parts, "rows")
            tables = arrange(rows, counts["wanted"], shards, per_user, Path(scratch), dropped)
            for i, table in enumerate(tables):
                data, names = write_shards(table, shards)
                dataset.files.write(f"{folder}/rows-{i:03d}.parquet", data)
                groups |= {name: (f"rows-{i:03d}.parquet", at) for at, name in enumerate(names)}
                kept += len(table)
                digest += set_digest(table["photo_id"])
    counts |= {"dropped": dict(sorted(dropped.items())), "wanted": kept}
    return {"counts": counts, "ids": f"{kept}-{digest % 2**64:016x}", "groups": groups}


def _keep_rejects(files: Files, folder: str, parts: list[dict[str, Any]]) -> None:
    """One table of the splits' rejects, their lines counted from the beginning of the file."""
    before, kept = 0, [REJECTS.empty_table()]
    for part in parts:
        room = MAX_REJECTS - sum(map(len, kept))
        for rows in _read_back(files, folder, [part], "rejects"):
            rows = rows.slice(0, max(0, room))
            kept.append(rows.set_column(0, REJECTS.field(0), pc.add(rows["line"], before)))
            room -= len(rows)
        before += part["lines"]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(kept), sink, compression="zstd")
    files.write(f"{folder}/rejects.parquet", sink.getvalue().to_pybytes())


# -- splits: from the source to files of wanted rows -----------------------------------------------------------------


def _read_splits(files: Files, folder: str, options: SourceOptions, resources: Any) -> list[dict[str, Any]]:
    """Manifests of all splits in file order; those without one are read."""
    units = [{"name": fingerprint(split), "split": split} for split in splits(options)]
    done = set(files.names(f"{folder}/splits", ".json"))
    todo = [u for u in units if f"{u['name']}.json" not in done]
    if todo:
        read = partial(_read_one, files, folder, _for_any_node(files, folder, options))
        for error in _on_ray(read, todo, resources) if len(todo) > 1 and _ray_is_up() else map(read, todo):
            if error:
                raise InputError(*error)
    return [files.read_json(f"{folder}/splits/{u['name']}.json") for u in units]


def _for_any_node(files: Files, folder: str, options: SourceOptions) -> SourceOptions:
    """The options with paths that hold in any folder, and the autotags as the ids that they come to."""
    at = options.path if "://" in options.path else locate(options.path)[1]
    if options.autotags is None:
        return replace(options, path=at)
    name = f"{folder}/splits/autotags.npy"
    if not files.exists(name):
        sink = io.BytesIO()
        np.save(sink, read_tagged(options.autotags))
        files.write(name, sink.getvalue())
    ids = f"{files.uri}/{name}"
    return replace(options, path=at, autotags=replace(options.autotags, path=ids))


def _ray_is_up() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _on_ray(read: Callable[[Any], list[str]], todo: list[dict[str, Any]], resources: Any) -> Iterator[list[str]]:
    import ray

    units = ray.data.from_items([{"unit": json.dumps(u)} for u in todo], override_num_blocks=len(todo))
    for row in units.map(partial(_task, read), num_cpus=resources.cpus).iter_rows():
        yield json.loads(row["error"])


def _task(read: Callable[[Any], list[str]], row: dict[str, Any]) -> dict[str, Any]:
    return {"error": json.dumps(read(json.loads(row["unit"])))}


def _read_one(files: Files, folder: str, options: SourceOptions, unit: dict[str, Any]) -> list[str]:
    """Commit one split: files under names of this attempt, then a manifest that names them.

    Returns:
        The arguments of an InputError, which would lose its type on its way through Ray; empty if all is well.
    """
    stem = f"splits/{unit['name']}-{uuid.uuid4().hex[:8]}"
    counts, dropped = Counter(lines=0, rejected=0, wanted=0), Counter[str]()
    try:
        with _Rows(files, folder, f"{stem}.rows", WANTED) as rows, _Rows(files, folder, stem, REJECTS) as rejects:
            for block in read_split(options, unit["split"]):
                rows.add(block.wanted)
                rejects.add(block.rejects.slice(0, max(0, MAX_REJECTS - counts["rejected"])))
                counts.update(lines=block.lines, rejected=len(block.rejects), wanted=len(block.wanted))
                dropped += block.dropped
    except InputError as error:
        return [error.argument, str(error.value), error.fix]
    manifest = {**counts, "dropped": dropped, "rows": rows.name, "rejects": rejects.name}
    files.write_json(f"{folder}/splits/{unit['name']}.json", manifest)
    return []


class _Rows:
    """A Parquet file that is written as rows come, and not at all if none come; `name` is None then."""

    def __init__(self, files: Files, folder: str, name: str, schema: pa.Schema) -> None:
        self.files, self.folder, self.schema = files, folder, schema
        self.name: str | None = None
        self._name, self._waiting, self._count = f"{name}.parquet", [schema.empty_table()], 0
        self._stack = ExitStack()

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._stack:
            self._flush()

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self._count += len(rows)
        if self._count >= BATCH:
            self._flush()

    def _flush(self) -> None:
        rows, self._waiting, self._count = pa.concat_tables(self._waiting), [self.schema.empty_table()], 0
        if not len(rows):
            return
        if self.name is None:
            self.name = self._name
            full = self.files.full(f"{self.folder}/{self.name}")
            if self.files.is_local:
                self.files.fs.create_dir(os.path.dirname(full))
            sink = self._stack.enter_context(self.files.fs.open_output_stream(full))
            self._writer = self._stack.enter_context(pq.ParquetWriter(sink, self.schema, compression="zstd"))
        self._writer.write_table(rows)


def _read_back(files: Files, folder: str, parts: Iterable[Mapping[str, Any]], what: str) -> Iterator[pa.Table]:
    """The rows or rejects of all splits in file order, a row group at a time."""
    for part in parts:
        if part[what] is not None:
            with files.fs.open_input_file(files.full(f"{folder}/{part[what]}")) as f:
                table = pq.ParquetFile(f)
                for group in range(table.num_row_groups):
                    yield table.read_row_group(group)
