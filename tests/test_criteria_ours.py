"""Our own criteria and controls against values computed by hand, and what they are meant to do."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from selection import CRITERIA, HIGHER_IS_BETTER, calibrate, fuse_ranks, score, select
from tables import InputError, to_column

BOX = [0.0, 0.0, 100.0, 50.0]


def joints(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32)


def table(n: int = 1, **columns: np.ndarray) -> pa.Table:
    """Rows `a`, `b`, ... of the same box; arrays [N, ...] or one row's array for all."""
    ids = {"instance_id": [chr(ord("a") + i) for i in range(n)], "bbox": to_column(np.tile(np.float32(BOX), (n, 1)))}
    return pa.table(
        ids | {k: to_column(v if len(v) == n and v.ndim > 2 else np.stack([v] * n)) for k, v in columns.items()}
    )


OURS = joints((10, 20, 1.0), (50, 10, 0.5), (70, 40, 0.0))
THERE = joints((13, 24), (50, 20), (70, 40))  # off by 5, 10 and 0 px: 0.05, 0.1 and 0 of the longer side


def test_pck_distances_are_isotropic_by_the_longer_side() -> None:
    aux = np.concatenate([THERE, np.ones((3, 1), np.float32)], axis=1)
    views = np.stack([OURS, aux, aux])
    t = table(keypoints=OURS, keypoints_3d=THERE, keypoints_aux=aux, keypoints_mt=views)
    for name in ("pck_cm2", "pck_cm", "pck_mt"):
        assert score(name, t)[0] == pytest.approx(0.05, abs=1e-9)
    # The same error upwards and across counts the same, other than by the paper's D.
    up, across = (np.stack([OURS[:, :2]] * 3) + np.float32(e) for e in ([0, 5], [5, 0]))
    both = table(2, keypoints=OURS, keypoints_3d=np.stack([up[0], across[0]]))
    assert score("pck_cm2", both).tolist() == pytest.approx([0.05, 0.05], abs=1e-9)
    assert score("cf_cm2", both).tolist() == pytest.approx([25.6, 12.8], abs=1e-9)


def test_visible_cm2_puts_doubt_in_the_place_of_what_is_not_seen() -> None:
    t = table(keypoints=OURS, keypoints_3d=THERE)
    assert score("visible_cm2", t)[0] == pytest.approx((0.05 + (0.5 * 0.1 + 0.5 * 0.2) + 0.2) / 3, abs=1e-9)
    assert score("visible_cm2", t, doubt=0.0)[0] == pytest.approx(0.1 / 3, abs=1e-9)
    blind = OURS * np.float32([1, 1, 0])
    assert score("visible_cm2", table(keypoints=blind, keypoints_3d=THERE))[0] == pytest.approx(0.2, abs=1e-9)


def test_small_loss_leaves_out_what_fits_worst() -> None:
    t = table(keypoints=OURS, keypoints_3d=THERE)
    assert score("small_loss", t, share=0.67)[0] == pytest.approx(0.025, abs=1e-9)
    assert score("small_loss", t, share=1.0)[0] == pytest.approx(0.05, abs=1e-9)
    missing = table(keypoints=OURS * np.float32([[1, 1, 1], [1, 1, 1], [np.nan, 1, 1]]), keypoints_3d=THERE)
    assert np.isnan(score("small_loss", missing)[0])
    with pytest.raises(InputError, match="share=0"):
        score("small_loss", t, share=0)


def test_agreement_takes_the_worse_of_two_opinions_of_a_joint() -> None:
    moved = OURS + np.float32([0, 7, 0])  # every other view is off by 0.07
    t = table(keypoints=OURS, keypoints_3d=THERE, keypoints_mt=np.stack([OURS, moved, moved]))
    assert score("agreement", t)[0] == pytest.approx((0.07 + 0.1 + 0.07) / 3, abs=1e-7)


def test_heatmap_cm2_is_null_where_nobody_read_the_map() -> None:
    t = pa.table({"instance_id": ["a", "b"], "heatmap_3d": to_column([np.float32([0.5, 1.0]), None])})
    assert score("heatmap_cm2", t)[0] == 0.75
    assert np.isnan(score("heatmap_cm2", t)[1])
    with pytest.raises(InputError, match="needs the column `heatmap_3d`"):
        score("heatmap_cm2", t.select(["instance_id"]))


def test_calibrated_confidence_reads_the_curve() -> None:
    t = table(keypoints=OURS)
    assert score("calibrated_conf", t)[0] == pytest.approx(0.5, abs=1e-9)  # no curve: the mean confidence
    curve = [[0.25, 0.0], [0.75, 0.8]]
    assert score("calibrated_conf", t, curve=curve)[0] == pytest.approx((0.8 + 0.4 + 0.0) / 3, abs=1e-9)
    for bad in ([[0.5, 1.0], [0.5, 0.0]], [0.0, 1.0], []):
        with pytest.raises(InputError, match="curve"):
            score("calibrated_conf", t, curve=bad)


