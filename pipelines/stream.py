"""Metadata in, pseudo-labels out: crawl, detect and keypoints as one flow in which no photo waits for a stage to end.

What flows is names of parts. A worker reads the part that the one before it has committed and commits its own, as in
the separate stages: the tables are the same, and either way finishes what the other began. So what waits between two
stages lies in the lake; memory holds what the actors have in work and no more, however far the crawl is ahead.
"""

from __future__ import annotations

import json
import math
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from pipelines.stage import Actor, check_lost, connect, parts_as_units, parts_at_once, run_stage, through, told
from tables import Dataset, InputError, Lake
from trainers import logs, meters
from trainers.app import command
from trainers.cluster import check_resources, check_room

STAGES = ("crawl", "detect", "keypoints")


@command("stream")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf
    from rich.console import Console

    from pipelines.detect import pick_detector
    from pipelines.keypoints import check_round, pick_models

    lake = Lake(cfg.lake)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    check_round(cfg.round)
    stages = stage_resources(plain["resources"], plain["stages"])
    detector = {"detector": cfg.detector, "model": pick_detector(lake, cfg), "rules": plain["detect"]}
    models = pick_models(lake, cfg)
    for made in stream(lake, cfg.category, plain["source"], plain["fetch"], detector, models, cfg.round, stages):
        summary = (made.finished() or {})["summary"]
        Console().print(f"{made.table}: {summary} in {lake.uri}/{made.path}", soft_wrap=True)


