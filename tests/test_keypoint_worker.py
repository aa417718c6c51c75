"""The keypoint worker by hand: crops that fail, rounds that add and leave out networks, parts a round lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny import CATEGORY, shared_lake

from pipelines.keypoint_worker import KeypointWorker
from pipelines.keypoints import forget_outdated, plan_infer
from pipelines.model_files import newest_models, pick_model
from tables import Dataset, Lake, schema


def networks() -> dict[str, str | None]:
    pose = pick_model(shared_lake(), "pose", CATEGORY, None, "pose")
    aux = pick_model(shared_lake(), "pose", CATEGORY, None, "aux", skip=pose)
    return {"pose": pose, "aux": aux, "acsm": pick_model(shared_lake(), "acsm", CATEGORY, None, "acsm")}


def animals(lake: Lake, broken: tuple[int, ...] = ()) -> Dataset:
    """Four animals in a part; the crops of some are no JPEG."""
    rows = shared_lake().latest("instances", CATEGORY).read().slice(0, 4)
    crops = [b"no jpeg" if i in broken else crop for i, crop in enumerate(rows["crop"].to_pylist())]
    rows = rows.set_column(rows.column_names.index("crop"), "crop", pa.array(crops, pa.binary()))
    rows = rows.set_column(rows.column_names.index("duplicate_of"), "duplicate_of", pa.array([None] * 4, pa.string()))
    made = lake.dataset("instances", CATEGORY, {"broken": list(broken)})
    made.write("p", rows, schema("instances"))
    return made


def labelled(
    lake: Lake, found: Dataset, nets: dict[str, str | None], number: int = 1, before: Dataset | None = None
) -> tuple[Dataset, dict[str, int]]:
    pseudo, args = plan_infer(lake, CATEGORY, found, nets, number)
    return pseudo, KeypointWorker(**args, before=before)("p", None)


def older(nets: dict[str, str | None]) -> dict[str, str | None]:
    """With another 3D network."""
    others: Any = [m["model"] for m in newest_models(shared_lake(), "acsm", CATEGORY) if m["model"] != nets["acsm"]]
    return {**nets, "acsm": others[0]}


def test_a_crop_that_fails_costs_its_own_row(tmp_path: Path) -> None:
    lake, nets = Lake(str(tmp_path)), networks()
    found = animals(lake, broken=(2,))
    names = found.read(["instance_id"])["instance_id"].to_pylist()
    whole, _ = labelled(lake, animals(lake), nets)
    pseudo, counts = labelled(lake, found, nets)
    assert counts == {"instances": 3, "lost": 1}
    assert list(pseudo.manifests()["p"]["lost"]) == [names[2]]
    assert "cannot be decoded" in pseudo.manifests()["p"]["lost"][names[2]]
    theirs = {row["instance_id"]: row for row in whole.read().to_pylist()}
    for row in pseudo.read().to_pylist():
        for joint, same in zip(row["keypoints"], theirs[row["instance_id"]]["keypoints"], strict=True):
            assert joint == pytest.approx(same, abs=0.05)
    file = pseudo.manifests()["p"]["file"]
    forget_outdated(pseudo, found)
    assert pseudo.manifests()["p"]["file"] == file
    # The next round takes over what it can, and knows what was lost.
    later, counts = labelled(lake, found, older(nets), 2, before=pseudo)
    assert counts == {"instances": 3, "lost": 1}
    assert later.read(["keypoints"]).equals(pseudo.read(["keypoints"]))
    # An animal that turns out to be a copy leaves; the one that was lost still counts as known.
    found.overlay(pa.table({"instance_id": [names[0]], "duplicate_of": ["another"]}))
    forget_outdated(pseudo, found)
    assert pseudo.read(["instance_id"])["instance_id"].to_pylist() == [names[1], names[3]]
    assert list(pseudo.manifests()["p"]["lost"]) == [names[2]]


def test_a_part_without_any_crop_that_works_is_not_committed(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    with pytest.raises(RuntimeError, match="fail on every crop of p"):
        labelled(lake, animals(lake, broken=(0, 1, 2, 3)), networks())


def test_a_round_may_leave_the_3d_network_out(tmp_path: Path) -> None:
    lake, nets = Lake(str(tmp_path)), networks()
    found = animals(lake)
    first, _ = labelled(lake, found, nets)
    flat, counts = labelled(lake, found, {**nets, "acsm": None}, 2, before=first)
    assert counts == {"instances": 4}
    assert flat.read(["keypoints_mt"]).equals(first.read(["keypoints_mt"]))
    for name in ("keypoints_3d", "heatmap_3d", "model_3d"):
        assert flat.read([name])[name].null_count == 4


def test_a_part_that_the_former_round_lost_is_predicted_whole(tmp_path: Path) -> None:
    lake, nets = Lake(str(tmp_path)), networks()
    found = animals(lake)
    first, _ = labelled(lake, found, nets)
    taken = labelled(lake, found, older(nets), 2, before=first)[0].read()
    first.forget("p")
    again, counts = labelled(lake, found, older(nets), 2, before=first)
    assert counts == {"instances": 4}
    assert again.read().equals(taken)
