"""What an actor does with crops: every prediction the criteria need, in one row. Needs no Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.checkpoint import load_checkpoint
from models.crops import SEEN, stored_pixels, window
from models.predict import VIEWS, in_photo, predict_acsm, predict_pose
from tables import Dataset, schema, to_column, to_numpy
from trainers.data import decode_crops

BATCH = 64
COLUMNS_2D = ("keypoints", "keypoints_aux", "keypoints_mt")


class KeypointWorker:
    """Predicts on one part of `instances`, near duplicates left out, and commits one part of `pseudo_labels`.

    Args:
        models: paths of the `pose`, `aux` and `acsm` checkpoints; `aux` and `acsm` may be None.
        ids: their model ids, written beside what they predicted.
        before: pseudo-labels of an earlier round with the same 2D nets, whose 2D columns are taken over.
    """

    def __init__(
        self,
        instances: Dataset,
        pseudo: Dataset,
        models: dict[str, str | None],
        ids: dict[str, str | None],
        round: int,
        image_size: int,
        before: Dataset | None = None,
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        needed = [n for n, p in models.items() if p and (n == "acsm" or before is None)]
        self.nets: dict[str, Any] = {n: load_checkpoint(str(models[n])).to(device) for n in needed}
        self.instances, self.pseudo, self.ids, self.round = instances, pseudo, ids, round
        self.image_size, self.before = image_size, before

    def __call__(self, part: str, payload: Any) -> dict[str, int]:
        rows = self.instances.read(["instance_id", "bbox", "crop", "duplicate_of"], [part])
        rows = rows.filter(pc.is_null(rows["duplicate_of"]))
        made = [self._predict(rows.slice(s, BATCH)) for s in range(0, max(1, len(rows)), BATCH)]
        columns: dict[str, Any] = {k: pa.concat_arrays([m[k] for m in made]) for k in made[0]}
        if self.before is not None:
            columns |= {n: self.before.read([n], [part])[n] for n in COLUMNS_2D}
        n = len(rows)
        ids = {f"model_{m}": [self.ids[k]] * n for m, k in (("pose", "pose"), ("aux", "aux"), ("3d", "acsm"))}
        table = pa.table(
            {"instance_id": rows["instance_id"], "round": pa.array([self.round] * n, pa.int32())} | columns
        )
        for name, values in ids.items():
            table = table.append_column(name, pa.array(values, pa.string()))
        self.pseudo.write(part, table, schema("pseudo_labels"))
        return {"instances": n}

    def _predict(self, rows: pa.Table) -> dict[str, pa.Array]:
        windows = window(to_numpy(rows["bbox"], 4), SEEN)
        crops = decode_crops(rows["crop"].to_pylist(), stored_pixels(self.image_size))
        out: dict[str, Any] = {}
        k = schema("pseudo_labels")
        none = {n: to_column([None] * len(rows), k.field(n).type.list_size) for n in (*COLUMNS_2D, "keypoints_3d")}
        if len(rows) and "pose" in self.nets:
            views = [predict_pose(self.nets["pose"], crops, self.image_size, zoom, angle) for zoom, angle in VIEWS]
            stacked = np.stack([in_photo(v, windows) for v in views], 1)  # [B,T,K,3]
            out["keypoints"], out["keypoints_mt"] = to_column(stacked[:, 0]), to_column(stacked)
        if len(rows) and "aux" in self.nets:
            out["keypoints_aux"] = to_column(in_photo(predict_pose(self.nets["aux"], crops, self.image_size), windows))
        if len(rows) and "acsm" in self.nets:
            reprojected = predict_acsm(self.nets["acsm"], crops).keypoints[:, 0]
            out["keypoints_3d"] = to_column(in_photo(reprojected, windows))
        return {**none, **out}
