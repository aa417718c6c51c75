"""Crawl: metadata rows -> filter -> download in actors -> `photos`, one row for every URL, duplicates marked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tables import Dataset, InputError, Lake, check_category, fingerprint, schema
from trainers.app import command

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.plan import Plan
    from pipelines.source_filter import SourceOptions

SHARDS_AT_ONCE = 3  # so that the last, slow URLs of a shard leave no gap before the next
SUSPECT = 20  # photos of the same bytes that make these bytes a suspected placeholder


def crawl(
    lake: Lake,
    category: str,
    source: Any,
    fetch: Any,
    resources: Any,
    retry: str | None = None,
    run: Callable[..., Mapping[str, int]] | None = None,
) -> tuple[Dataset, dict[str, Any]]:
    """Fetch what the source has of the category and is not fetched yet; mark duplicates; finish the dataset.

    The dataset is named by the filters and by what makes a photo ok, not by the metadata file: rows added to the file,
    another mirror or other timeouts extend the same crawl. Committed URLs are never asked for again, except with
    `retry`.

    Args:
        source, fetch, resources: these sections of the config.
        retry: `failed` asks once more for the committed failures that can heal.
        run: does the shards in place of `pipelines.stage.run_stage`, and more with their photos (`pipelines.stream`).

    Returns:
        The finished `photos` dataset, and the summary: `lines, rejected, dropped` (by reason), `wanted, fetched`,
        `status` (rows by status), `duplicates, photos` (ok and no duplicate), `suspects` (bytes that many photos have).

    Raises:
        InputError: the source or an option is wrong, no row passes the filters, or another crawl is at work in the same
            dataset; before anything is fetched.
        RuntimeError: more shards were lost than `resources.failure_budget` allows.
    """
    from pipelines.crawl_page import write_page
    from pipelines.crawl_worker import spool_folder
    from pipelines.fetch_options import FetchOptions
    from pipelines.plan import needs_ray
    from pipelines.sources import check_source
    from pipelines.stage import connect

    check_category(category)
    if retry not in (None, "failed"):
        raise InputError("retry", retry, "null or failed")
    options, limits = check_source(source, category), FetchOptions.from_config(fetch)
    if options.mirror and options.mirror.startswith("file:"):
        limits = replace(limits, allow_files=(*limits.allow_files, unquote(urlsplit(options.mirror).path)))
    dataset = open_dataset(lake, category, options, limits.identity())
    with ExitStack() as held:
        held.enter_context(_alone(dataset))
        if needs_ray(options, dataset):
            held.enter_context(connect(resources))
        plan = _plan(dataset, options, resources)
        input_state = fingerprint({"ids": plan.ids})
        if retry or not dataset.is_finished(input_state):
            held.enter_context(connect(resources))
            fetched = _fetch(dataset, plan, limits, resources, input_state, retry, run)
            mark_duplicates(dataset)
            summary = {**plan.counts, "fetched": fetched, **tally(dataset)}
            write_page(dataset, summary)
            dataset.finish(input_state, summary)
            shutil.rmtree(spool_folder(dataset), ignore_errors=True)
            return dataset, summary
    return dataset, {**plan.counts, "fetched": 0, **tally(dataset)}


def open_dataset(lake: Lake, category: str, options: SourceOptions, limits: Mapping[str, Any]) -> Dataset:
    """The `photos` dataset of these filters and size limits."""
    return lake.dataset("photos", category, {"stage": "crawl", "version": 2, "source": options.identity(), **limits})


def plan_early(dataset: Dataset, options: SourceOptions) -> None:
    """Make the plan that `crawl` will find, if that needs no Ray: bad input is then refused before Ray is started.

    Raises:
        InputError: as `crawl` does.
    """
    from pipelines.plan import needs_ray

    with _alone(dataset):
        if not needs_ray(options, dataset):
            _plan(dataset, options, None)


def _plan(dataset: Dataset, options: SourceOptions, resources: Any) -> Plan:
    from pipelines.plan import make_plan

    plan = make_plan(dataset, options, resources)
    if not plan.counts["wanted"]:
        raise InputError("source.path", options.path, _nothing(options, plan.counts))
    return plan


@contextmanager
def _alone(dataset: Dataset) -> Iterator[None]:
    """Hold the dataset against other crawls, as far as this machine can tell of them; a kill lets go.

    Two machines that crawl into one bucket at once lose nothing, but fetch some photos twice.

    Raises:
        InputError: another crawl holds it.
    """
    from filelock import FileLock, Timeout

    folder = dataset.files.local(dataset.path)
    os.makedirs(folder, exist_ok=True)
    try:
        with FileLock(os.path.join(folder, "_lock"), timeout=0):
            yield
    except Timeout:
        raise InputError("lake", dataset.files.uri, f"another crawl is at work in {dataset.path}: let it end") from None


def _fetch(
    dataset: Dataset,
    plan: Plan,
    limits: Any,
    resources: Any,
    input_state: str,
    retry: str | None,
    run: Callable[..., Mapping[str, int]] | None,
) -> int:
    """Fetch every shard of the plan; return how many URLs were asked for in this run."""
    from pipelines.crawl_progress import show
    from pipelines.crawl_worker import CrawlWorker, reopen
    from pipelines.hosts import keeper_actor
    from pipelines.stage import run_stage

    again = 0
    if retry:
        again = 1 + max((m["pass"] for m in dataset.manifests().values()), default=0)
    elif dataset.finished() is None:
        reopen(dataset)
    dataset.unfinish()
    alone = min(int(resources.actors), len(plan.shards)) == 1
    args = {"dataset": dataset, "plan": plan, "limits": asdict(limits), "again": again}
    args["keeper"] = None if alone else keeper_actor(limits)
    units: dict[str, Any] = dict.fromkeys(plan.shards)
    done = (run or run_stage)(
        dataset, units, CrawlWorker, args, resources, input_state, finish=False, at_once=SHARDS_AT_ONCE,
        show=partial(show, dataset=dataset, wanted=plan.counts["wanted"]),
    )  # fmt: skip
    return done["fetched"]


def mark_duplicates(dataset: Dataset) -> None:
    """Write `duplicate_of` over the committed photos of the same bytes; `status` stays as it is."""
    import pyarrow as pa

    from pipelines.duplicates import find_exact

    ok = _ok(dataset, ["photo_id", "sha256"])
    keeper_of = find_exact(ok["photo_id"], ok["sha256"])
    names = schema("photos").field("photo_id").type
    columns = {"photo_id": list(keeper_of), "duplicate_of": list(keeper_of.values())}
    dataset.overlay(pa.table({n: pa.array(v, names) for n, v in columns.items()}))


def tally(dataset: Dataset) -> dict[str, Any]:
    """Rows by status, duplicates, usable photos and suspected placeholders of the whole dataset."""
    import pyarrow.compute as pc

    rows = dataset.read(["status", "duplicate_of", "sha256"])
    status = {v["values"]: v["counts"] for v in pc.value_counts(rows["status"]).to_pylist()}
    duplicates = len(rows) - rows["duplicate_of"].null_count
    same = pc.value_counts(rows["sha256"].drop_null())
    many = same.filter(pc.greater_equal(same.field("counts"), SUSPECT)).to_pylist()
    return {
        "status": dict(sorted(status.items())), "duplicates": duplicates, "photos": status.get("ok", 0) - duplicates,
        "suspects": {v["values"]: v["counts"] for v in sorted(many, key=lambda v: (-v["counts"], v["values"]))[:20]},
    }  # fmt: skip


def _ok(dataset: Dataset, columns: list[str]) -> pa.Table:
    import pyarrow.compute as pc

    rows = dataset.read([*columns, "status"])
    return rows.filter(pc.equal(rows["status"], "ok"))


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
    table.add_row("rejected (see _plan/*/rejects.parquet)", str(summary["rejected"]))
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
    for sha256, n in list(summary["suspects"].items())[:3]:
        console.print(f"{n} photos are the same picture, perhaps a placeholder: fetch.placeholders=[{sha256}]")
    console.print(f"{dataset.files.uri}/{dataset.path}", soft_wrap=True)


@command("crawl")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    dataset, summary = crawl(Lake(cfg.lake), cfg.category, plain["source"], plain["fetch"], cfg.resources, cfg.retry)
    show_summary(dataset, summary)


if __name__ == "__main__":
    main()
