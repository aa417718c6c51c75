"""Crawl: metadata rows -> filter -> download in actors -> `photos`, one row for every URL, duplicates marked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tables import Dataset, InputError, Lake, fingerprint, schema
from trainers.app import command

if TYPE_CHECKING:
    from pipelines.source_filter import SourceOptions

Row = dict[str, str]


def crawl(
    lake: Lake, category: str, source: Any, fetch: Any, resources: Any, radius: int = 4
) -> tuple[Dataset, dict[str, Any]]:
    """Fetch what the source has of the category and is not fetched yet; mark duplicates; finish the dataset.

    The dataset is named by the filters and by what makes a photo ok, not by the metadata file: rows added to the file,
    another mirror or other timeouts extend the same crawl. Committed URLs are never asked for again, except with
    `fetch.retry_failed`, which goes over the failures that can heal.

    Args:
        source, fetch, resources: these sections of the config.
        radius: photos whose difference hashes differ in so many bits are duplicates; 0 compares bytes only.

    Returns:
        The finished `photos` dataset, and the summary: `lines, rejected, dropped` (by reason), `wanted, fetched`,
        `status` (rows by status), `duplicates, photos` (ok and no duplicate).

    Raises:
        InputError: the source or an option is wrong, or no row passes the filters; before Ray starts.
        RuntimeError: more blocks were lost than `resources.failure_budget` allows.
    """
    from pipelines.fetch_options import FetchOptions
    from pipelines.sources import check_source, read_source, source_size
    from pipelines.stage import connect, run_stage

    if not category or set(category) & set("/=") or category.startswith("."):
        raise InputError("category", category, 'a word without "/" or "="')
    if not 0 <= radius <= 63:
        raise InputError("dedup.radius", radius, "a number of bits between 0 and 63")
    options, limits = check_source(source, category), FetchOptions.from_config(fetch)
    big = options.in_ranges(source_size(options))
    with connect(resources) if big else nullcontext():
        found = read_source(options)
        counts = {"lines": found.lines, "rejected": found.rejected, "dropped": dict(sorted(found.dropped.items()))}
        if not found.rows:
            raise InputError("source.path", options.path, _nothing(options, counts))
        dataset = open_dataset(lake, category, options, limits.identity())
        lake.files.write_json(f"{dataset.path}/_rejects.json", {"rejected": found.rejected, "rows": found.rejects})
        if dataset.finished() is None:
            # An interrupted crawl: where no host could be reached, it was the network (or, with the driver, the
            # sandbox's origin) that was gone, not the photos. Such blocks are fetched again, whole.
            for part, manifest in dataset.manifests().items():
                if manifest["refused"]:
                    dataset.forget(part)
        todo = sorted(_todo(dataset, found.rows, limits.retry_failed), key=lambda r: r["photo_id"])
        units = dict(_blocks(todo, limits.block, _generation(dataset) if limits.retry_failed else ""))
        ids = sorted(r["photo_id"] for r in found.rows)
        input_state = fingerprint({"ids": hashlib.sha256("\n".join(ids).encode()).hexdigest(), "radius": radius})
        if units:
            actors = max(1, min(int(resources.actors), len(units)))
            # Each actor holds the limit of its hosts for itself, so that all of them together stay within it.
            share = replace(limits, per_host=max(1, limits.per_host // actors))
            args = {"dataset": dataset, "limits": asdict(share), "mirror": options.mirror}
            run_stage(dataset, units, FetchBlock, args, resources, input_state, finish=False)
        summary = {**counts, "wanted": len(found.rows), "fetched": len(todo)}
        if not units and dataset.is_finished(input_state):
            return dataset, {**summary, **_tally(dataset)}
        mark_duplicates(dataset, radius)
        summary.update(_tally(dataset))
        dataset.finish(input_state, summary)
    return dataset, summary


def open_dataset(lake: Lake, category: str, options: SourceOptions, limits: Mapping[str, Any]) -> Dataset:
    """The `photos` dataset of these filters and size limits."""
    return lake.dataset("photos", category, {"stage": "crawl", "version": 1, "source": options.identity(), **limits})


class FetchBlock:
    """Worker of the stage: fetches one block of rows and commits it as one part."""

    def __init__(self, dataset: Dataset, limits: dict[str, Any], mirror: str | None) -> None:
        import cv2

        from pipelines.fetch import Fetcher
        from pipelines.fetch_options import FetchOptions

        cv2.setNumThreads(1)
        self.dataset = dataset
        self.fetcher = Fetcher(FetchOptions(**limits), mirror)

    def __call__(self, part: str, payload: Any) -> Mapping[str, int]:
        import pyarrow as pa

        rows = self.fetcher.fetch(payload)
        refused = sum((r["error"] or "").startswith("ClientConnectorError:") for r in rows)
        self.dataset.write(part, pa.Table.from_pylist(rows, schema("photos")), schema("photos"), refused=refused)
        return Counter(r["status"] for r in rows)


def mark_duplicates(dataset: Dataset, radius: int) -> None:
    """Write `duplicate_of` over the committed photos; `status` stays as it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipelines.duplicates import find_duplicates

    rows = dataset.read(["photo_id", "status", "sha256", "dhash"])
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    ids, sha256, dhash = (ok[c].to_pylist() for c in ("photo_id", "sha256", "dhash"))
    keeper_of = find_duplicates(ids, sha256, dhash, radius)
    names = schema("photos").field("photo_id").type
    dataset.overlay(
        pa.table(
            {
                "photo_id": pa.array(list(keeper_of), names),
                "duplicate_of": pa.array(list(keeper_of.values()), names),
            }
        )
    )