def test_calibration_pools_what_is_out_of_order() -> None:
    # 0.2 and 0.4 are out of order and share 1 of 2; 0.8 stands twice, both right.
    curve = calibrate(np.array([0.8, 0.2, 0.4, 0.1, 0.8]), np.array([True, True, False, False, True]))
    np.testing.assert_allclose(curve, [[0.1, 0.0], [0.3, 0.5], [0.8, 1.0]])
    rng = np.random.default_rng(0)
    said = rng.random(4000)
    curve = calibrate(said, rng.random(4000) < said**2)
    knots = np.array(curve)
    assert (np.diff(knots[:, 0]) > 0).all()
    assert (np.diff(knots[:, 1]) > 0).all()
    at = np.linspace(0.1, 0.9, 9)
    assert np.abs(np.interp(at, knots[:, 0], knots[:, 1]) - at**2).max() < 0.08
    with pytest.raises(InputError, match="confidence"):
        calibrate(np.empty(0), np.empty(0))


def test_rank_fusion_shares_ties_and_ranks_within_the_round() -> None:
    np.testing.assert_allclose(
        fuse_ranks(np.array([1.0, 2.0, 2.0, np.inf]), np.array([9.0, 5.0, 7.0, 1.0])),
        [(1 + 3) / 6, (2.5 + 1) / 6, (2.5 + 2) / 6, np.nan],
    )
    assert np.isnan(fuse_ranks(np.array([np.inf]), np.array([1.0])))[0]
    rng = np.random.default_rng(0)
    made = {
        "keypoints": rng.random((6, 3, 3)),
        "keypoints_mt": rng.random((6, 4, 3, 3)),
        "keypoints_3d": rng.random((6, 3, 2)),
    }
    t = table(6, **{k: v.astype(np.float32) for k, v in made.items()})
    fuses = CRITERIA["rank_fusion"].fuses
    ranks = [np.argsort(np.argsort(-score(c, t) if HIGHER_IS_BETTER[c] else score(c, t))) + 1 for c in fuses]
    np.testing.assert_allclose(score("rank_fusion", t), np.mean(ranks, axis=0) / 6)
    # Beside rows of another round, a round's scores are those it has alone.
    both = pa.concat_tables([t.append_column("round", pa.array([r] * 6, pa.int32())) for r in (0, 1)])
    alone = select(t, "rank_fusion", 2)
    for number in (0, 1):
        rows = select(both, "rank_fusion", 2).slice(6 * number, 6)
        assert rows.drop_columns("round").equals(alone.drop_columns("round"))


def test_all_keeps_what_has_a_box_whatever_top_n_is() -> None:
    t = pa.table({"instance_id": list("cab"), "bbox": to_column(np.float32([BOX, BOX, [0, 0, 0, 1]]))})
    kept = select(t, "all", 1).to_pylist()
    assert [(r["instance_id"], r["selected"], r["reason"]) for r in kept] == [
        ("a", True, "rank 1 of 3, all are kept"), ("c", True, "rank 2 of 3, all are kept"),
        ("b", False, "box has no area"),
    ]  # fmt: skip


SHAKEN = ("cf_cm2", "cf_cm", "cf_mt", "pck_cm2", "pck_cm", "pck_mt", "visible_cm2", "small_loss", "agreement")


@pytest.mark.parametrize("criterion", [*SHAKEN, "kp_conf", "calibrated_conf", "heatmap_cm2", "rank_fusion"])
def test_criteria_put_good_predictions_first(criterion: str) -> None:
    """Noise of known size on every witness of the truth: each criterion finds the clean half far better than chance."""
    rng = np.random.default_rng(1)
    n, noise = 200, np.repeat([1.0, 12.0], 100)
    truth = rng.uniform(10, 90, (n, 16, 2))
    sure = np.exp(-noise / 10)[:, None, None] * rng.uniform(0.8, 1.0, (n, 16, 1))

    def seen(*views: int) -> np.ndarray:
        at = truth.reshape(n, *[1] * len(views), 16, 2) + rng.normal(size=(n, *views, 16, 2)) * noise.reshape(
            -1, *[1] * (2 + len(views))
        )
        return np.concatenate([at, np.broadcast_to(sure.reshape(n, *[1] * len(views), 16, 1), (*at.shape[:-1], 1))], -1)

    columns = {"keypoints": seen(), "keypoints_aux": seen(), "keypoints_mt": seen(7), "keypoints_3d": seen()[..., :2]}
    made = {k: to_column(v.astype(np.float32)) for k, v in columns.items()}
    made |= {
        "bbox": to_column(np.tile(np.float32(BOX), (n, 1))),
        "heatmap_3d": to_column(sure[..., 0].astype(np.float32)),
    }
    t = pa.table({"instance_id": [f"{i:03d}" for i in range(n)], **made})
    kept = select(t, criterion, 100)
    assert sum(int(i) < 100 for i in kept.filter(kept["selected"])["instance_id"].to_pylist()) >= 95
