"""The fused stream against the stages one after the other: the same tables, whoever begins and whoever finishes."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from streaming import CATEGORY, FETCH, RULES, Gate, World, same, serve, world_below

from models.photo import decode_photo
from pipelines import crawl_worker, plan_shards
from pipelines.detect_rules import Rules, sift, wanted_classes
from pipelines.detectors import open_detector
from pipelines.stage import DEATHS, ON_GPU
from pipelines.stream import stage_resources, stream
from tables import Dataset, InputError, Lake


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch, serve(folder) as origin:
        patch.setattr(plan_shards, "SHARD_ROWS", 16)  # several shards of several parts each
        yield world_below(folder, origin)


@pytest.fixture(scope="module")
def staged(world: World, tmp_path_factory: pytest.TempPathFactory, ray_local: SimpleNamespace) -> Any:
    return world.staged(Lake(str(tmp_path_factory.mktemp("staged") / "lake")), ray_local)


@pytest.fixture(scope="module")
def streamed(world: World, tmp_path_factory: pytest.TempPathFactory, ray_local: SimpleNamespace) -> Any:
    return world.streamed(Lake(str(tmp_path_factory.mktemp("streamed") / "lake")), ray_local)


@pytest.mark.ray
def test_streamed_is_staged_row_for_row(staged: Any, streamed: Any) -> None:
    same(staged, streamed)
    photos, instances, pseudo = streamed
    assert len(photos.parts()) >= 8
    assert photos.parts() == instances.parts() == pseudo.parts()
    rows = instances.read()
    # It had to tell equal photos apart afterwards: the rows of some were made, and went.
    done = [d.finished()["summary"] for d in streamed]
    assert done[0]["duplicates"] == 8
    assert 0 < done[1]["copies"] <= 16
    assert done[1]["near_duplicates"] == staged[1].finished()["summary"]["near_duplicates"] >= 4
    assert done[1]["units"] == done[2]["units"] == len(photos.parts())
    assert len(pseudo.read(["instance_id"])) < len(rows)


@pytest.mark.ray
def test_how_the_stages_went_is_kept(streamed: Any) -> None:
    pseudo = streamed[2]
    kept = pseudo.files.read_json(f"{pseudo.path}/_stream.json")
    assert kept["tables"] == ["photos", "instances", "pseudo_labels"]
    assert kept["moments"][0][1:] == [0, 0, 0]
    assert kept["moments"][-1][1:] == [64, 64, 64]
    assert len(kept["rows_per_s"]) == 3
    assert min(kept["rows_per_s"]) > 0
    assert all(0 <= n <= 64 for n in kept["most_waiting"])


def interrupted(whole: tuple[Dataset, ...], folder: Path) -> Lake:
    """A copy of a lake as a kill might leave it: parts of every table missing, no stage finished."""
    shutil.copytree(whole[0].files.uri, folder)
    for step, dataset in enumerate(whole):
        manifests = folder / dataset.path / "_manifests"
        for i, path in enumerate(sorted(manifests.iterdir())):
            if i % 4 <= step:  # what the first table lacks the others lack too
                path.unlink()
        for name in ("_finished.json", "_overlay.parquet"):
            (folder / dataset.path / name).unlink(missing_ok=True)
    return Lake(str(folder))


@pytest.mark.ray
@pytest.mark.parametrize("how", ["staged", "streamed"])
def test_either_way_finishes_what_the_other_began(
    world: World, how: str, request: pytest.FixtureRequest, tmp_path: Path, ray_local: SimpleNamespace
) -> None:
    whole = request.getfixturevalue({"staged": "streamed", "streamed": "staged"}[how])
    lake = interrupted(whole, tmp_path / "lake")
    before = {d.table: d.manifests() for d in whole}
    asked = sum(world.origin.requests.values())
    made = getattr(world, how)(lake, ray_local)
    same(whole, made)
    photos, instances, _ = made
    kept = [p for p, m in instances.manifests().items() if m["file"] == before["instances"][p]["file"]]
    assert len(kept) >= len(instances.parts()) // 2 - 1  # what is committed is not done again
    assert sum(world.origin.requests.values()) - asked <= 8 * -(-len(photos.parts()) // 4) + 8


@pytest.mark.ray
def test_real_boxes_of_real_photos(world: World, shared_data: Path, tmp_path: Path, ray_local: SimpleNamespace) -> None:
    """YOLOX on the 30 COCO photos, streamed: the boxes that the worker finds in one photo after the other."""
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'wildshape[onnx]'")
    shutil.copytree(shared_data / "coco_animals" / "images", tmp_path / "web")
    names = sorted(p.name for p in (tmp_path / "web").glob("*.jpg"))
    (tmp_path / "web" / "origin.json").write_text(json.dumps({f"/{name}": {"file": name} for name in names}))
    model = str(shared_data / "detector" / "yolox_nano.onnx")
    rules = {**RULES, "score": 0.3, "most": 20, "classes": ["cat", "dog", "horse", "sheep", "cow", "bird", "bear"]}
    with Gate(tmp_path / "web") as origin:
        real = world_below(tmp_path, origin)._replace(detector=model, kind="onnx", rules=rules)
        photos, instances, pseudo = real.streamed(Lake(str(tmp_path / "lake")), ray_local)
    found = instances.read(["photo_id", "bbox", "score", "duplicate_of"])
    assert len(found) >= 30
    assert len(pseudo.read(["instance_id"])) == found["duplicate_of"].null_count
    streamed: dict[str, list[np.ndarray]] = {}
    for row in found.sort_by([("score", "descending")]).to_pylist():
        streamed.setdefault(row["photo_id"], []).append(np.array([*row["bbox"], row["score"]]))
    checked = Rules.read(rules)
    net = open_detector("onnx", model, checked, "cpu")
    wanted = wanted_classes(net.names, rules["classes"], CATEGORY)
    for row in photos.read(["photo_id", "bytes"]).to_pylist():
        image = decode_photo(row["bytes"])
        assert image is not None
        left = sift(net([image])[0], wanted, (image.shape[1], image.shape[0]), checked, Counter())
        alone = np.column_stack([left.boxes, left.scores])
        np.testing.assert_allclose(streamed.get(row["photo_id"], np.zeros((0, 5))), alone, rtol=0, atol=1e-3)


@pytest.mark.ray
def test_a_finished_stream_writes_nothing(world: World, streamed: Any, ray_local: SimpleNamespace) -> None:
    def files() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in Path(streamed[0].files.uri).rglob("*") if p.is_file()}

    before = files()
    world.streamed(Lake(streamed[0].files.uri), ray_local)
    assert files() == before


@pytest.mark.ray
def test_a_shard_that_kills_its_actors_is_lost_and_no_other(
    world: World, tmp_path: Path, ray_local: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a crawl that is extended, whose tables are not to pass for whole ones then."""
    lake, notes, fewer = Lake(str(tmp_path / "lake")), tmp_path / "notes", tmp_path / "fewer.txt"
    fewer.write_text("".join(world.rows.read_text().splitlines(keepends=True)[:40]))
    tables = world._replace(rows=fewer).by_hand(lake)
    before = len(tables[0].parts())

    class Deadly(crawl_worker.CrawlWorker):
        def parts(self, name: str, counts: Counter[str]) -> Iterator[str]:
            if name.endswith("_0001"):
                with notes.open("a") as f:
                    f.write("x")
                os._exit(1)
            yield from super().parts(name, counts)

    monkeypatch.setattr(crawl_worker, "CrawlWorker", Deadly)
    with pytest.raises(RuntimeError, match=rf"1 of \d units were lost; first: \w+_0001: {DEATHS} actors died of it"):
        world.streamed(lake, ray_local)
    assert len(notes.read_text()) == DEATHS
    assert len(tables[0].parts()) > before
    assert tables[0].parts() == tables[1].parts() == tables[2].parts()
    assert [t.finished() for t in tables] == [None, None, None]


