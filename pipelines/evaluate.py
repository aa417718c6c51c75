"""What a network is worth on labelled instances: checkpoint and labels in, `metrics` out."""

from __future__ import annotations

from typing import Any

from tables import Dataset, InputError, Lake, schema
from trainers.app import command

VERSION = 2
KINDS = {"acsm": "ACSM", "pose": "PoseNet"}


@command("evaluate")
def main(cfg: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from pipelines.model_files import pick_model

    if cfg.kind not in KINDS:
        raise InputError("kind", cfg.kind, f"use one of {', '.join(KINDS)}")
    lake = Lake(cfg.lake)
    model = pick_model(lake, cfg.kind, cfg.category, cfg.model, "model")
    made = evaluate(lake, cfg.category, cfg.kind, model, list(cfg.splits), cfg.resources)
    table = Table(title=f"{cfg.kind} {model}", title_justify="left")
    for name in ("split", "auc_06_10", "PCK@0.10", "camera error, degrees", "mIoU", "transfer PCK@0.10", "instances"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for r in made.read().to_pylist():
        values = (r["auc_06_10"], r["pck"][9], r["camera_error_deg"], r["miou"], r["transfer_pck_10"])
        table.add_row(r["split"], *("-" if v is None else f"{v:.2f}" for v in values), str(r["instances"]))
    Console().print(table)


class EvaluateWorker:
    """Evaluates on one split and commits it as one part."""

    def __init__(self, lake: str, category: str, kind: str, model: str, model_id: str, output: Dataset) -> None:
        from models.checkpoint import image_size_of, load_checkpoint

        self.net: Any = load_checkpoint(model)
        self.size = image_size_of(self.net)
        self.lake, self.category, self.kind, self.output = Lake(lake), category, kind, output
        self.model, self.model_id = model, model_id

    def __call__(self, part: str, payload: Any) -> dict[str, int]:
        import pyarrow as pa

        from trainers.data import load_labelled
        from trainers.evaluate import evaluate_acsm, evaluate_pose

        data = load_labelled(self.lake, self.category, payload, self.size)
        rows = []
        if len(data):
            m = evaluate_acsm(self.net, data) if self.kind == "acsm" else evaluate_pose(self.net, data, self.size)
            found = {**m, **{name: list(m[name].values()) for name in ("pck", "joints")}}
            found |= {"model": self.model, "model_id": self.model_id}
            rows.append({**found, "split": payload})
        names = schema("metrics")
        self.output.write(part, pa.Table.from_pylist(rows, names), names)
        return {"splits": len(rows)}


def evaluate(lake: Lake, category: str, kind: str, model: str, splits: list[str], resources: Any) -> Dataset:
    """Evaluate a checkpoint on the given splits; return the finished `metrics` dataset.

    Raises:
        InputError: the lake has no labels of the category, or none of these splits.
    """
    from models.checkpoint import weights_digest
    from pipelines.stage import run_stage
    from trainers.data import label_table

    labels = label_table(lake, category, ["instance_id", "split"])
    known = set(labels["split"].to_pylist())
    if not known & set(splits):
        raise InputError("splits", splits, f"labels of {category} have {', '.join(sorted(known))}")
    states = [d.state() for d in lake.datasets("labels", category)]
    weights = weights_digest(model)
    identity = {"stage": "evaluate", "version": VERSION, "model": weights, "labels": states}
    output = lake.dataset("metrics", category, identity, slot=weights)
    state = ",".join(splits)
    if not output.is_finished(state):
        args = {"lake": lake.uri, "category": category, "kind": kind, "model": model, "model_id": weights}
        units = {s: s for s in splits}
        run_stage(output, units, EvaluateWorker, {**args, "output": output}, resources, state)
    return output


if __name__ == "__main__":
    main()
