"""What an actor does with crops: every prediction the criteria need, in one row. Needs no Ray."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.checkpoint import load_checkpoint
from models.crops import SEEN, stored_pixels, window
from models.predict import in_photo
from models.predictor import Predictor
from pipelines.careful import Careful
from tables import Dataset, schema, to_column, to_numpy
from trainers.data import decode_crops

MADE_BY = {  # the networks that a column comes from
    "keypoints": ("pose",), "keypoints_mt": ("pose",), "keypoints_aux": ("aux",), "keypoints_3d": ("acsm",),
    "heatmap_3d": ("pose", "acsm"),
}  # fmt: skip
Answer = dict[str, np.ndarray]  # what the networks say of one crop
Asker = Careful[bytes, Answer]


class KeypointWorker:
    """Predicts on one part of `instances`, near duplicates left out, and commits one part of `pseudo_labels`.

    A crop that cannot be decoded, or that makes a network raise, costs its own row only: it is left out, counted under
    `lost`, and named with the reason under `lost` in the part's manifest.

    Args:
        models: paths of the `pose`, `aux` and `acsm` checkpoints; `aux` and `acsm` may be None.
        ids: their model ids, written beside what they predicted.
        image_size: of the `pose` network.
        before: pseudo-labels of an earlier round; columns whose networks are the same are taken over, and so are the
            crops that were lost. If the 3D net alone is new, what the 2D net thinks of its joints is asked again: one
            pass of it instead of eight. A part that this round lacks is predicted whole.
        aux_size: image size of the `aux` network, if another.
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
        aux_size: int | None = None,
    ) -> None:
        theirs = before.identity["models"] if before else {}
        self.kept = [c for c, nets in MADE_BY.items() if before and all(theirs.get(n) == ids[n] for n in nets)]
        self.instances, self.pseudo, self.models, self.ids, self.round = instances, pseudo, models, ids, round
        self.image_size, self.aux_size, self.before = image_size, aux_size, before
        self.lock = threading.Lock()
        self.askers: dict[bool, Asker | None] = {}
        self._asker(bool(before))

    def __call__(self, part: str, payload: Any) -> dict[str, int]:
        rows = self.instances.read(["instance_id", "bbox", "crop", "duplicate_of"], [part])
        rows = rows.filter(pc.is_null(rows["duplicate_of"]))
        former, lost = self._former(rows, part)
        rows = rows.filter(pc.invert(pc.is_in(rows["instance_id"], pa.array(list(lost), pa.string()))))
        ask = self._asker(former is not None)
        step = ask.most if ask else len(rows) + 1
        new: dict[str, str] = {}
        made = [self._predict(rows.slice(s, step), ask, new) for s in range(0, max(1, len(rows)), step)]
        if 1 < len(rows) == len(new):
            raise RuntimeError(f"the networks fail on every crop of {part}: {next(iter(new.values()))}")
        columns: dict[str, Any] = {k: pa.concat_arrays([m[k] for m in made]) for k in made[0]}
        rows, lost = rows.filter(pc.invert(pc.is_in(rows["instance_id"], pa.array(list(new), pa.string())))), lost | new
        if former is not None:
            where = pc.index_in(rows["instance_id"], former["instance_id"])
            columns |= {n: former[n].take(where) for n in self.kept}
        n = len(rows)
        ids = {f"model_{m}": [self.ids[k]] * n for m, k in (("pose", "pose"), ("aux", "aux"), ("3d", "acsm"))}
        table = pa.table(
            {"instance_id": rows["instance_id"], "round": pa.array([self.round] * n, pa.int32())} | columns
        )
        for name, values in ids.items():
            table = table.append_column(name, pa.array(values, pa.string()))
        self.pseudo.write(part, table, schema("pseudo_labels"), lost=lost)
        return {"instances": n} | ({"lost": len(lost)} if lost else {})

    def _asker(self, partly: bool) -> Asker | None:
        """Asks the networks that are new, or all of them; None where there is none to ask. Made on first use."""
        with self.lock:
            if partly not in self.askers:
                self.askers[partly] = self._open(self.kept if partly else [])
            return self.askers[partly]

    def _open(self, kept: Sequence[str]) -> Asker | None:
        wanted = {c: nets for c, nets in MADE_BY.items() if c not in kept and all(self.models[n] for n in nets)}
        nets = {n: load_checkpoint(str(self.models[n])) for n in {n for needed in wanted.values() for n in needed}}
        if not nets:
            return None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        predict = Predictor(nets, self.image_size, device, "keypoints_mt" in wanted, self.aux_size)

        def ask(crops: Sequence[bytes]) -> list[Answer]:
            found = predict(decode_crops(crops, stored_pixels(self.image_size)))
            return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]

        return Careful(ask, predict.batch)

    def _former(self, rows: pa.Table, part: str) -> tuple[pa.Table | None, dict[str, str]]:
        """What an earlier round has of the part, if it has all its rows, and of which crops it could say nothing."""
        manifest = self.before.manifests([part]).get(part) if self.before else None
        if not self.before or not manifest:
            return None, {}
        former, lost = self.before.read(["instance_id", *self.kept], [part]), manifest.get("lost", {})
        known = pa.chunked_array([*former["instance_id"].chunks, pa.array(list(lost), pa.string())])
        whole = pc.all(pc.is_in(rows["instance_id"], known), min_count=0).as_py()
        return (former, dict(lost)) if whole else (None, {})

    def _predict(self, rows: pa.Table, ask: Asker | None, lost: dict[str, str]) -> dict[str, pa.Array]:
        """Columns of the crops that were answered; the others are put into `lost`."""
        k = schema("pseudo_labels")
        answers = ask(rows["crop"].to_pylist()) if ask and len(rows) else [{}] * len(rows)
        good = np.array([not isinstance(a, Exception) for a in answers], bool)
        for name, answer in zip(rows["instance_id"].to_pylist(), answers, strict=True):
            if isinstance(answer, Exception):
                lost[name] = f"{type(answer).__name__}: {str(answer)[:200]}"
        n = int(good.sum())
        out: dict[str, Any] = {c: to_column([None] * n, k.field(c).type.list_size) for c in MADE_BY}
        if not n:
            return out
        windows = window(to_numpy(rows["bbox"], 4)[good], SEEN)
        said = [a for a in answers if not isinstance(a, Exception)]
        for name in said[0]:
            found = np.stack([a[name] for a in said])
            if name == "heatmap_3d":
                out[name] = to_column(found)
            elif name == "keypoints_mt":
                seen = np.stack([in_photo(v, windows) for v in found.swapaxes(0, 1)], 1)  # [B,T,K,3]
                out["keypoints"], out[name] = to_column(seen[:, 0]), to_column(seen)
            else:
                out[name] = to_column(in_photo(found, windows))
        return out