def stage_resources(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`resources` of each stage: what all share, and over it what the stage has of its own.

    Raises:
        InputError: a stage or key that there is not, or a value out of bounds.
    """
    for name in sorted(set(STAGES) ^ own.keys()):
        raise InputError(f"stages.{name}", own.get(name, "null"), f"a section for each of {', '.join(STAGES)}")
    made = {name: {**shared, **(own[name] or {})} for name in STAGES}
    for name, section in made.items():
        try:
            check_resources(section)
        except InputError as error:
            argument = error.argument.replace("resources", f"stages.{name}", 1)
            raise InputError(argument, error.value, error.fix) from None
    return {name: SimpleNamespace(**section) for name, section in made.items()}


def stream(
    lake: Lake,
    category: str,
    source: Any,
    fetch: Any,
    detector: Mapping[str, Any],
    models: dict[str, str | None],
    round: int,
    stages: Mapping[str, Any],
) -> tuple[Dataset, Dataset, Dataset]:
    """Crawl, detect and predict; return the finished `photos`, `instances` and `pseudo_labels`.

    Args:
        source, fetch: these sections of the config.
        detector: `detector`, `model` and `rules`, as `pipelines.detect.detect` takes them.
        models: paths of the `pose`, `aux` and `acsm` checkpoints; the last two may be None.
        round: which the pseudo-labels are for.
        stages: resources of `crawl`, `detect` and `keypoints`, as `stage_resources` makes them.

    Raises:
        InputError: as the separate stages do, and an actor that books more than a local Ray has; before anything is
            fetched.
        RuntimeError: more units of a stage were lost than its `failure_budget` allows.
    """
    from pipelines.crawl import crawl, open_dataset, plan_early
    from pipelines.detect import check_model, plan_detect
    from pipelines.fetch_options import FetchOptions
    from pipelines.keypoints import plan_infer
    from pipelines.sources import check_source

    options = check_source(source, category)
    photos = open_dataset(lake, category, options, FetchOptions.from_config(fetch).identity())
    instances, looks = plan_detect(lake, category, photos, **detector)
    pseudo, predicts = plan_infer(lake, category, instances, models, round)
    check_model(category, **detector)
    plan_early(photos, options)
    flow = _Flow((photos, instances, pseudo), (looks, predicts), stages)
    cpus = sum(r.actors * r.cpus for r in stages.values())
    with connect(SimpleNamespace(address=stages["crawl"].address, actors=1, cpus=math.ceil(cpus))):
        for name, section in stages.items():
            check_room(section, f"stages.{name}")
        crawl(lake, category, source, fetch, stages["crawl"], run=flow.crawl)
        if not flow.ran:  # nothing was left to crawl
            flow.run()
        flow.finish()
    return photos, instances, pseudo


class _Flow:
    """Three stages in a row.

    Args:
        tables: `photos`, `instances` and `pseudo_labels`.
        args: what the workers of the last two are made of.
    """

    def __init__(
        self, tables: tuple[Dataset, Dataset, Dataset], args: tuple[dict[str, Any], ...], stages: Mapping[str, Any]
    ) -> None:
        from pipelines.detect_worker import DetectWorker
        from pipelines.keypoint_worker import KeypointWorker

        self.tables, self.stages = tables, stages
        self.workers = {"detect": (DetectWorker, args[0]), "keypoints": (KeypointWorker, args[1])}
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.ran = False

    def crawl(
        self,
        photos: Dataset,
        shards: Mapping[str, Any],
        worker: type[Any],
        args: Mapping[str, Any],
        resources: Any,
        input_state: str,
        finish: bool,
        at_once: int,
        show: Any,
    ) -> Counter[str]:
        """Do the shards of a crawl as `run_stage` would, and send their photos on. All parts are done afterwards."""
        first = {"factory": worker, "args": dict(args), "output": photos}
        lost = self.run(shards, first, at_once, args["plan"].counts["wanted"])
        check_lost("photos", lost, len(shards), resources)
        return self.counts["photos"]

    def run(
        self,
        shards: Mapping[str, Any] | None = None,
        crawling: dict[str, Any] | None = None,
        at_once: int = 1,
        wanted: int | None = None,
    ) -> list[str]:
        """Send shards and the parts that lie waiting through the stages; what went wrong with shards, a line each."""
        from ray.data import DataContext, from_items

        from pipelines.stream_progress import show

        photos, _, pseudo = self.tables
        self.ran = True
        self._unfinish(more=bool(shards))
        self._forget_outdated()
        known = frozenset(photos.parts())
        waiting = sorted(known.difference(pseudo.parts()))
        rows = [_row(part) for part in waiting] + [_row(shard, shard=True) for shard in shards or ()]
        if not rows:
            return []
        context = DataContext.get_current().copy()
        context.target_max_block_size = 1  # a part goes on as soon as it is committed
        with DataContext.current(context):
            flow = from_items(rows, override_num_blocks=len(rows))
            run = uuid.uuid4().hex[:8]
            if crawling:
                first = {**crawling, "run": run, "known": known}
                flow = through(flow, _Crawling, first, self.stages["crawl"], at_once, len(rows))
            for (name, (factory, args)), table in zip(self.workers.items(), self.tables[1:], strict=True):
                resources, then = self.stages[name], {"factory": factory, "args": args, "output": table, "run": run}
                flow = through(flow, _Next, then, resources, parts_at_once(resources))
            lost = []
            total = wanted or sum(m["rows"] for m in photos.manifests().values())
            for row in show(iter(flow.iter_rows()), self.tables, total):
                logs.replay(row["log"])
                for name, counts in json.loads(row["counts"]).items():
                    self.counts[name].update(counts, units=1)
                    meters.unit(name, counts, lost=False)
                if row["error"] and row["shard"]:
                    meters.unit(photos.table, {}, lost=True)
                    lost.append(f"{row['part']}: {row['error']}")
        return lost

    def finish(self) -> None:
        """End each stage as it ends alone. A unit that was lost is tried once more, apart from the others."""
        from pipelines import detect, keypoints

        photos, instances, pseudo = self.tables
        state = photos.state()
        if not instances.is_finished(state):
            detect.close(instances, photos, self.workers["detect"][1]["rules"], self._rest("detect", photos, instances))
        state = instances.state()
        if not pseudo.is_finished(state):
            keypoints.forget_outdated(pseudo, instances)
            pseudo.finish(state, self._rest("keypoints", instances, pseudo))

    def _rest(self, stage: str, source: Dataset, made: Dataset) -> Counter[str]:
        """Do the parts that the flow left; the counts of the flow and of this."""
        factory, args = self.workers[stage]
        units = parts_as_units(source)
        resources, state = self.stages[stage], source.state()
        at_once = parts_at_once(resources)
        rest = run_stage(made, units, factory, args, resources, state, finish=False, at_once=at_once)
        rest["units_skipped"] -= self.counts[made.table]["units"]
        rest.update(self.counts[made.table])
        return rest

    def _unfinish(self, more: bool) -> None:
        """Take the marks back of the tables that are to be extended: those from the first on that lacks something."""
        for source, made in pairwise(self.tables):
            more = more or not made.is_finished(source.state())
            if more:
                made.unfinish()

    def _forget_outdated(self) -> None:
        """Take back what was made of parts that are gone or others now."""
        from pipelines.detect import forget_outdated

        photos, instances, pseudo = self.tables
        forget_outdated(instances, photos)
        for part in set(pseudo.parts()) - set(instances.parts()):
            pseudo.forget(part)


class _Crawling(Actor):
    """Turns a shard into its parts, each as soon as it is committed, and a last row with the counts.

    Args:
        known: parts that were committed before this run: they are done, or on their way without it.
    """

    def __init__(self, known: frozenset[str], **actor: Any) -> None:
        super().__init__(**actor)
        self.known = known

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        row = {name: values[0] for name, values in batch.items()}
        if not row["shard"]:
            yield _batch(row)
            return
        name = str(row["part"])
        # A killed actor's shard is done again, and Ray skips as many rows as it had: they come in the same order.
        before = self.output.manifests(p for p in self.output.parts(f"{name}-") if p not in self.known)
        for part in sorted(before, key=lambda p: before[p]["ended"]):
            yield _batch(_row(part))
        error = ""
        with self.noted(name) as counts:
            try:
                with self.trying(name):
                    for part in self.work.parts(name, counts):
                        yield _batch(_row(part))
            except Exception as raised:  # noqa: BLE001 - as in Actor.attempt
                self.lost(raised)
                error = told(raised)
        yield _batch(_row(name, True, {"photos": counts}, error) | {"log": self.log.take()})


class _Next(Actor):
    """Does a part that the stage before has committed, unless it is done; lets everything else through."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        row = {name: values[0] for name, values in batch.items()}
        part = str(row["part"])
        if not row["shard"] and not row["error"] and not self.output.manifests([part]):
            counts, row["error"] = self.attempt(part, None)
            if not row["error"]:
                row["counts"] = json.dumps({**json.loads(str(row["counts"])), self.output.table: counts})
            row["log"] = logs.joined([str(row["log"]), self.log.take()])
        return _batch(row)


def _row(part: str, shard: bool = False, counts: Mapping[str, Any] | None = None, error: str = "") -> dict[str, Any]:
    """What flows: the name of a part, or of a shard before and after its crawl, and what was counted on the way."""
    return {"part": part, "shard": shard, "counts": json.dumps(counts or {}), "error": error, "log": "[]"}


def _batch(row: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    return {name: [value] for name, value in row.items()}


if __name__ == "__main__":
    main()
