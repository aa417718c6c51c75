"""The model registry of MLflow: a version for each round of a run, and the alias `best` on the chosen one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.tracking import Tracker


def register(tracker: Tracker, name: str, rounds: Sequence[Mapping[str, Any]], best: int) -> None:
    """Make every round's 3D network a version of the registered model `name`; done already means nothing to do.

    A version's source is the file in the lake, its run the training's in MLflow, and its tags the lineage.

    Args:
        rounds: with `round`, `model` (path), `run_id` and whatever else is to stand as a tag.
        best: the round that the alias `best` is for.
    """
    from mlflow.exceptions import MlflowException

    client = tracker.client
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="3D networks of a run of the loop, a version a round")
    known = {(v.source, v.run_id): v.version for v in client.search_model_versions(f"name = '{name}'")}
    for row in rounds:
        key = (row["model"], row["run_id"])
        if key not in known:
            tags = {k: str(v) for k, v in row.items() if v is not None}
            known[key] = client.create_model_version(name, row["model"], row["run_id"], tags=tags).version
        if row["round"] == best:
            client.set_registered_model_alias(name, "best", known[key])
