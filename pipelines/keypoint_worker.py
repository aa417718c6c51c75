"""What an actor does with crops: every prediction the criteria need, in one row. Needs no Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.checkpoint import load_checkpoint
from models.crops import SEEN, stored_pixels, window
from models.predict import in_photo
from models.predictor import Predictor
from tables import Dataset, schema, to_column, to_numpy
from trainers.data import decode_crops

MADE_BY = {  # the networks that a column comes from
    "keypoints": ("pose",), "keypoints_mt": ("pose",), "keypoints_aux": ("aux",), "keypoints_3d": ("acsm",),
    "heatmap_3d": ("pose", "acsm"),
}  # fmt: skip


class KeypointWorker:
    """Predicts on one part of `instances`, near duplicates left out, and commits one part of `pseudo_labels`.

    Args:
        models: paths of the `pose`, `aux` and `acsm` checkpoints; `aux` and `acsm` may be None.
        ids: their model ids, written beside what they predicted.
        before: pseudo-labels of an earlier round; columns whose networks are the same are taken over. If the 3D net
            alone is new, what the 2D net thinks of its joints is asked again: one pass of it instead of eight.
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
        theirs = before.identity["models"] if before else {}
        self.kept = [c for c, nets in MADE_BY.items() if before and all(theirs.get(n) == ids[n] for n in nets)]
        changed = {net for column, nets in MADE_BY.items() if column not in self.kept for net in nets}
        needed = [n for n, p in models.items() if p and n in changed]
        nets = {n: load_checkpoint(str(models[n])) for n in needed}
        self.predict = Predictor(nets, image_size, device, views="keypoints_mt" not in self.kept) if nets else None
        self.instances, self.pseudo, self.ids, self.round = instances, pseudo, ids, round
        self.image_size, self.before = image_size, before

    def __call__(self, part: str, payload: Any) -> dict[str, int]:
        rows = self.instances.read(["instance_id", "bbox", "crop", "duplicate_of"], [part])
        rows = rows.filter(pc.is_null(rows["duplicate_of"]))
        step = self.predict.batch if self.predict else len(rows) + 1
        made = [self._predict(rows.slice(s, step)) for s in range(0, max(1, len(rows)), step)]
        columns: dict[str, Any] = {k: pa.concat_arrays([m[k] for m in made]) for k in made[0]}
        if self.before is not None:
            columns |= {n: self.before.read([n], [part])[n] for n in self.kept}
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
        n, k = len(rows), schema("pseudo_labels")
        out: dict[str, Any] = {c: to_column([None] * n, k.field(c).type.list_size) for c in MADE_BY}
        if not n or not self.predict:
            return out
        windows = window(to_numpy(rows["bbox"], 4), SEEN)
        for name, found in self.predict(decode_crops(rows["crop"].to_pylist(), stored_pixels(self.image_size))).items():
            if name == "heatmap_3d":
                out[name] = to_column(found)
            elif name == "keypoints_mt":
                seen = np.stack([in_photo(v, windows) for v in found.swapaxes(0, 1)], 1)  # [B,T,K,3]
                out["keypoints"], out[name] = to_column(seen[:, 0]), to_column(seen)
            else:
                out[name] = to_column(in_photo(found, windows))
        return out
