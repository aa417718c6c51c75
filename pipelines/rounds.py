"""One run of the loop: 2D nets once, then rounds of pseudo-labels, selection, training and evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import yaml
from pyarrow import csv
from rich.console import Console
from rich.table import Table

from pipelines.crawl import crawl
from pipelines.detect import detect
from pipelines.keypoints import infer
from pipelines.report import write_report
from selection import policy_of, select_round
from tables import Dataset, Lake
from trainers.group import TrainGroup, training_bar
from trainers.start import start_keys
from trainers.tracking import open_tracker


class Loop:
    """The state of a run; what it has made is in the lake, what it has measured in `<lake>/runs/<run>/`.

    Args:
        config: the resolved `selftrain` config as plain JSON.
        resources: its `resources` section.
        template: path of the animal's template.
        group: training workers.
    """

    def __init__(self, config: dict[str, Any], resources: Any, lake: Lake, template: str, group: TrainGroup) -> None:
        self.config, self.resources, self.lake, self.template, self.group = config, resources, lake, template, group
        self.category = config["category"]
        self.folder = f"runs/{config['run']}"
        self.rows: list[dict[str, Any]] = []
        self.rounds: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """All rounds; returns the rows of `metrics.json`."""
        c, started = self.config, time.monotonic()
        self.lake.files.write(f"{self.folder}/config.yaml", _yaml(c).encode())
        self.tracker = open_tracker(c["mlflow"], self.lake, c["run"])
        photos = self._photos()
        detector = c["detector_model"] or self._train("detector")["model"]
        nets = {kind: self._train(kind) for kind in ("pose", "aux")}
        instances = detect(self.lake, self.category, photos, detector, c["detect"], self.resources, c["detector"])
        self._log(None, "detect", {"dataset": instances.path}, (instances.finished() or {})["summary"])
        models: dict[str, str | None] = {"pose": nets["pose"]["model"], "aux": nets["aux"]["model"]}
        done = self._train("acsm", 0, nets["pose"]["model"])
        made = {"photos": photos, "instances": instances}
        self._record(0, done, made)
        pseudo: Dataset | None = None
        for number in range(1, c["rounds"] + 1):
            models["acsm"] = done["model"]
            pseudo = infer(self.lake, self.category, instances, models, number, self.resources, before=pseudo)
            chosen = self._select(pseudo, instances, number)
            made |= {"pseudo_labels": pseudo, "selections": chosen}
            lineage = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in made.items() if t != "photos"}
            done = self._train("acsm", number, nets["pose"]["model"], done["model"], lineage)
            self._record(number, done, made)
            if self._stalled():
                break
        self._close(nets, detector, time.monotonic() - started)
        return self.rows

    def _photos(self) -> Dataset:
        c = self.config
        if c["source"]["path"] is None:
            return self.lake.latest("photos", self.category)
        photos, summary = crawl(self.lake, self.category, c["source"], c["fetch"], self.resources)
        counts = {f"status_{k}": v for k, v in summary["status"].items()}
        counts |= {k: summary[k] for k in ("wanted", "duplicates", "photos")}
        self._log(None, "crawl", {"dataset": photos.path}, counts)
        return photos

    def _train(
        self,
        name: str,
        round: int | None = None,
        pose: str | None = None,
        former: str | None = None,
        pseudo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        settings = {k: v for k, v in self.config["train"][name].items() if k != "start"}
        kind = "pose" if name == "aux" else name
        job = {"kind": kind, "lake": self.lake.uri, "category": self.category, "settings": settings}
        job |= {"seed": self.config["seed"], **start_keys(self.config["train"], name, pose, former)}
        if kind == "acsm":
            job |= {"template": self.template, "pseudo": pseudo}
        title = name if round is None else f"{name} round {round}"
        with training_bar(title, settings["plan"]["steps"]) as show:
            done = self.group.run(job, show)
        metrics = {
            f"{split}_{k}": v for split, m in done["metrics"].items() for k, v in m.items() if not isinstance(v, dict)
        }
        params = {"model": done["model"], "model_id": done["model_id"], "items": done["items"]}
        self._log(round, f"train {name}", params, metrics)
        return done

    def _select(self, pseudo: Dataset, instances: Dataset, number: int) -> Dataset:
        c = self.config
        chosen = select_round(self.lake, pseudo, instances, c["criterion"], c["top_n"], number, **policy_of(c))
        self._log(
            number, "keypoints", {"dataset": pseudo.path, **pseudo.identity["models"]},
            (pseudo.finished() or {})["summary"],
        )  # fmt: skip
        sink = pa.BufferOutputStream()
        csv.write_csv(chosen.read().sort_by("rank"), sink)
        table = {"selections.csv": sink.getvalue().to_pybytes().decode()}
        self._log(
            number, "select", {"dataset": chosen.path, "criterion": c["criterion"]},
            (chosen.finished() or {})["summary"], table,
        )  # fmt: skip
        return chosen

    def _record(self, number: int, done: Mapping[str, Any], made: Mapping[str, Dataset]) -> None:
        """Write a round's metrics where a person and the next run look for them."""
        for split, m in done["metrics"].items():
            self.rows.append({"round": number, "split": split, "model_id": done["model_id"], **m})
            values = {f"{split}_{k}": v for k, v in m.items() if not isinstance(v, dict)}
            self.tracker.metrics(self.tracker.root, values, number)
        self.rounds.append({"round": number, "model": done["model"], "items": done["items"]})
        self.rounds[-1] |= {table: d.path for table, d in made.items()}
        self.lake.files.write_json(f"{self.folder}/metrics.json", self.rows)
        self.lake.files.write_json(f"{self.folder}/rounds.json", self.rounds)

    def _score(self, number: int) -> float:
        """What rounds are compared by: validation only."""
        rows = {r["split"]: r["auc_06_10"] for r in self.rows if r["round"] == number}
        return float(rows.get("val", float("nan")))

    def _stalled(self) -> bool:
        patience = self.config["stop"]["patience"]
        scores = [self._score(r["round"]) for r in self.rounds]
        if not patience or len(scores) <= patience:
            return False
        return max(scores[-patience:]) < max(scores[:-patience]) + self.config["stop"]["min_gain"]

    def _close(self, nets: Mapping[str, Any], detector: str, seconds: float) -> None:
        best = max((r["round"] for r in self.rounds), key=self._score)
        self.lake.files.write_json(
            f"{self.folder}/run.json",
            {
                "category": self.category, "template": self.template, "best_round": best, "rounds": self.rounds,
                "networks": {"detector": detector} | {k: v["model"] for k, v in nets.items()},
                "metrics_2d": {k: nets[k]["metrics"] for k in ("pose", "aux")}, "seconds": round(seconds, 1),
            },
        )  # fmt: skip
        show_rounds(self.rows, best)
        page = write_report(self.lake, self.category, self.config["run"])
        html = (self.lake.files.read(f"{self.folder}/report.html") or b"").decode()
        metrics = json.dumps(self.rows, indent=1)
        self.tracker.close({"config.yaml": _yaml(self.config), "metrics.json": metrics, "report.html": html})
        Console().print(f"report: {page}", soft_wrap=True)

    def _log(
        self,
        number: int | None,
        name: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, Any],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.tracker.stage(number, name, params, metrics, texts)


def show_rounds(rows: list[dict[str, Any]], best: int) -> None:
    """The closing table: AUC, camera error and silhouette overlap by round and split."""
    table = Table(title="reprojection auc_06_10 by round (* best on validation)", title_justify="left")
    for name in ("round", "split", "auc_06_10", "PCK@0.10", "camera error", "mIoU", "instances"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for r in rows:
        star = "*" if r["round"] == best else ""
        camera = "-" if r.get("camera_error_deg") is None else f"{r['camera_error_deg']:.1f} deg"
        overlap = "-" if r.get("miou") is None else f"{r['miou']:.3f}"
        table.add_row(
            f"{r['round']}{star}", r["split"], f"{r['auc_06_10']:.2f}", f"{r['pck']['0.10']:.1f}", camera, overlap,
            str(r["instances"]),
        )  # fmt: skip
    Console().print(table)


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False)
