"""What a round is, what stops the loop, what is said of a selection, and that the labels of a pseudo-label matter."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from test_select_stage import instances, pseudo
from tiny import CATEGORY, IMAGE_SIZE, _train_settings, shared_lake

from models.checkpoint import load_checkpoint
from pipelines.diagnostics import diagnose, entropy, held_out, with_truth
from pipelines.keypoint_worker import KeypointWorker
from pipelines.report_rounds import MEANS
from pipelines.round_pictures import write_pictures
from pipelines.round_rules import alarm, enough, size_of
from pipelines.run_record import open_run
from sandbox.truth import true_keypoints
from selection import CRITERIA, select_round
from tables import Lake, to_column, to_numpy
from trainers.average import average
from trainers.jobs import run_job

STOP: dict[str, Any] = {
    "patience": 2, "min_gain": 0.5, "drop": 3.0, "kept": [0.1, 0.9], "views": 0.5, "overlap": 0.2,
}  # fmt: skip
FINE: dict[str, Any] = {"instances": 100, "selected": 50, "evenness": 0.8, "jaccard": 0.5}


def test_a_schedule_has_an_entry_for_each_round_and_its_last_one_stays() -> None:
    assert [size_of(150, n) for n in (1, 5)] == [150, 150]
    assert [size_of([10, 20, 30], n) for n in (1, 2, 3, 4)] == [10, 20, 30, 30]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"evenness": None, "jaccard": None}, None),
        ({"selected": 0}, "nothing was selected"),
        ({"selected": 9}, "9.0% of the animals"),
        ({"selected": 91}, "91.0% of the animals"),
        ({"evenness": 0.49}, "viewpoints collapse"),
        ({"jaccard": 0.19}, "selection churns"),
    ],
)
def test_alarms_name_what_is_wrong_with_a_selection(changed: dict[str, Any], why: str | None) -> None:
    said = alarm(FINE | changed, STOP)
    assert said is None if why is None else why in str(said)


def test_the_loop_ends_on_a_fall_or_without_a_gain() -> None:
    assert enough([50.0, 51.0, 52.0], STOP) is None
    assert enough([50.0, 47.1], STOP) is None
    assert enough([50.0, 46.9], STOP) == "validation fell 3.10 points below round 0"
    assert enough([50.0, 50.4, 50.2], STOP) == "no gain on validation in 2 rounds"
    assert enough([50.0, 50.4, 50.5], STOP) is None
    assert enough([50.0, 40.0, 50.2], STOP | {"patience": 0}) is None
    assert enough([50.0, 10.0], STOP | {"drop": None}) is None


def test_entropy_by_hand() -> None:
    assert entropy(np.array([5, 5, 0, 0])) == pytest.approx(math.log(2))
    assert entropy(np.array([0, 9])) == 0
    assert math.isnan(entropy(np.zeros(8)))


def test_the_control_oracle_ranks_by_the_truth_that_it_is_given(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    boxes, labels = instances(lake), pseudo(lake, 1)
    truth = np.zeros((12, 16, 3), np.float32)
    truth[..., 2] = 1
    truth[:, :, 0] = np.arange(12)[:, None]  # the pseudo-labels say 0: off by as much as the number
    column = pa.FixedSizeListArray.from_arrays(pa.array(truth.reshape(-1)), 48)
    known = pa.table({"instance_id": [f"i{i:02d}" for i in range(12)], "truth_keypoints": column})
    rows = select_round(lake, labels, boxes, "oracle", 3, round=1, truth=known).read().sort_by("rank")
    assert rows["instance_id"].to_pylist() == [f"i{i:02d}" for i in range(12)]
    assert sum(rows["selected"].to_pylist()) == 3


# -- on a lake with everything in it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The shared lake, copied, for models and selections are added to it."""
    folder = tmp_path_factory.mktemp("rounds") / "lake"
    shutil.copytree(shared_lake().uri, folder)
    return Lake(str(folder))


def of_round(lake: Lake, number: int) -> tuple[Any, Any, Any]:
    record = open_run(lake, "default")
    pseudo_labels, chosen, found = (record.dataset(t, number) for t in ("pseudo_labels", "selections", "instances"))
    return pseudo_labels, chosen, found


def true_joints(lake: Lake, found: Any) -> pa.Table:
    rows = found.read(["instance_id", "photo_id", "bbox"])
    joints = true_keypoints(rows, f"{lake.uri}/sandbox/tiny/truth.parquet")
    return pa.table({"instance_id": rows["instance_id"], "truth_keypoints": joints})