def _todo(dataset: Dataset, rows: Sequence[Row], retry_failed: bool) -> list[Row]:
    """Rows whose URL has no committed row yet; with `retry_failed` also those whose failure can heal."""
    from pipelines.fetch import HEALABLE

    if not dataset.manifests():
        return list(rows)
    have = dataset.read(["photo_id", "status"]).to_pydict()
    status = dict(zip(have["photo_id"], have["status"], strict=True))
    return [r for r in rows if r["photo_id"] not in status or (retry_failed and status[r["photo_id"]] in HEALABLE)]


def _blocks(rows: Sequence[Row], size: int, prefix: str) -> Iterator[tuple[str, list[Row]]]:
    """Blocks of rows sorted by id; a part's name is a hash of its ids, so it means the same rows in every run."""
    for start in range(0, len(rows), size):
        block = list(rows[start : start + size])
        ids = "\n".join(r["photo_id"] for r in block)
        yield f"{prefix}{hashlib.sha256(ids.encode()).hexdigest()[:16]}", block


def _generation(dataset: Dataset) -> str:
    """Prefix of the parts of a new pass over failures: such a part must not be taken for the one that failed."""
    passes = [int(p[1:4]) for p in dataset.manifests() if p.startswith("r")]
    return f"r{max(passes, default=0) + 1:03d}-"


def _tally(dataset: Dataset) -> dict[str, Any]:
    """Rows by status, duplicates and usable photos of the whole dataset."""
    rows = dataset.read(["status", "duplicate_of"]).to_pydict()
    status = Counter(rows["status"])
    duplicates = sum(d is not None for d in rows["duplicate_of"])
    return {"status": dict(sorted(status.items())), "duplicates": duplicates, "photos": status["ok"] - duplicates}


def _nothing(options: SourceOptions, counts: Mapping[str, Any]) -> str:
    why = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items())
    return (
        f"none of {counts['lines']} rows passes the filters (dropped: {why or 'none'}; "
        f"rejected: {counts['rejected']}). "
        f"Words looked for: {', '.join(options.words)}. Set source.words, or relax source.license"
    )


def show_summary(dataset: Dataset, summary: Mapping[str, Any]) -> None:
    """A table of what became of the rows."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"crawl: {dataset.category}", title_justify="left")
    table.add_column("rows")
    table.add_column("count", justify="right")
    table.add_row("in the metadata", str(summary["lines"]))
    table.add_row("rejected (_rejects.json)", str(summary["rejected"]))
    for reason, n in summary["dropped"].items():
        table.add_row(f"dropped: {reason}", str(n))
    table.add_row("wanted", str(summary["wanted"]))
    table.add_row("fetched in this run", str(summary["fetched"]), end_section=True)
    for status, n in summary["status"].items():
        table.add_row(status, str(n))
    table.add_row("duplicates among ok", str(summary["duplicates"]))
    table.add_row("photos", str(summary["photos"]), style="bold")
    console = Console()
    console.print(table)
    console.print(f"{dataset.files.uri}/{dataset.path}", soft_wrap=True)


@command("crawl")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    dataset, summary = crawl(
        Lake(cfg.lake), cfg.category, plain["source"], plain["fetch"], cfg.resources, cfg.dedup.radius
    )
    show_summary(dataset, summary)


if __name__ == "__main__":
    main()
