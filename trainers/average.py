"""A teacher between rounds: the average of 3D networks of one make, kept in the lake like a trained one."""

from __future__ import annotations

from typing import Any

import torch

from models.checkpoint import checkpoint_bytes, image_size_of, load_checkpoint, weights_digest
from tables import Lake, fingerprint
from trainers.data import load_labelled
from trainers.evaluate import evaluate_acsm

SHARE = 0.5  # of the newest network: a round counts half of what the one after it does


def average(lake: Lake, category: str, former: str, newest: str) -> dict[str, Any]:
    """The exponential average of networks: `former` is the average so far, `newest` the next (both paths).

    Returns:
        `model` (path in the lake), `model_id`, `metrics` (of the validation split, empty without one).
    """
    identity = {"kind": "average", "of": [weights_digest(former), weights_digest(newest)], "share": SHARE}
    folder = f"models/average/{fingerprint(identity)}"
    path = f"{lake.uri}/{folder}/model.safetensors"
    known = lake.files.read_json(f"{folder}/model.json")
    if known:
        return {**known, "model": path}
    kept, other = load_checkpoint(former), load_checkpoint(newest)
    notes: Any = other.notes
    weights = other.state_dict()
    with torch.no_grad():
        for name, tensor in kept.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(weights[name], SHARE)
    data = load_labelled(lake, category, "val", image_size_of(other))
    metrics = {"val": evaluate_acsm(kept, data)} if len(data) else {}  # type: ignore[arg-type]
    known = {"model_id": fingerprint(identity), "kind": "average", "metrics": metrics, "of": identity["of"]}
    lake.files.write(f"{folder}/model.safetensors", checkpoint_bytes(kept, {**notes, "metrics": metrics}))
    lake.files.write_json(f"{folder}/model.json", known)
    return {**known, "model": path}
