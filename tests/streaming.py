"""A small web, its networks, and the ways from its photos to pseudo-labels: staged, streamed, and without Ray."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from aiohttp import web
from tiny import CATEGORY, shared_lake

from models.checkpoint import checkpoint_bytes
from models.heatmap import Detector
from pipelines import detect as detection
from pipelines.crawl import crawl, mark_duplicates, open_dataset
from pipelines.crawl_worker import CrawlWorker
from pipelines.detect import detect
from pipelines.detect_worker import DetectWorker
from pipelines.fetch_options import FetchOptions
from pipelines.keypoint_worker import KeypointWorker
from pipelines.keypoints import infer, plan_infer
from pipelines.model_files import pick_model
from pipelines.plan import make_plan
from pipelines.sources import check_source
from pipelines.stream import stream
from sandbox.origin import Origin
from tables import Dataset, Lake, fingerprint, to_numpy

RULES: dict[str, Any] = {"score": 0.0, "overlap": 0.5, "most": 2, "min_side": 2, "crop_px": 96, "radius": 2}
FETCH = {
    "allow_hosts": ["127.0.0.1"], "block": 8, "backoff_s": 0.01, "attempts": 2, "opt_out": [],
    "connect_s": 60, "read_s": 60, "total_s": 120, "min_bytes_per_s": 0,  # a busy machine is no slow host
}  # fmt: skip
DISTINCT = 44


class Gate(Origin):
    """An origin that keeps requests of the paths in `closed` waiting until they are taken out."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.closed: set[str] = set()

    async def _behave(self, request: web.Request, path: str) -> web.StreamResponse:
        while path in self.closed:
            await asyncio.sleep(0.02)
        return await super()._behave(request, path)


class World(NamedTuple):
    """Photos behind an origin, the networks, and where they are known from."""

    origin: Gate
    rows: Path
    detector: str
    models: dict[str, str | None]
    kind: str = "own"
    rules: dict[str, Any] = RULES

    def source(self) -> dict[str, Any]:
        return {"path": str(self.rows), "format": "urls", "mirror": self.origin.url}

    def staged(self, lake: Lake, resources: Any) -> tuple[Dataset, Dataset, Dataset]:
        photos, _ = crawl(lake, CATEGORY, self.source(), FETCH, resources)
        instances = detect(lake, CATEGORY, photos, self.detector, self.rules, resources, self.kind)
        return photos, instances, infer(lake, CATEGORY, instances, self.models, 1, resources)

    def streamed(self, lake: Lake, resources: Any) -> tuple[Dataset, Dataset, Dataset]:
        alone = SimpleNamespace(**{**vars(resources), "actors": 1})
        detector = {"detector": self.kind, "model": self.detector, "rules": self.rules}
        stages = dict.fromkeys(("crawl", "detect", "keypoints"), alone)
        return stream(lake, CATEGORY, self.source(), FETCH, detector, self.models, 1, stages)

    def by_hand(self, lake: Lake, each: Callable[..., Any] = map) -> tuple[Dataset, Dataset, Dataset]:
        """What the stages do, in this process; `each` calls a worker for every part."""
        options, limits = check_source(self.source(), CATEGORY), FetchOptions.from_config(FETCH)
        photos = open_dataset(lake, CATEGORY, options, limits.identity())
        plan = make_plan(photos, options, None)
        work: Any = CrawlWorker(photos, plan, asdict(limits), None)
        for shard in plan.shards:
            work(shard, None)
        work.fetcher.close()
        mark_duplicates(photos)
        photos.finish(fingerprint({"ids": plan.ids}))
        instances, args = detection.plan_detect(lake, CATEGORY, photos, self.detector, self.rules, self.kind)
        work = DetectWorker(**args)
        list(each(work, photos.parts(), repeat(None)))
        detection.close(instances, photos, self.rules, Counter())
        pseudo, args = plan_infer(lake, CATEGORY, instances, self.models, 1)
        work = KeypointWorker(**args)
        list(each(work, instances.parts(), repeat(None)))
        pseudo.finish(instances.state())
        return photos, instances, pseudo


def serve(folder: Path) -> Gate:
    """An origin of 44 photos that differ, eight with the bytes of others, eight that look like others, four dead."""
    behaviours: dict[str, dict[str, Any]] = {}
    for i in range(DISTINCT):
        rough = np.random.default_rng(i).integers(0, 255, (6, 8, 3)).astype(np.uint8)
        image = cv2.resize(rough, (160, 120 + i % 3 * 40), interpolation=cv2.INTER_CUBIC)
        for quality in (92, 60) if i < 8 else (92,):
            cv2.imwrite(str(folder / f"{i}-{quality}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        behaviours[f"/p/{i}.jpg"] = {"file": f"{i}-92.jpg"}
        if i < 8:
            behaviours[f"/same/{i}.jpg"] = {"file": f"{i}-92.jpg"}
            behaviours[f"/near/{i}.jpg"] = {"file": f"{i}-60.jpg"}
    behaviours |= {f"/dead/{i}.jpg": {"status": 404} for i in range(4)}
    (folder / "origin.json").write_text(json.dumps(behaviours))
    return Gate(folder)


def networks(folder: Path) -> tuple[str, dict[str, str | None]]:
    """A detector of random weights, and the tiny lake's networks."""
    torch.manual_seed(0)
    path = folder / "detector.safetensors"
    job = {"category": CATEGORY, "settings": {"image_size": 96}}
    path.write_bytes(checkpoint_bytes(Detector(width=8, channels=16), {"job": job}))
    lake = shared_lake()
    pose = pick_model(lake, "pose", CATEGORY, None, "pose")
    models: dict[str, str | None] = {"pose": pose, "aux": pick_model(lake, "pose", CATEGORY, None, "aux", skip=pose)}
    return str(path), models | {"acsm": pick_model(lake, "acsm", CATEGORY, None, "acsm")}


def same(ours: tuple[Dataset, ...], theirs: tuple[Dataset, ...]) -> None:
    """The same datasets, finished for the same input: photos and boxes to the bit, joints but for their last bits.

    A network sees other batches where photos are told apart afterwards, and its sums round otherwise.
    """
    for one, other in zip(ours, theirs, strict=True):
        assert one.fingerprint == other.fingerprint
        sizes = [{p: m["rows"] for p, m in dataset.manifests().items()} for dataset in (one, other)]
        assert sizes[0] == sizes[1]
        assert one.finished()["input_state"] == other.finished()["input_state"]
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert one.state() == other.state()
    one, other = ours[2].read(), theirs[2].read()
    assert one["instance_id"].to_pylist() == other["instance_id"].to_pylist()
    for name in ("keypoints", "keypoints_aux", "keypoints_mt", "keypoints_3d", "heatmap_3d"):
        np.testing.assert_allclose(to_numpy(one[name], -1), to_numpy(other[name], -1), rtol=0, atol=2e-3)


def world_below(folder: Path, origin: Gate) -> World:
    """The origin's photos as metadata rows, and networks, in a folder."""
    rows = folder / "rows.txt"
    rows.write_text("".join(f"http://photos.test{path}\n" for path in origin.behaviours))
    return World(origin, rows, *networks(folder))
