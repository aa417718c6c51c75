"""How good a round's selection is: a plain-JSON record, from the truth where there is one, else from held-out labels.

Nothing here feeds training. The record is `<lake>/runs/<run>/round-<n>/diagnostics.json`, and
`pipelines.report_diagnostics` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selection import (
    CRITERIA,
    VIEW_NAMES,
    Rules,
    aurc_table,
    jaccard,
    passing,
    pseudo_label_pck,
    reliability,
    risk_coverage,
    score,
    select,
    viewpoint_histogram,
)
from selection.criteria import costs
from tables import Dataset, Lake, join_rows, to_column, to_numpy

THRESHOLDS = (0.05, 0.1)
CORRECT = 0.1  # a joint is right within this share of the box's longer side
WORST = 0.5  # most error an instance is charged, and that of a detection that is none of the species
CURVES = ("kp_conf", "cf_mt", "cf_cm", "cf_cm2")  # drawn beside the run's own criterion
POINTS = 60  # of a curve that is kept
BATCH = 64  # held-out images at once


def diagnose(
    pseudo: Dataset, chosen: pa.Table, former: Iterable[str] | None, judged: pa.Table | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """What is known of a selection.

    Args:
        pseudo: the round's pseudo-labels; only instances in `chosen` are looked at.
        chosen: rows of `selections`, of all instances.
        former: instances that the round before selected; None: there is none.
        judged: `pseudo_labels` joined with `bbox` and `truth_keypoints` (and whatever else criteria need), of the
            same instances or of a held-out slice, where the criterion chooses as large a share; None: no truth at all.
        config: with `criterion` and the rules.

    Returns:
        `instances, selected`; `jaccard` with the former set; `views` (`all` and `selected`, a count for each of
        `selection.VIEW_NAMES`) and `evenness`, the entropy of the selected views over that of all; and with `judged`:
        `judged` (its rows), `pck` (`selected` and `all`, percent at each of `THRESHOLDS`), `strangers` (percent of the
        selected without truth), `aurc` (rows of `selection.aurc_table`), `curves` (criterion -> `coverage, risk`),
        `reliability` and its `ece`. What cannot be told is None.
    """
    kept = chosen.filter(chosen["selected"])["instance_id"]
    views = {"all": _views(pseudo, chosen["instance_id"]), "selected": _views(pseudo, kept)}
    spread = entropy(views["all"])
    found: dict[str, Any] = {
        "criterion": config["criterion"], "instances": len(chosen), "selected": len(kept),
        "jaccard": None if former is None else jaccard(kept.to_pylist(), former),
        "views": {name: counts.tolist() for name, counts in views.items()},
        "evenness": _known(entropy(views["selected"]) / spread if spread else math.nan),
    }  # fmt: skip
    if judged is not None and pc.any(pc.is_valid(judged["truth_keypoints"])).as_py():
        found |= _judge(judged, kept, len(kept) / max(1, len(chosen)), config)
    return found


def entropy(counts: np.ndarray) -> float:
    """Shannon entropy of a histogram in nats; NaN where nothing was counted."""
    total = counts.sum()
    share = counts[counts > 0] / total if total else np.array([math.nan])
    return float(-(share * np.log(share)).sum())


def _views(pseudo: Dataset, ids: pa.ChunkedArray) -> np.ndarray:
    counts = np.zeros(len(VIEW_NAMES), np.int64)
    for part in pseudo.parts():
        rows = pseudo.read(["instance_id", "keypoints"], [part])
        counts = counts + viewpoint_histogram(rows.filter(pc.is_in(rows["instance_id"], ids)))
    return counts


def _judge(rows: pa.Table, kept: pa.ChunkedArray, share: float, config: Mapping[str, Any]) -> dict[str, Any]:
    criterion = config["criterion"]
    inside = pc.is_in(rows["instance_id"], kept).to_numpy()
    if not inside.any():  # a held-out slice
        made = select(rows, criterion, max(1, round(share * len(rows))))
        inside = pc.is_in(rows["instance_id"], made.filter(made["selected"])["instance_id"]).to_numpy()
    seen = rows
    if (gate := Rules(gate=config["gate"]).gate) is not None:  # masked joints teach nothing, so they do not count
        truth = to_numpy(rows["truth_keypoints"], -1, 3) * passing(rows, gate)[..., None]
        at = rows.column_names.index("truth_keypoints")
        seen = rows.set_column(at, "truth_keypoints", to_column(truth, 3 * truth.shape[1]))
    known = pc.is_valid(rows["truth_keypoints"]).to_numpy()
    pck = {
        name: [_known(v) for v in pseudo_label_pck(table, mask & known, THRESHOLDS)]
        for name, table, mask in (("selected", seen, inside), ("all", rows, np.ones(len(rows), bool)))
    }
    error = score("oracle", rows)
    error = np.where(np.isfinite(error), np.minimum(error, WORST), WORST)
    confidence, correct = _joints(rows.filter(pa.array(known)))
    bins = reliability(confidence, correct)
    return {
        "judged": len(rows), "pck": pck, "strangers": _known(100 * (1 - known[inside].mean())),
        "aurc": [{k: _known(v) for k, v in r.items()} for r in aurc_table(rows, error).to_pylist()],
        "curves": {c: _curve(rows, c, error) for c in _drawn(rows, criterion)},
        "reliability": {
            "confidence": [_known(v) for v in bins.confidence], "correct": [_known(v) for v in bins.correct],
            "joints": bins.joints.tolist(),
        },
        "ece": _known(bins.ece),
    }  # fmt: skip


def _drawn(rows: pa.Table, criterion: str) -> list[str]:
    """Criteria whose columns are there: those of the method, and the run's own if it ranks at all."""
    there = {name for name in rows.column_names if rows[name].null_count < len(rows)}
    names = [c for c in (*CURVES, criterion) if CRITERIA[c].cuts and there.issuperset(CRITERIA[c].columns)]
    return list(dict.fromkeys(names))


