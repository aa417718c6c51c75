"""Where a prediction comes from: a network's file, its weights, and what it was trained on, as the file itself says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def provenance(path: str, notes: Mapping[str, Any]) -> dict[str, Any]:
    """`model`, `weights` (digest) and `trained_on` of a checkpoint, as plain JSON.

    Args:
        notes: of the loaded checkpoint. What it does not note, such as the items of a file from elsewhere, is None.
    """
    from models.checkpoint import weights_digest

    job: Mapping[str, Any] = notes.get("job", {})
    on = {key: job.get(key) for key in ("category", "run", "round", "seed")}
    on |= {key: notes.get(key) for key in ("items", "labels", "data", "from")}
    on["auc_06_10"] = {s: round(m["auc_06_10"], 2) for s, m in notes.get("metrics", {}).items() if "auc_06_10" in m}
    return {"model": path, "weights": weights_digest(path), "trained_on": on}


def sentence(made: Mapping[str, Any]) -> str:
    """`provenance` in words."""
    on = made["trained_on"]
    if on is None:
        return f"{made['model']}, which does not say what it was trained on"
    what = "an unknown number of animals"
    if on["items"] is not None:
        pseudo = on["items"] - on["labels"]
        what = f"{on['labels']:,} labels" + (f" and {pseudo:,} pseudo-labels" if pseudo else "")
    about = [f"of {on['category']}"] if on["category"] else []
    about += [f"by {on['from']}"] if on["from"] else []
    about += [f"in run {on['run']}"] if on["run"] else []
    about += [f"round {on['round']}"] if on["round"] is not None else []
    inside = [f"data {on['data']}"] if on["data"] else []
    inside += [f"{split} auc_06_10 {value:.1f}" for split, value in on["auc_06_10"].items()]
    end = f" ({', '.join(inside)})" if inside else ""
    return f"trained on {' '.join([what, *about])}{end}: {made['model']}"
