"""Diagnostics, the viewpoint and the rules beside the criterion, against values told in advance."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from selection import (
    VIEW_NAMES,
    aurc_table,
    azimuth,
    gated,
    passing,
    reliability,
    risk_coverage,
    select,
    view,
    viewpoint_histogram,
)
from tables import QUADRUPED, InputError, to_column, to_numpy

BOX = [0.0, 0.0, 100.0, 50.0]


def test_aurc_lies_between_chance_and_the_truth() -> None:
    rng = np.random.default_rng(0)
    n, quality = 400, rng.random(400)
    truth = rng.uniform(0, 100, (n, 16, 2))
    error = quality[:, None, None] * 8
    ours, three = (truth + error * rng.normal(size=(n, 16, 2)) for _ in range(2))
    sure = np.concatenate([ours, np.broadcast_to(1 - quality[:, None, None], (n, 16, 1))], 2)
    seen = np.concatenate([truth, np.ones((n, 16, 1))], 2)
    made = {"keypoints": sure, "keypoints_3d": three, "truth_keypoints": seen, "bbox": np.tile(BOX, (n, 1))}
    t = pa.table({"instance_id": [str(i) for i in range(n)]} | {k: to_column(v) for k, v in made.items()})
    t = t.append_column("keypoints_aux", to_column([None] * n, 48))
    found = aurc_table(t)
    rows = {r["criterion"]: r for r in found.to_pylist()}
    assert {"kp_conf", "cf_cm2", "pck_cm2", "visible_cm2", "small_loss", "calibrated_conf"} < set(rows)
    assert not {"cf_cm", "cf_mt", "heatmap_cm2", "all"} & set(rows)  # nothing to score them by
    assert found["aurc"].to_pylist() == sorted(found["aurc"].to_pylist())
    assert (rows["oracle"]["captured"], rows["random"]["captured"]) == (100, 0)
    assert found["criterion"].to_pylist()[0] == "oracle"
    assert 80 < rows["kp_conf"]["captured"] < 100
    assert 60 < rows["cf_cm2"]["captured"] < 100
    # Errors of one's own, and rows without one.
    own = np.where(np.arange(n) < 10, np.nan, quality)
    rows = {r["criterion"]: r for r in aurc_table(t, own, ["kp_conf"]).to_pylist()}
    assert rows["kp_conf"]["instances"] == n - 10
    assert rows["kp_conf"]["captured"] == pytest.approx(100, abs=0.1)
    assert rows["random"]["aurc"] == pytest.approx(quality[10:].mean())
    assert rows["oracle"]["aurc"] == pytest.approx(risk_coverage(quality[10:], quality[10:]).aurc)
    with pytest.raises(InputError, match="none has an error"):
        aurc_table(t, np.full(n, np.nan))


def test_reliability_by_hand() -> None:
    found = reliability(np.array([0.1, 0.3, 0.9, 1.0, np.nan]), np.array([0, 1, 1, 1, 0]), bins=2)
    np.testing.assert_allclose(found.confidence, [0.2, 0.95])
    np.testing.assert_allclose(found.correct, [0.5, 1.0])
    assert found.joints.tolist() == [2, 2]
    assert found.ece == pytest.approx((2 * 0.3 + 2 * 0.05) / 4)
    empty = reliability(np.array([0.1]), np.array([1]), bins=2)
    assert np.isnan(empty.correct[1])
    assert np.isnan(reliability(np.empty(0), np.empty(0)).ece)


# A body 3 long and 1 wide, x to its left and z forward, y down; eyes, ears, nose, throat, tail, withers and legs.
BODY = np.array([
    [.2, 0, 2], [-.2, 0, 2], [.3, -.2, 1.9], [-.3, -.2, 1.9], [0, .2, 2.2], [0, .3, 1.5], [0, 0, -1.5], [0, 0, 1.5],
    [.5, 1, 1.5], [-.5, 1, 1.5], [.5, 1, -1.5], [-.5, 1, -1.5],
    [.5, 2, 1.5], [-.5, 2, 1.5], [.5, 2, -1.5], [-.5, 2, -1.5],
])  # fmt: skip


def facing(degrees: float, k: int = 16) -> np.ndarray:
    """Joints [K,3] of the body turned so: 0 faces the camera, its left at the right of the picture."""
    a = np.radians(degrees)
    x = np.cos(a) * BODY[:, 0] + np.sin(a) * BODY[:, 2]
    return np.stack([50 + 10 * x, 50 + 10 * BODY[:, 1], np.ones(16)], 1)[:k].astype(np.float32)


def test_a_viewpoint_is_told_from_joints_alone() -> None:
    turns = np.arange(0, 360, 15.0)
    t = pa.table({"keypoints": to_column(np.stack([facing(d) for d in turns]))})
    off = (azimuth(t) - turns + 180) % 360 - 180
    assert np.abs(off).max() < 15
    assert [VIEW_NAMES[i] for i in view(t)[::3]] == list(VIEW_NAMES)
    assert viewpoint_histogram(t).sum() == len(turns)
    assert viewpoint_histogram(t, turns == 90.0).tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    # What is not seen does not count, and an animal of which nothing is seen has no viewpoint.
    hidden = np.stack([facing(90), facing(90)])
    hidden[0, 4, :] = (9999, 0, 0)
    hidden[1, :, 2] = 0
    assert view(pa.table({"keypoints": to_column(hidden)})).tolist() == [2, -1]
    assert viewpoint_histogram(pa.table({"keypoints": pa.nulls(3)})).sum() == 0
    assert len(BODY) == len(QUADRUPED)


def turned(views: list[float], users: list[str | None]) -> pa.Table:
    """Rows `a`, `b`, ... of falling confidence, so that the alphabet is the ranking of `kp_conf`."""
    joints = np.stack([facing(d) * np.float32([1, 1, 1 - 0.05 * i]) for i, d in enumerate(views)])
    names = [chr(ord("a") + i) for i in range(len(views))]
    return pa.table({"instance_id": names, "keypoints": to_column(joints), "author": users})


def test_quotas_go_down_the_ranking() -> None:
    t = turned([90, 90, 90, 0, 0, 180], ["x", "y", "x", "x", None, None])
    kept = {r["instance_id"]: (r["selected"], r["reason"]) for r in select(t, "kp_conf", 3, per_view=2).to_pylist()}
    assert [i for i, (chosen, _) in kept.items() if chosen] == ["a", "b", "d"]
    assert kept["c"] == (False, "rank 3 of 6, enough of its view rank better")
    assert kept["d"] == (True, "rank 4 of 6, 3 by quota <= top_n 3")
    assert kept["e"] == (False, "rank 5 of 6, 4 by quota > top_n 3")
    # The user's quota first; those it keeps out leave room in their viewpoint. Nobody is no user.
    both = select(t, "kp_conf", 9, per_user=1, per_view=2).to_pylist()
    assert [r["instance_id"] for r in both if r["selected"]] == ["a", "b", "e", "f"]
    assert both[2]["reason"] == "rank 3 of 6, enough of its user rank better"
    shuffled = t.take(pa.array([5, 3, 1, 0, 2, 4]))
    assert select(shuffled, "kp_conf", 9, per_user=1, per_view=2).to_pylist() == both
    # Quotas count within a round.
    rounds = pa.concat_tables([t.append_column("round", pa.array([r] * 6, pa.int32())) for r in (0, 1)])
    assert sum(select(rounds, "kp_conf", 9, per_user=1)["selected"].to_pylist()) == 2 * 4
    with pytest.raises(InputError, match="needs the column `author`"):
        select(t.drop_columns("author"), "kp_conf", 3, per_user=1)


def test_the_gate_masks_joints_and_drops_what_has_too_few() -> None:
    ours = np.stack([facing(0)] * 3)
    three = ours[..., :2].copy()
    three[0, 0, 0] += 30  # one joint of the first is off
    three[1, :9] += 30  # most of the second
    made = {"keypoints": ours, "keypoints_3d": three, "bbox": np.tile(np.float32(BOX), (3, 1))}
    t = pa.table({"instance_id": list("abc")} | {k: to_column(v) for k, v in made.items()})
    keep = passing(t, 0.1)
    assert keep.sum(axis=1).tolist() == [15, 7, 16]
    masked = to_numpy(gated(t, keep)["keypoints"], 16, 3)
    assert masked[0, :, 2].tolist() == [0.0] + [1.0] * 15
    np.testing.assert_array_equal(masked[..., :2], ours[..., :2])
    kept = select(t, "kp_conf", 3, gate=0.1).to_pylist()
    assert [(r["instance_id"], r["score"], r["selected"]) for r in kept] == [
        ("c", 16.0, True), ("a", 15.0, True), ("b", 7.0, False),
    ]  # fmt: skip
    assert kept[2]["reason"] == "most joints fail the gate"
    with pytest.raises(InputError, match=r"gate=0\.1: needs the column `keypoints_3d`"):
        select(t.drop_columns("keypoints_3d"), "kp_conf", 3, gate=0.1)


@pytest.mark.parametrize(
    "rule", [{"gate": 0}, {"gate": "wide"}, {"per_view": 0}, {"per_user": 1.5}, {"per_user": True}]
)
def test_rules_out_of_range_are_named(rule: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(rule))):
        select(turned([0], [None]), "kp_conf", 1, **rule)
