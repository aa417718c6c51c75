"""One run of the loop: 2D nets once, then rounds of pseudo-labels, selection, training and evaluation."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import yaml
from pyarrow import csv
from rich.console import Console
from rich.table import Table

from models.checkpoint import weights_digest
from pipelines.crawl import crawl
from pipelines.detect import detect
from pipelines.diagnostics import diagnose, held_out, labelled_metrics, with_truth
from pipelines.keypoints import infer
from pipelines.report import write_report
from pipelines.round_pictures import write_pictures
from pipelines.round_rules import alarm, enough, size_of
from selection import policy_of, select_round
from tables import Dataset, Lake, fingerprint
from trainers import logs, meters
from trainers.average import average
from trainers.group import TrainGroup, training_bar
from trainers.registry import register
from trainers.start import start_keys
from trainers.tracking import open_tracker, scalars

_logger = logging.getLogger(__name__)
TABLES = ("instances", "pseudo_labels", "selections")  # what a training on pseudo-labels is made from


class Loop:
    """The state of a run; what it has made is in the lake, what it has measured in `<lake>/runs/<run>/`.

    Args:
        config: the resolved `selftrain` config as plain JSON.
        resources: its `resources` section.
        template: path of the animal's template.
        group: training workers.
        truth: the sandbox's `truth.parquet`, for diagnostics and the control `oracle`; None: there is no truth.
    """

    def __init__(
        self,
        config: dict[str, Any],
        resources: Any,
        lake: Lake,
        template: str,
        group: TrainGroup,
        truth: str | None = None,
    ) -> None:
        self.config, self.resources, self.lake, self.template, self.group = config, resources, lake, template, group
        self.category, self.truth_file = config["category"], truth
        self.folder = f"runs/{config['run']}"
        self.rows: list[dict[str, Any]] = []
        self.rounds: list[dict[str, Any]] = []
        self.nets: dict[str, dict[str, Any]] = {}  # the 2D nets, trained on labels alone or given
        self.stopped: str | None = None
        self.teacher = ""  # path of the network that judged the last round's pseudo-labels

    def run(self) -> list[dict[str, Any]]:
        """All rounds; returns the rows of `metrics.json`."""
        c = self.config
        self.lake.files.write(f"{self.folder}/config.yaml", _yaml(c).encode())
        self.tracker = open_tracker(c["mlflow"], self.lake, c["run"])
        with self.tracker:
            self._go()
        return self.rows

    def _go(self) -> None:
        c, started = self.config, time.monotonic()
        self.tracker.attach({"config.yaml": _yaml(c)})
        photos = self._photos()
        detector = c["detector_model"] or self._train("detector")["model"]
        self.nets["pose"] = self._given_pose() if c["pose_model"] else self._train("pose")
        self.nets["aux"] = self._train("aux")
        self.pose = self.nets["pose"]
        instances = detect(self.lake, self.category, photos, detector, c["detect"], self.resources, c["detector"])
        self._log(None, "detect", {"dataset": instances.path}, (instances.finished() or {})["summary"])
        self.truth = self._truth(instances)
        made = {"photos": photos, "instances": instances}
        done = self._train("acsm", 0)
        self._record(0, done, made)
        for number in range(1, c["rounds"] + 1):
            if c["criterion"] != "none":
                made = self._pseudo_labels(number, made)
                if self.stopped:
                    break
            done = self._train("acsm", number, made)
            self._record(number, done, made)
            self.stopped = enough([self._score(r["round"]) for r in self.rounds], c["stop"])
            if self.stopped:
                break
        self._close(detector, time.monotonic() - started)

    def _given_pose(self) -> dict[str, Any]:
        """The 2D network of `pose_model`, as if it had been trained here."""
        model = self.config["pose_model"]
        metrics = labelled_metrics(self.lake, self.category, model)
        done = {"model": model, "model_id": weights_digest(model), "metrics": metrics}
        self._log(None, "evaluate pose", {"model": model, "model_id": done["model_id"]}, scalars(metrics))
        return done

    def _photos(self) -> Dataset:
        c = self.config
        if c["source"]["path"] is None:
            return self.lake.latest("photos", self.category)
        photos, summary = crawl(self.lake, self.category, c["source"], c["fetch"], self.resources)
        counts = {f"status_{k}": v for k, v in summary["status"].items()}
        counts |= {k: summary[k] for k in ("wanted", "duplicates", "photos")}
        self._log(None, "crawl", {"dataset": photos.path}, counts)
        return photos

    def _truth(self, instances: Dataset) -> pa.Table | None:
        """`instance_id, truth_keypoints` of the sandbox's web animals."""
        if self.truth_file is None:
            return None
        from sandbox.truth import true_keypoints

        rows = instances.read(["instance_id", "photo_id", "bbox"])
        return pa.table({"instance_id": rows["instance_id"], "truth_keypoints": true_keypoints(rows, self.truth_file)})

    def _train(self, name: str, round: int | None = None, made: Mapping[str, Dataset] | None = None) -> dict[str, Any]:
        """Train a network on the labels, and on the selection in `made`, or find it trained."""
        c = self.config
        settings = {k: v for k, v in c["train"][name].items() if k != "start"}
        kind = "pose" if name == "aux" else name
        former = self.rounds[-1]["model"] if self.rounds else None
        job = {"kind": kind, "name": name, "lake": self.lake.uri, "category": self.category, "seed": c["seed"]}
        job |= {"run": c["run"], "round": round}
        job |= start_keys(c["train"], name, self.nets.get("pose", {}).get("model"), former)
        lineage = {t: made[t] for t in TABLES if t in made} if made else {}
        job["pseudo"] = None
        if "selections" in lineage:
            job["pseudo"] = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in lineage.items()}
        if kind == "acsm":
            job["template"] = self.template
            if c["criterion"] == "none" and round and c["train"]["acsm"]["start"] != "former":
                # The control: the steps of all rounds so far, on labels alone.
                settings["plan"] = {**settings["plan"], "steps": settings["plan"]["steps"] * (round + 1)}
        elif job["pseudo"]:  # the joints that count are those that the 3D net counts
            settings["min_confidence"] = c["train"]["acsm"]["min_confidence"]
        title = name if round is None else f"{name} round {round}"
        with training_bar(title, settings["plan"]["steps"]) as show, logs.within(stage=f"train {title}"):
            watchers = (show, self.tracker.watch(round, f"train {name}"), meters.training(name))
            done = self.group.run({**job, "settings": settings}, *watchers)
        params = {"model": done["model"], "model_id": done["model_id"], "items": done["items"]}
        params |= {"config": fingerprint(c), "start_from": job.get("start_from")}
        params |= {t: d.path for t, d in lineage.items()}
        self._log(round, f"train {name}", params, scalars(done["metrics"]))
        return done

    def _pseudo_labels(self, number: int, made: Mapping[str, Dataset]) -> dict[str, Dataset]:
        """Judge the pool with the teacher and select; sets `stopped` where the selection should not be trained on."""
        c, instances = self.config, made["instances"]
        if c["retrain_pose"] and "selections" in made:
            self.pose = self._train("pose", number, made)
        teacher = self._teacher(number)
        models = {"pose": self.pose["model"], "aux": self.nets["aux"]["model"], "acsm": teacher}
        pseudo = infer(
            self.lake, self.category, instances, models, number, self.resources, before=made.get("pseudo_labels")
        )
        params = {"dataset": pseudo.path, "teacher": teacher, **pseudo.identity["models"]}
        self._log(number, "keypoints", params, (pseudo.finished() or {})["summary"])
        top_n = size_of(c["top_n"], number)
        oracle = self.truth if c["criterion"] == "oracle" else None
        chosen = select_round(self.lake, pseudo, instances, c["criterion"], top_n, number, truth=oracle, **policy_of(c))
        rows = chosen.read().sort_by("rank")
        found = self._diagnose(number, pseudo, rows, made, models)
        sink = pa.BufferOutputStream()
        csv.write_csv(rows, sink)
        texts = {"selections.csv": sink.getvalue().to_pybytes().decode(), "diagnostics.json": json.dumps(found)}
        params = {"dataset": chosen.path, "pseudo_labels": pseudo.path, "criterion": c["criterion"], "top_n": top_n}
        values = {k: found.get(k) for k in ("selected", "jaccard", "evenness", "ece", "strangers")}
        values["pck_10"] = found["pck"]["selected"][-1] if "pck" in found else None
        self._log(number, "select", params, (chosen.finished() or {})["summary"] | values, texts)
        if why := alarm(found, c["stop"]):
            self.stopped = f"round {number} was not trained: {why}"
        return {**made, "pseudo_labels": pseudo, "selections": chosen}

    def _teacher(self, number: int) -> str:
        """The 3D network that judges round `number`'s pseudo-labels."""
        former = self.rounds[-1]["model"]
        if self.config["teacher"] == "best":
            return max(self.rounds, key=lambda r: self._score(r["round"]))["model"]
        if self.config["teacher"] == "ema" and number > 1:
            done = average(self.lake, self.category, self.teacher, former)
            scores = {f"{split}_auc_06_10": m["auc_06_10"] for split, m in done["metrics"].items()}
            self._log(number, "average", {"model": done["model"], "of": f"{self.teacher}, {former}"}, scores)
            former = done["model"]
        self.teacher = former
        return former

    def _diagnose(
        self,
        number: int,
        pseudo: Dataset,
        chosen: pa.Table,
        made: Mapping[str, Dataset],
        models: Mapping[str, str | None],
    ) -> dict[str, Any]:
        """Write the round's `diagnostics.json` and its pictures."""
        former = made["selections"].read(["instance_id", "selected"]) if "selections" in made else None
        before = None if former is None else former.filter(former["selected"])["instance_id"].to_pylist()
        if self.truth is not None:
            judged = with_truth(pseudo, made["instances"], self.truth)
        else:
            judged = held_out(self.lake, self.category, models)
        found = diagnose(pseudo, chosen, before, judged, self.config)
        found |= {"round": number, "truth": "held-out labels" if self.truth is None else "the sandbox's truth"}
        folder = f"{self.folder}/round-{number}"
        self.lake.files.write_json(f"{folder}/diagnostics.json", found)
        write_pictures(self.lake, folder, found, chosen, pseudo, made["instances"])
        return found

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

    def _close(self, detector: str, seconds: float) -> None:
        best = max((r["round"] for r in self.rounds), key=self._score)
        c, nets = self.config, self.nets
        self.lake.files.write_json(
            f"{self.folder}/run.json",
            {
                "category": self.category, "template": self.template, "best_round": best, "stopped": self.stopped,
                "rounds": self.rounds, "networks": {"detector": detector} | {k: v["model"] for k, v in nets.items()},
                "metrics_2d": {k: v["metrics"] for k, v in nets.items()}, "seconds": round(seconds, 1),
            },
        )  # fmt: skip
        show_rounds(self.rows, best, self.stopped)
        ids = {r["round"]: self.tracker.ids[f"round {r['round']}/train acsm"] for r in self.rounds}
        versions = [{**r, "run_id": ids[r["round"]], "config": fingerprint(c)} for r in self.rounds]
        register(self.tracker, f"{c['mlflow']['experiment']}-{self.category}-{c['run']}", versions, best)
        page = write_report(self.lake, self.category, c["run"])
        html = (self.lake.files.read(f"{self.folder}/report.html") or b"").decode()
        texts = {"metrics.json": json.dumps(self.rows, indent=1), "report.html": html}
        self.tracker.close(texts, {"best_round": best, "stopped": self.stopped})
        Console().print(f"report: {page}", soft_wrap=True)

    def _log(
        self,
        number: int | None,
        name: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, Any],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        stage = name if number is None else f"{name} round {number}"
        with logs.within(stage=stage):
            known = {k: v for k, v in {**params, **metrics}.items() if v is not None}
            logs.event(_logger, "stage of the loop ended", **known)
        self.tracker.stage(number, name, params, metrics, texts)


def show_rounds(rows: list[dict[str, Any]], best: int, stopped: str | None) -> None:
    """The closing table: AUC, camera error and silhouette overlap by round and split, and why the loop ended early."""
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
    if stopped:
        Console().print(f"stopped: {stopped}", soft_wrap=True)


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False)