def bad_stream(world: World, lake: Lake, stages: Any, **source: Any) -> InputError:
    detector = {"detector": world.kind, "model": world.detector, "rules": world.rules}
    with pytest.raises(InputError) as caught:
        stream(lake, CATEGORY, world.source() | source, FETCH, detector, world.models, 1, stages)
    return caught.value


@pytest.mark.ray
def test_an_actor_that_the_local_ray_cannot_hold_is_refused(
    world: World, tmp_path: Path, ray_local: SimpleNamespace
) -> None:
    greedy = SimpleNamespace(**{**vars(ray_local), "gpus": 64})
    stages = {"crawl": ray_local, "detect": greedy, "keypoints": ray_local}
    asked = world.origin.requests.copy()
    assert bad_stream(world, Lake(str(tmp_path)), stages).argument == "stages.detect.gpus"
    assert world.origin.requests == asked


def test_a_source_without_photos_is_refused_before_ray_starts(world: World, tmp_path: Path) -> None:
    refused = bad_stream(world, Lake(str(tmp_path)), {}, extensions=["png"])
    assert refused.argument == "source.path"


def test_parts_may_be_done_side_by_side(world: World, tmp_path: Path) -> None:
    """As in an actor on a GPU: threads share its networks."""
    one_by_one = world.by_hand(Lake(str(tmp_path / "one_by_one")))
    with ThreadPoolExecutor(ON_GPU) as pool:
        same(one_by_one, world.by_hand(Lake(str(tmp_path / "side_by_side")), pool.map))


def test_resources_of_a_stage_are_checked_by_its_name() -> None:
    train = {"workers": 1, "cpus": 0.1, "gpus": 0, "threads": 1, "max_failures": 0}
    shared = {"address": None, "actors": 2, "cpus": 1, "gpus": 0, "threads": 1, "failure_budget": 0.0, "train": train}
    own: dict[str, Any] = {"crawl": {"actors": 1}, "detect": {"gpus": 0.25}, "keypoints": None}
    made = stage_resources(shared, own)
    assert (made["crawl"].actors, made["detect"].gpus, made["keypoints"].actors) == (1, 0.25, 2)
    for change, argument in [
        ({"detect": {"gpus": 1.5}}, "stages.detect.gpus"),
        ({"keypoints": {"actor": 1}}, "stages.keypoints.actor"),
        ({"select": {}}, "stages.select"),
    ]:
        with pytest.raises(InputError) as caught:
            stage_resources(shared, own | change)
        assert caught.value.argument == argument