def _curve(rows: pa.Table, criterion: str, error: np.ndarray) -> dict[str, list[float]]:
    curve = risk_coverage(costs(criterion, score(criterion, rows)), error)
    at = np.unique(np.linspace(0, len(curve.risk) - 1, min(POINTS, len(curve.risk))).astype(int))
    return {"coverage": curve.coverage[at].tolist(), "risk": curve.risk[at].tolist()}


def _joints(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of the joints that the truth has, and whether each is right."""
    ours, truth = to_numpy(rows["keypoints"], -1, 3), to_numpy(rows["truth_keypoints"], -1, 3)
    size = to_numpy(rows["bbox"], 4)[:, 2:].max(axis=1, initial=0)
    off = np.linalg.norm(ours[..., :2].astype(np.float64) - truth[..., :2], axis=2) / size[:, None]
    visible = truth[..., 2] > 0
    return ours[..., 2][visible], (off < CORRECT)[visible]


def _known(value: Any) -> Any:
    """A float as JSON has it: None where it is not finite."""
    if not isinstance(value, float):
        return value
    return float(value) if math.isfinite(value) else None


def with_truth(pseudo: Dataset, instances: Dataset, truth: pa.Table) -> pa.Table:
    """All pseudo-labels with boxes and the sandbox's truth (`instance_id, truth_keypoints`): `judged` of `diagnose`."""
    rows = join_rows(pseudo.read(), instances.read(["instance_id", "bbox"]), "instance_id")
    at = pc.index_in(rows["instance_id"], truth["instance_id"])
    return rows.append_column("truth_keypoints", truth["truth_keypoints"].take(at))


def labelled_metrics(lake: Lake, category: str, model: str) -> dict[str, dict[str, Any]]:
    """What a 2D network is worth on the labelled validation and test images, by split; without those that lack images.

    Args:
        model: path of its checkpoint.
    """
    import torch

    from models.checkpoint import image_size_of, load_checkpoint
    from trainers.jobs import evaluate_labelled

    net: Any = load_checkpoint(model).to("cuda" if torch.cuda.is_available() else "cpu")
    return evaluate_labelled("pose", net, lake, category, image_size_of(net))


def held_out(lake: Lake, category: str, models: Mapping[str, str | None]) -> pa.Table | None:
    """What the networks say of the labelled validation images, with their labels as truth; None without any.

    Args:
        models: paths of the `pose`, `aux` and `acsm` checkpoints.
    """
    import torch

    from models.checkpoint import image_size_of, load_checkpoint
    from models.crops import SEEN, stored_pixels, window
    from models.predict import in_photo, predict_all
    from trainers.data import decode_crops, label_table

    labels = label_table(lake, category, ["instance_id", "bbox", "crop", "keypoints", "split"])
    labels = labels.filter(pc.equal(labels["split"], "val"))
    if not len(labels):
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nets: dict[str, Any] = {n: load_checkpoint(p).to(device) for n, p in models.items() if p}
    image_size, parts = image_size_of(nets["pose"]), []
    aux_size = image_size_of(nets["aux"]) if "aux" in nets else None
    for start in range(0, len(labels), BATCH):
        rows = labels.slice(start, BATCH)
        windows = window(to_numpy(rows["bbox"], 4), SEEN)
        crops = torch.from_numpy(decode_crops(rows["crop"].to_pylist(), stored_pixels(image_size))).to(device)
        found = predict_all(nets, crops, image_size, aux_size=aux_size)
        seen = np.stack([in_photo(view, windows) for view in found.pop("keypoints_mt").unbind(1)], 1)  # [B,T,K,3]
        made = {"keypoints": to_column(seen[:, 0]), "keypoints_mt": to_column(seen)}
        made["heatmap_3d"] = to_column(found.pop("heatmap_3d").cpu().numpy())
        parts.append(pa.table(made | {name: to_column(in_photo(joints, windows)) for name, joints in found.items()}))
    predicted = pa.concat_tables(parts)
    predicted = predicted.append_column("instance_id", labels["instance_id"]).append_column("bbox", labels["bbox"])
    return predicted.append_column("truth_keypoints", labels["keypoints"])
