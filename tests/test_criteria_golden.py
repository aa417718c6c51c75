"""The method's formulas once more, joint by joint in plain Python, to 1e-9.

Those of animals3d prepare_data/selection_criteria.py:8-149; written from our notes on the reference, without its code.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from selection import HIGHER_IS_BETTER, score, select
from tables import to_column

N, T, K = 60, 7, 16


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    keypoints = rng.uniform(0, 500, (N, K, 3)).astype(np.float32)
    keypoints[..., 2] = rng.random((N, K))
    near = rng.normal(0, 20, (N, T + 2, K, 2)).astype(np.float32)
    views = np.concatenate([keypoints[:, None, :, :2] + near[:, :T], rng.random((N, T, K, 1))], -1)
    aux = np.concatenate([keypoints[..., :2] + near[:, T], rng.random((N, K, 1))], -1)
    return {
        "keypoints": keypoints, "keypoints_mt": views.astype(np.float32), "keypoints_aux": aux.astype(np.float32),
        "keypoints_3d": keypoints[..., :2] + near[:, T + 1],
        "bbox": np.concatenate([rng.uniform(0, 50, (N, 2)), rng.uniform(20, 400, (N, 2))], 1).astype(np.float32),
    }  # fmt: skip


def by_hand(criterion: str, a: dict[str, np.ndarray], i: int) -> float:
    p, (_, _, w, h) = a["keypoints"][i].tolist(), a["bbox"][i].tolist()
    if criterion == "kp_conf":
        return math.fsum(c for _, _, c in p)
    if criterion == "cf_mt":
        views = a["keypoints_mt"][i].tolist()
        p = views[0]
        q = [[math.fsum(v[j][axis] for v in views[1:]) / (T - 1) for axis in (0, 1)] for j in range(K)]
    else:
        q = a[{"cf_cm": "keypoints_aux", "cf_cm2": "keypoints_3d"}[criterion]][i].tolist()
    return math.fsum(math.hypot(256 / w * (p[j][0] - q[j][0]), 256 / h * (p[j][1] - q[j][1])) for j in range(K)) / K


@pytest.mark.parametrize("criterion", ["kp_conf", "cf_mt", "cf_cm", "cf_cm2"])
def test_golden_values_and_orderings(arrays: dict[str, np.ndarray], criterion: str) -> None:
    names = [f"{i:02d}" for i in range(N)]
    t = pa.table({"instance_id": names} | {k: to_column(v) for k, v in arrays.items()})
    golden = [by_hand(criterion, arrays, i) for i in range(N)]
    np.testing.assert_allclose(score(criterion, t), golden, rtol=0, atol=1e-9)
    sign = -1 if HIGHER_IS_BETTER[criterion] else 1
    order = sorted(range(N), key=lambda i: (sign * golden[i], names[i]))
    assert select(t, criterion, 10)["instance_id"].to_pylist() == [names[i] for i in order]
