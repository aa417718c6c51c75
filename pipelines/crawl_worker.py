"""What an actor does with a shard of the plan: fetch what is missing, lose nothing it has, commit it in blocks.

A shard's rows are fetched as one stream, so a slow URL delays no other. Each row goes to the spool when it ends; a
block of rows is committed as a part when all of its rows ended. Blocks are fixed by the sorted ids, so a crawl that was
killed ends with the same parts as one that was not.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.plan_shards import lineage
from pipelines.spool import Ref, Spool, discard, left_behind
from tables import Dataset, schema

if TYPE_CHECKING:
    from pipelines.plan import Plan

Row = Mapping[str, str]
_HOST = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]/]*\]|[^/?#:]*)", re.IGNORECASE)


class CrawlWorker:
    """Worker of the crawl stage; its unit is one shard of the plan. Shards in work at once share one fetcher.

    Args:
        dataset: the `photos` dataset to commit to.
        limits: fields of `FetchOptions`.
        keeper: holds the limits of hosts for all actors together; None where there is one actor.
        again: number of the pass that also goes over failures that can heal; 0 fetches what is not there yet.
    """

    def __init__(self, dataset: Dataset, plan: Plan, limits: dict[str, Any], keeper: Any, again: int = 0) -> None:
        from pipelines.fetch import Fetcher
        from pipelines.fetch_options import FetchOptions

        self.dataset, self.plan, self.again = dataset, plan, again
        self.options = FetchOptions(**limits)
        if self.options.mode == "resize":
            import cv2

            import pipelines.photo_resize  # noqa: F401 - so that torch is there when the stage sets its threads

            cv2.setNumThreads(1)
        self.fetcher = Fetcher(self.options, keeper)

    def __call__(self, part: str, payload: Any) -> Mapping[str, int]:
        counts = Counter[str]()
        for _ in self.parts(part, counts):
            pass
        return counts

    def parts(self, name: str, counts: Counter[str]) -> Iterator[str]:
        """Fetch a shard; names of its parts as they are committed. Counts are there when the last one is."""
        rows = missing(self.dataset, name, self.plan.shard(name).to_pylist(), failed=self.again > 0)
        if not rows:
            return
        spool = Spool(os.path.join(spool_folder(self.dataset), name))
        shard = _Shard(self.dataset, name, self.again, rows, self.options.block, spool)
        try:
            fetched = {r["photo_id"] for r in left_behind(spool) if shard.keep(r)}
            yield from shard.committed()
            for ended in self.fetcher.batches(r for r in rows if r["photo_id"] not in fetched):
                shard.ended(ended)
                yield from shard.committed()
        finally:
            spool.close()
        discard(spool)
        counts.update(shard.status, recovered=len(fetched), fetched=len(rows) - len(fetched))


class _Shard:
    """Rows of a shard on their way from ended to committed."""

    def __init__(self, dataset: Dataset, name: str, again: int, rows: Sequence[Row], block: int, spool: Spool) -> None:
        self.dataset, self.again, self.spool = dataset, again, spool
        self.prefix = f"{name}-r{again:03d}-" if again else f"{name}-"
        self.ids = [r["photo_id"] for r in rows]
        self.index = {name: i for i, name in enumerate(self.ids)}
        self.block = block
        self.refs: dict[int, Ref] = {}
        self.open = Counter(i // block for i in range(len(rows)))
        self.began = time.time()
        self.status: Counter[str] = Counter()
        self._committed: list[str] = []

    def committed(self) -> list[str]:
        """Names of the parts committed since this was asked last."""
        names, self._committed = self._committed, []
        return names

    def keep(self, row: dict[str, Any]) -> bool:
        """Take a row that a killed actor left, unless the failure may have been the end of its network."""
        from pipelines.fetch import HEALABLE

        known = self.index.get(row["photo_id"])
        if known is None or known in self.refs or not self.open[known // self.block] or row["status"] in HEALABLE:
            return False
        self.ended([row])
        return True

    def ended(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take rows of photos; commits a block when its last one is there."""
        for row, ref in zip(rows, self.spool.append(rows), strict=True):
            i = self.index[row["photo_id"]]
            self.refs[i] = ref
            number = i // self.block
            self.open[number] -= 1
            if not self.open[number]:
                self._commit(number)

    def _commit(self, number: int) -> None:
        span = range(number * self.block, min((number + 1) * self.block, len(self.ids)))
        refs = [self.refs.pop(i) for i in span]
        (rows, bodies), photos = self.spool.read(refs), schema("photos")
        notes = {
            "began": self.began,
            "ended": time.time(),
            "pass": self.again,
            **summarise(rows, [ref.body for ref in refs]),
        }
        self.status.update(notes["status"])
        at = photos.get_field_index("bytes")
        table = pa.Table.from_pylist(rows, photos.remove(at)).add_column(at, "bytes", bodies)
        name = part_name(self.prefix, [self.ids[i] for i in span])
        self.dataset.write(name, table, photos, **notes)
        self._committed.append(name)


