"""A unit that takes its actor's process with it: the others go on, and it is given up after a few."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipelines.stage import DEATHS, run_stage
from tables import Dataset, Lake, schema


class Deadly:
    """Worker whose process ends at some parts, as at a photo that crashes a decoder; it notes every attempt."""

    def __init__(self, output: Dataset, poison: str, notes: str) -> None:
        self.output, self.poison, self.notes = output, poison, notes

    def __call__(self, part: str, payload: Any) -> Mapping[str, int]:
        with open(self.notes, "a", encoding="utf-8") as f:
            f.write(f"{part}\n")
        if part == self.poison:
            os._exit(1)
        row = {"model": payload, "model_id": part, "split": "test"}
        self.output.write(part, pa.Table.from_pylist([row], schema("metrics")), schema("metrics"))
        return {"rows": 1}


@pytest.mark.ray
def test_a_unit_that_kills_its_actors_is_lost_and_no_other(tmp_path: Path, ray_local: SimpleNamespace) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find test modules by name
    output, notes = Lake(str(tmp_path)).dataset("metrics", "deer", {"n": 1}), tmp_path / "notes"
    units = {f"u{i}": "x" for i in range(6)}
    alone = SimpleNamespace(**{**vars(ray_local), "actors": 1})
    args = {"output": output, "poison": "u2", "notes": str(notes)}
    with pytest.raises(RuntimeError, match=f"1 of 6 units were lost; first: u2: {DEATHS} actors died of it"):
        run_stage(output, units, Deadly, args, alone, "a")
    assert output.parts() == ["u0", "u1", "u3", "u4", "u5"]
    assert notes.read_text().split().count("u2") == DEATHS
    # Another run begins anew, and what was committed is left alone.
    healed = run_stage(output, units, Deadly, {**args, "poison": ""}, alone, "a")
    assert (healed["units"], healed["units_lost"], healed["rows"]) == (1, 0, 1)
