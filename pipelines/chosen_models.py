"""Which networks a prediction is made with: those named, and a run's where none is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tables import InputError, Lake

if TYPE_CHECKING:
    from pipelines.run_record import RunRecord


@dataclass(frozen=True)
class Chosen:
    """Networks by path, as the keys `run, acsm, pose, detector, detector_model` of a config say.

    Everything raises InputError that names the key where a network is not to be had.
    """

    cfg: Any

    @cached_property
    def record(self) -> RunRecord:
        """The run that `run` names."""
        from pipelines.run_record import open_run

        record = open_run(Lake(self.cfg.lake), str(self.cfg.run), self.cfg.category)
        if not record.summary:
            raise InputError(
                "run", record.name, "has not ended; let `wildshape selftrain` finish it, or name the models"
            )
        return record

    @property
    def acsm(self) -> str:
        if self.cfg.acsm:
            return str(self.cfg.acsm)
        best = self.record.best
        return self._held(self.record.model_path(best), f"the 3D net of its best round {best}", "acsm")

    @property
    def pose(self) -> str | None:
        if self.cfg.pose or self.cfg.acsm:
            return self.cfg.pose and str(self.cfg.pose)
        pose = self.record.network("pose") or self.record.config.get("pose_model")  # it may lie outside the lake
        return self._held(pose, "its 2D net", "pose")

    @property
    def detector(self) -> tuple[str, str]:
        """Kind and model."""
        from pipelines.detect import check_detector
        from pipelines.detectors import DETECTORS
        from pipelines.model_files import pick_model

        model = self.cfg.detector_model
        kind = self.cfg.detector or ("own" if self.cfg.acsm else self._runs_kind())
        check_detector(kind, DETECTORS)
        if not model and not self.cfg.acsm and kind == self._runs_kind():
            return kind, self._held(self._runs_model(), "its detector", "detector_model")
        if kind == "own":
            return kind, pick_model(Lake(self.cfg.lake), "detector", self.cfg.category, model, "detector_model")
        if not model:
            raise InputError("detector_model", "null", f"name the model that detector={kind} runs")
        return kind, str(model)

    def _runs_kind(self) -> str:
        return str(self.record.config.get("detector") or "own")

    def _runs_model(self) -> str | None:
        if self._runs_kind() == "own":
            return self.record.network("detector")
        return self.record.config.get("detector_model")

    def _held(self, path: str | None, what: str, argument: str) -> str:
        if path is None:
            raise InputError("run", self.record.name, f"{what} is no longer in the lake; give {argument}=<file>")
        return path
