"""Selection against values computed by hand from the reference's formulas."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from selection import CRITERIA, HIGHER_IS_BETTER, jaccard, pseudo_label_pck, risk_coverage, score, select
from tables import InputError, schema, to_column

BOX = [0.0, 0.0, 128.0, 64.0]  # D = diag(256/128, 256/64) = diag(2, 4)


def points(*joints: tuple[float, ...]) -> np.ndarray:
    return np.array(joints, np.float32)


def table(**columns: list) -> pa.Table:
    """Rows `a`, `b`, ... with array columns given as lists of arrays (None is null)."""
    n = len(next(iter(columns.values())))
    arrays = {k: to_column(v) if isinstance(v[0], (np.ndarray, list)) else pa.array(v) for k, v in columns.items()}
    return pa.table({"instance_id": [chr(ord("a") + i) for i in range(n)], **arrays})


def test_kp_conf_is_the_plain_sum_of_confidences() -> None:
    t = table(keypoints=[points((9, 9, 0.5), (9, 9, 0.25)), points((0, 0, 1), (0, 0, 0.5))])
    assert score("kp_conf", t).tolist() == [0.75, 1.5]
    assert HIGHER_IS_BETTER["kp_conf"]


def test_cf_cm_scales_each_axis_by_its_own_side_and_ignores_confidence() -> None:
    # Joint 0 is off by (3, 2): D gives (6, 8), length 10. Joint 1 agrees. Mean over both joints: 5.
    ours, aux = points((10, 20, 1), (7, 7, 0)), points((13, 22, 0), (7, 7, 1))
    t = table(keypoints=[ours], keypoints_aux=[aux], bbox=[BOX])
    assert score("cf_cm", t).tolist() == [5.0]
    assert score("cf_cm", table(keypoints=[ours], keypoints_aux=[aux], bbox=[[5, 5, 64, 128]]))[0] == pytest.approx(
        np.hypot(12, 4) / 2
    )


def test_cf_cm2_compares_with_the_reprojected_keypoints() -> None:
    ours = points((10, 20, 1), (7, 7, 1))
    near, far = points((10, 21), (7, 7)), points((13, 22), (7, 9))
    t = table(keypoints=[ours, ours], keypoints_3d=[far, near], bbox=[BOX, BOX])
    assert score("cf_cm2", t).tolist() == [9.0, 2.0]
    kept = select(t, "cf_cm2", 1)
    assert kept["instance_id"].to_pylist() == ["b", "a"]
    assert kept["selected"].to_pylist() == [True, False]


def test_anisotropy_can_turn_an_order_round() -> None:
    # 4 px along the short side count 16, 5 px along the long side count 10: the smaller error ranks second.
    ours = points((0, 0, 1))
    t = table(keypoints=[ours] * 2, keypoints_aux=[points((0, 4, 1)), points((5, 0, 1))], bbox=[BOX] * 2)
    assert score("cf_cm", t).tolist() == [16.0, 10.0]


def test_cf_mt_sets_the_identity_against_the_mean_of_the_others() -> None:
    # T=3, K=2. Joint 0: identity (0,0), others (2,0) and (4,4): mean (3,2), D gives (6,8), length 10.
    # Joint 1: identity (1,1), others (0,1) and (2,1): mean (1,1), length 0. Not the mean of the distances.
    views = np.stack(
        [points((0, 0, 1), (1, 1, 1)), points((2, 0, 1), (0, 1, 1)), points((4, 4, 0), (2, 1, 0))]
    )  # [T,K,3]
    t = table(keypoints=[points((50, 50, 1), (60, 60, 1))], keypoints_mt=[views], bbox=[BOX])
    assert score("cf_mt", t).tolist() == [5.0]
    assert score("cf_mt", t.drop_columns("keypoints"), joints=2).tolist() == [5.0]


def test_cf_mt_takes_the_skeleton_where_no_column_tells_k() -> None:
    views = np.random.default_rng(0).uniform(0, 64, (4, 7, 16, 3)).astype(np.float32)
    t = pa.table({"keypoints_mt": to_column(views), "bbox": to_column(np.tile(np.float32(BOX), (4, 1)))})
    expected = np.linalg.norm(
        (views[:, 0, :, :2] - views[:, 1:, :, :2].astype(np.float64).mean(1)) * [2, 4], axis=-1
    ).mean(1)
    np.testing.assert_allclose(score("cf_mt", t), expected, rtol=1e-6)


def test_cf_mt_needs_two_views_of_whole_skeletons() -> None:
    one = table(keypoints=[points((0, 0, 1))], keypoints_mt=[points((0, 0, 1))], bbox=[BOX])
    with pytest.raises(InputError, match=r"keypoints_mt=3 wide: .* at least 2 transforms"):
        score("cf_mt", one)


def test_oracle_is_the_mean_visible_error_by_the_longer_side() -> None:
    ours = points((0, 0, 1), (0, 0, 1), (0, 0, 1))
    t = table(
        keypoints=[ours, ours],
        truth_keypoints=[points((3, 4, 2), (0, 64, 1), (99, 99, 0)), points((1, 1, 0), (1, 1, 0), (1, 1, 0))],
        bbox=[BOX, BOX],
    )
    got = score("oracle", t)
    assert got[0] == pytest.approx((5 + 64) / 2 / 128)
    assert np.isnan(got[1])


def test_random_depends_on_id_and_seed_only() -> None:
    t = pa.table({"instance_id": [f"i{i}" for i in range(4000)]})
    got = score("random", t, seed=3)
    flipped = t.take(pa.array(np.arange(len(t))[::-1]))
    np.testing.assert_array_equal(score("random", flipped, seed=3)[::-1], got)
    assert (got != score("random", t, seed=4)).all()
    assert got.min() >= 0
    assert got.max() < 1
    assert abs(got.mean() - 0.5) < 0.02


@pytest.mark.parametrize("bad", [None, [0, 0, 0, 9], [0, 0, 9, 0], [0, 0, -4, 9], [0, 0, np.nan, 9]])
def test_boxes_without_area_score_nan_and_are_never_selected(bad: list | None) -> None:
    ours = points((1, 1, 1))
    t = table(bbox=[BOX, bad], keypoints=[ours, ours], keypoints_aux=[points((2, 1, 1)), ours])
    got = score("cf_cm", t)
    assert got[0] == 2.0
    assert np.isnan(got[1])
    kept = select(t, "cf_cm", 2)
    assert kept["selected"].to_pylist() == [True, False]
    assert kept["reason"].to_pylist() == ["rank 1 of 2 <= top_n 2", "score is not finite; box has no area"]
    # A criterion that reads no box scores the row, and it is still of no use to training.
    assert select(t, "kp_conf", 2)["reason"].to_pylist()[1] == "box has no area"


def test_a_missing_prediction_is_never_selected() -> None:
    ours = points((1, 1, 1))
    t = table(keypoints=[ours, ours], keypoints_3d=[points((1, 1)), None], bbox=[BOX, BOX])
    assert select(t, "cf_cm2", 9)["reason"].to_pylist() == ["rank 1 of 2 <= top_n 9", "score is not finite"]
    nulls = t.set_column(t.schema.get_field_index("keypoints_3d"), "keypoints_3d", pa.nulls(2))
    assert select(nulls, "cf_cm2", 9)["selected"].to_pylist() == [False, False]


def pool(n: int = 200) -> pa.Table:
    rng = np.random.default_rng(1)
    return pa.table(
        {
            "instance_id": [f"i{i:03d}" for i in range(n)],
            "round": pa.array(rng.integers(0, 2, n), pa.int32()),
            "keypoints": to_column(rng.integers(0, 3, (n, 16, 3)).astype(np.float32) / 4),
            "keypoints_aux": to_column(rng.uniform(0, 64, (n, 16, 3))),
            "keypoints_mt": to_column(rng.uniform(0, 64, (n, 7, 16, 3))),
            "keypoints_3d": to_column(rng.uniform(0, 64, (n, 16, 2))),
            "heatmap_3d": to_column(rng.uniform(0, 1, (n, 16))),
            "truth_keypoints": to_column(rng.uniform(0, 64, (n, 16, 3))),
            "bbox": to_column(rng.uniform(8, 64, (n, 4))),
        }
    )


CUT = sorted(c for c, found in CRITERIA.items() if found.cuts)


@pytest.mark.parametrize("criterion", CUT)
def test_select_ranks_every_row_in_any_order_of_rows(criterion: str) -> None:
    t = pool()
    kept = select(t, criterion, 30)
    assert kept.schema == schema("selections")
    assert sorted(kept["instance_id"].to_pylist()) == t["instance_id"].to_pylist()
    for r in (0, 1):
        rows = [row for row in kept.to_pylist() if row["round"] == r]
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        assert [row["selected"] for row in rows] == [row["rank"] <= 30 for row in rows]
        key = [(-row["score"] if HIGHER_IS_BETTER[criterion] else row["score"], row["instance_id"]) for row in rows]
        assert key == sorted(key)
        assert rows[0]["reason"] == f"rank 1 of {len(rows)} <= top_n 30"
        assert rows[-1]["reason"] == f"rank {len(rows)} of {len(rows)} > top_n 30"
    shuffled = t.take(pa.array(np.random.default_rng(2).permutation(len(t))))
    assert select(shuffled, criterion, 30).equals(kept)


@pytest.mark.parametrize("criterion", CUT)
def test_each_criterion_needs_its_own_columns_only_and_takes_no_rows(criterion: str) -> None:
    t = pool(5)
    own = list(dict.fromkeys(["instance_id", *CRITERIA[criterion].columns]))
    kept = select(t.select(own), criterion, 2)
    assert kept["round"].to_pylist() == [0] * 5
    assert sum(kept["selected"].to_pylist()) == 2
    assert len(select(t.slice(0, 0), criterion, 2)) == 0
    assert score(criterion, t.slice(0, 0)).shape == (0,)
    assert score(criterion, t).dtype == np.float64
    for name in CRITERIA[criterion].columns:
        if name != "instance_id":
            with pytest.raises(InputError, match=f"needs the column `{name}`"):
                score(criterion, t.drop_columns(name))


def test_plain_and_chunked_lists_read_as_they_lie() -> None:
    t = pool(6)
    plain = pa.table({n: c.cast(pa.list_(pa.float64())) if n.startswith(("key", "bb", "heat")) else c for n, c in
                      zip(t.column_names, t.columns, strict=True)})  # fmt: skip
    chunked = pa.concat_tables([t.slice(0, 2), t.slice(2)])
    for criterion in CRITERIA:
        np.testing.assert_array_equal(score(criterion, plain), score(criterion, t))
        np.testing.assert_array_equal(score(criterion, chunked), score(criterion, t))


def test_bad_arguments_are_named() -> None:
    t = pool(3)
    with pytest.raises(InputError, match="criterion=best: unknown; choose one of cf_cm, cf_cm2, cf_mt, kp_conf"):
        score("best", t)
    with pytest.raises(InputError, match="seed=1: `kp_conf` takes no parameters"):
        score("kp_conf", t, seed=1)
    with pytest.raises(InputError, match="seed=1: `rank_fusion` takes no parameters"):
        select(t, "rank_fusion", 1, seed=1)
    with pytest.raises(InputError, match="cannot be compared with 15 joints"):
        score("cf_cm", t.set_column(3, "keypoints_aux", to_column(np.zeros((3, 45)))))
    with pytest.raises(InputError, match="instance_id"):
        select(t.drop_columns("instance_id"), "kp_conf", 1)
    for top_n in (0, -1, 1.5, "many", None, True):
        with pytest.raises(InputError, match="top_n"):
            select(t, "kp_conf", top_n)  # type: ignore[arg-type]


def test_risk_coverage_by_hand() -> None:
    curve = risk_coverage(np.array([3.0, 1.0, 2.0, np.nan]), np.array([9.0, 0.0, 3.0, 1.0]))
    np.testing.assert_allclose(curve.coverage, [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.risk, [0, 1.5, 4])
    assert curve.aurc == pytest.approx(5.5 / 3)
    assert risk_coverage(np.array([1.0, 1.0]), np.array([0.0, 2.0])).risk.tolist() == [1.0, 1.0]
    assert risk_coverage(np.array([1.0, 2.0]), np.array([0.0, 2.0]), higher_is_better=True).risk.tolist() == [2.0, 1.0]
    assert np.isnan(risk_coverage(np.empty(0), np.empty(0)).aurc)


def test_jaccard() -> None:
    assert jaccard("ab", "bc") == pytest.approx(1 / 3)
    assert jaccard([], []) == 1.0


def test_pseudo_label_pck_counts_visible_joints_of_selected_rows() -> None:
    ours = points((0, 0, 1), (0, 0, 1))
    truth = points((5, 0, 2), (99, 0, 0))  # 5 px of 128 is 0.039; the invisible joint does not count
    off = points((50, 0, 2), (50, 0, 2))
    t = table(keypoints=[ours, ours], truth_keypoints=[truth, off], bbox=[BOX, BOX])
    assert pseudo_label_pck(t, np.array([True, False]), (0.03, 0.05)).tolist() == [0.0, 100.0]
    assert pseudo_label_pck(t, np.array([True, True]), (0.05,))[0] == pytest.approx(100 / 3)