def missing(dataset: Dataset, shard: str, rows: Sequence[Row], failed: bool) -> list[Row]:
    """Rows of the shard without a committed row; with `failed`, also those whose committed failure can heal."""
    from pipelines.fetch import HEALABLE

    parts = dataset.parts(tuple(f"{name}-" for name in lineage(shard)))
    have = dataset.read(["photo_id", "status"], parts).to_pydict() if parts else {"photo_id": [], "status": []}
    status = dict(zip(have["photo_id"], have["status"], strict=True))
    again = HEALABLE if failed else frozenset()
    return [r for r in rows if r["photo_id"] not in status or status[r["photo_id"]] in again]


def reopen(dataset: Dataset) -> None:
    """Take back the parts of an interrupted crawl in which a host refused to be reached, for a fetch of those rows.

    It may have been the network that was gone (or, with the driver, the sandbox's origin), not the photo. The other
    rows go to the spool: they are not fetched again, and the part becomes what it would have been.
    """
    for part, manifest in dataset.manifests().items():
        if not manifest["refused"]:
            continue
        spool = Spool(os.path.join(spool_folder(dataset), part.partition("-")[0]))
        rows = dataset.read(parts=[part]).to_pylist()
        spool.append({**row, "duplicate_of": None} for row in rows if not _refused(row))
        spool.close()
        dataset.forget(part)


def _refused(row: Mapping[str, Any]) -> bool:
    return (row["error"] or "").startswith("ClientConnectorError:")


def part_name(prefix: str, ids: Sequence[str]) -> str:
    """Name of a part: it means the same rows in every run."""
    return prefix + hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def spool_folder(dataset: Dataset) -> str:
    """Folder of a dataset's spools on this machine: a node's own where the lake is in an object store."""
    return dataset.files.local(f"{dataset.path}/_spool")


def summarise(rows: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Notes of a part's manifest: bytes kept, rows by status, the same by host with milliseconds; rows refused.

    Args:
        sizes: bytes kept of each row.
    """
    hosts: dict[str, dict[str, Any]] = {}
    for row, size in zip(rows, sizes, strict=True):
        host = hosts.setdefault(_host(row["final_url"] or row["url"]), {"status": Counter(), "bytes": 0, "ms": 0.0})
        host["status"][row["status"]] += 1
        host["bytes"] += size
        host["ms"] += row["ms"] or 0.0
    return {
        "body_bytes": sum(sizes),
        "status": dict(sum((h["status"] for h in hosts.values()), Counter())),
        "hosts": {name: {**h, "status": dict(h["status"])} for name, h in hosts.items()},
        "refused": sum(map(_refused, rows)),
    }


def _host(url: str) -> str:
    """Host name of a URL, in a form to count by; empty if it names none."""
    found = _HOST.match(url)
    return found[1].lower() if found else ""
