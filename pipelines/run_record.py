"""What a run of the loop left behind, read back for report and export; what is missing is None, not an error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tables import Dataset, InputError, Lake

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class RunRecord:
    """One run folder.

    Attributes:
        config_text: `config.yaml` as it lies, empty if there is none.
        metrics: rows of `metrics.json`.
        rounds: rows of `rounds.json`: `round, model, items`, and from round 1 the paths of its datasets.
        summary: `run.json`, empty while the run has not ended.
        mlflow: `mlflow.json`, empty if nothing was tracked.
    """

    lake: Lake
    name: str
    category: str
    config: dict[str, Any]
    config_text: str
    metrics: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]
    mlflow: dict[str, Any]

    @property
    def numbers(self) -> list[int]:
        """Rounds that are evaluated, in order."""
        return sorted({int(m["round"]) for m in self.metrics})

    def metric(self, number: int | None, split: str) -> dict[str, Any] | None:
        """The metrics of a round on a split."""
        return next((m for m in self.metrics if m["round"] == number and m["split"] == split), None)

    @property
    def best(self) -> int | None:
        """The round the run chose on validation; while it runs, the one it would choose now; None before round 0."""
        if self.summary.get("best_round") is not None:
            return int(self.summary["best_round"])
        val = {n: (self.metric(n, "val") or {}).get("auc_06_10") for n in self.numbers}
        known = {n: v for n, v in val.items() if v is not None and math.isfinite(v)}
        return max(known, key=lambda n: known[n]) if known else next(iter(self.numbers), None)

    def round(self, number: int | None) -> dict[str, Any]:
        """The row of `rounds.json`, empty if there is none."""
        return next((r for r in self.rounds if r["round"] == number), {})

    def dataset(self, table: str, number: int | None) -> Dataset | None:
        """The dataset of this table that a round was made from, if the lake still has it."""
        path = self.round(number).get(table)
        if not path:
            return None
        try:
            return self.lake.find(table, self.category, str(path).rsplit("/", 1)[-1])
        except InputError:
            return None

    def photos(self) -> Dataset | None:
        """The crawl that the run drew on: by lineage, or the newest where no round names one."""
        for number in self.numbers:
            instances = self.dataset("instances", number)
            if instances is not None and instances.identity.get("photos"):
                try:
                    return self.lake.find("photos", self.category, instances.identity["photos"])
                except InputError:
                    return None
        try:
            return self.lake.latest("photos", self.category)
        except InputError:
            return None

    def model_path(self, number: int | None) -> str | None:
        """A round's 3D checkpoint, if the lake still has it, wherever the lake is now."""
        return self._here(self.round(number).get("model"))

    def network(self, name: str) -> str | None:
        """The checkpoint of the run's `detector`, `pose` or `aux`, if the run has ended and the lake still has it."""
        return self._here((self.summary.get("networks") or {}).get(name))

    def _here(self, model: Any) -> str | None:
        path = str(model or "")
        at = path.rfind("models/")
        if at < 0 or not self.lake.files.exists(path[at:]):
            return None
        return f"{self.lake.uri}/{path[at:]}"


def open_run(lake: Lake, run: str, category: str | None = None) -> RunRecord:
    """Read `<lake>/runs/<run>/`.

    Args:
        category: used where the run's own config does not say.

    Raises:
        InputError: there is no such run; the message names those there are.
    """
    import yaml

    runs = [n for n in lake.files.names("runs") if lake.files.names(f"runs/{n}")]
    if run not in runs:
        there = f"the runs {', '.join(runs)}" if runs else "no runs; make one with `wildshape selftrain`"
        fix = f"lake {lake.uri} has {there}"
        raise InputError("run", run, fix)
    folder = f"runs/{run}"
    text = (lake.files.read(f"{folder}/config.yaml") or b"").decode("utf-8", "replace")
    try:
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        config = {}

    def known(name: str, empty: Any) -> Any:
        try:
            found = lake.files.read_json(f"{folder}/{name}")
        except ValueError:
            return empty
        rows = found if isinstance(found, list) else []
        return found if type(found) is type(empty) and all(isinstance(r, dict) for r in rows) else empty

    summary = known("run.json", {})
    named = summary.get("category") or (config.get("category") if isinstance(config, dict) else None) or category
    return RunRecord(
        lake, run, str(named or "quadruped"), config if isinstance(config, dict) else {}, text,
        known("metrics.json", []), known("rounds.json", []), summary, known("mlflow.json", {}),
    )  # fmt: skip


def table_of(dataset: Dataset, ids: Iterable[str], columns: list[str]) -> pa.Table | None:
    """Rows of the named instances; None if there are none. Reads large columns of the parts that hold them alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(set(ids)), pa.string())
    found = []
    for part in dataset.manifests():
        held = pc.is_in(dataset.read(["instance_id"], [part])["instance_id"], wanted)
        if pc.any(held).as_py():
            rows = dataset.read(["instance_id", *columns], [part])
            found.append(rows.filter(pc.is_in(rows["instance_id"], wanted)))
    return pa.concat_tables(found) if found else None


def rows_of(dataset: Dataset, ids: Iterable[str], columns: list[str]) -> dict[str, dict[str, Any]]:
    """The rows of `table_of` as dicts by id."""
    rows = table_of(dataset, ids, columns)
    return {} if rows is None else {r["instance_id"]: r for r in rows.to_pylist()}