def test_a_round_is_judged_by_the_truth_and_drawn(lake: Lake, tmp_path: Path) -> None:
    labels, chosen, found = of_round(lake, 2)
    judged = with_truth(labels, found, true_joints(lake, found))
    rows = chosen.read().sort_by("rank")
    kept = rows.filter(rows["selected"])["instance_id"].to_pylist()
    config = {"criterion": "cf_cm2", "gate": None}
    said = diagnose(labels, rows, kept[1:], judged, config)
    assert (said["instances"], said["selected"], said["judged"]) == (len(rows), len(kept), len(rows))
    assert said["jaccard"] == pytest.approx((len(kept) - 1) / len(kept))
    areas = [r["aurc"] for r in said["aurc"]]
    assert areas == sorted(areas)
    assert said["aurc"][0]["criterion"] == "oracle"
    assert {"kp_conf", "cf_mt", "cf_cm", "cf_cm2"} == said["curves"].keys()
    # Judged by its own answers the net is always right, and all animals are of the species.
    own = judged.set_column(judged.column_names.index("truth_keypoints"), "truth_keypoints", judged["keypoints"])
    perfect = diagnose(labels, rows, None, own, config)
    assert perfect["pck"]["selected"] == perfect["pck"]["all"] == [100.0, 100.0]
    assert perfect["strangers"] == 0
    assert perfect["jaccard"] is None
    write_pictures(Lake(str(tmp_path)), "drawn", said, rows, labels, found)
    for name in ("risk_coverage", "reliability", "viewpoints", "contact_sheet"):
        assert (tmp_path / f"drawn/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_truth_a_held_out_slice_judges(lake: Lake) -> None:
    labels, chosen, _ = of_round(lake, 1)
    record = open_run(lake, "default")
    nets = {"pose": record.summary["networks"]["pose"], "aux": record.summary["networks"]["aux"]}
    judged = held_out(lake, CATEGORY, nets | {"acsm": record.model_path(0)})
    assert judged is not None
    assert len(judged) == record.metric(0, "val")["instances"]  # type: ignore[index]
    said = diagnose(labels, chosen.read(), None, judged, {"criterion": "kp_conf", "gate": 0.2})
    assert said["judged"] == len(judged)
    assert said["strangers"] == 0
    assert said["reliability"]["joints"]


def test_an_average_lies_between_its_networks(lake: Lake) -> None:
    record = open_run(lake, "default")
    paths = [str(record.model_path(n)) for n in (0, 1)]
    made = average(lake, CATEGORY, *paths)
    first, second, mean = (load_checkpoint(p).state_dict() for p in (*paths, made["model"]))
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
    assert 0 <= made["metrics"]["val"]["auc_06_10"] <= 100
    assert average(lake, CATEGORY, *paths) == made


def test_columns_of_networks_that_stayed_are_taken_over(lake: Lake) -> None:
    labels, _, found = of_round(lake, 2)
    record, ids = open_run(lake, "default"), dict(labels.identity["models"])
    paths = {n: record.summary["networks"][n] for n in ("pose", "aux")} | {"acsm": record.model_path(1)}

    def kept(**changed: str) -> set[str]:
        return set(KeypointWorker(found, labels, paths, ids | changed, 3, IMAGE_SIZE, labels).kept)

    flat = {"keypoints", "keypoints_mt"}
    assert kept() == {*flat, "keypoints_aux", "keypoints_3d", "heatmap_3d"}
    assert kept(acsm="new") == {*flat, "keypoints_aux"}
    assert kept(pose="new") == {"keypoints_aux", "keypoints_3d"}
    assert kept(aux="new") == {*flat, "keypoints_3d", "heatmap_3d"}


def test_every_criterion_is_explained_in_the_report_and_on_its_page() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "selection.md").read_text(encoding="utf-8")
    assert not [c for c in CRITERIA if c not in MEANS or f"`{c}`" not in page]


@pytest.mark.slow
def test_pseudo_labels_of_other_animals_make_the_model_worse(lake: Lake) -> None:
    """The same animals, the same joints, each given to another animal: what is learnt is what the labels say."""
    scores = {}
    labels, _, found = of_round(lake, 1)
    rows, truth = labels.read(), true_joints(lake, found)
    rows = rows.filter(pc.is_in(rows["instance_id"], truth.drop_null()["instance_id"]))
    joints = truth.take(pc.index_in(rows["instance_id"], truth["instance_id"]))["truth_keypoints"]
    boxes = found.read(["instance_id", "bbox"])
    boxes = boxes.take(pc.index_in(rows["instance_id"], boxes["instance_id"]))["bbox"]
    at = rows.column_names.index("keypoints")
    for name, order in (("own", np.arange(len(rows))), ("shuffled", np.roll(np.arange(len(rows)), 1))):
        made = lake.dataset("pseudo_labels", CATEGORY, {"given": name}, slot=f"given {name}")
        made.write("all", rows.set_column(at, "keypoints", given(joints, boxes, order)), rows.schema)
        made.finish("x")
        chosen = select_round(lake, made, found, "all", 1, 1)
        settings = _train_settings()["acsm"]
        settings["plan"] |= {"steps": 150, "batch": 12, "ema": 0.9, "lr": 2.0e-3}
        settings |= {"label_share": 0.2, "labels_from": 1.0, "min_confidence": 0.0}
        tables = {"instances": found, "pseudo_labels": made, "selections": chosen}
        lineage = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in tables.items()}
        job = {"kind": "acsm", "lake": lake.uri, "category": CATEGORY, "settings": settings, "seed": 0}
        job |= {"template": open_run(lake, "default").summary["template"], "start_from": None, "pseudo": lineage}
        done = run_job(job)
        assert done["items"] == len(rows) + open_run(lake, "default").round(0)["items"]
        scores[name] = done["metrics"]["test"]["auc_06_10"]
    assert scores["own"] > scores["shuffled"] + 5, scores


def given(joints: Any, boxes: Any, order: np.ndarray) -> pa.Array:
    """Joints of the animals in another order, each moved from its own box to that of the animal it is given to."""
    places, box = to_numpy(joints, 16, 3).astype(np.float64), to_numpy(boxes, 4).astype(np.float64)
    places[..., :2] = (places[..., :2] - box[:, None, :2]) / box[:, None, 2:]
    places = places[order]
    places[..., :2] = places[..., :2] * box[:, None, 2:] + box[:, None, :2]
    return to_column(places.astype(np.float32))
