"""One arm of an experiment: what it trains on and how, and what comes out. Needs no Ray.

An arm is done for a seed, and the seed draws everything: which labels of the world's are used (of two numbers of labels
the smaller draw is part of the larger), the 2D networks trained on them, the round-0 model, and the arm's own training.
Everything is made by the loop's own parts and kept in the lake under its fingerprint: what two arms share is made once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from benchmarks.rounds import inferred
from benchmarks.study_world import commit, instances
from benchmarks.wild import wild_instances
from models.checkpoint import load_checkpoint
from models.crops import to_photo
from models.metrics import auc_06_10
from models.predict import in_photo, predict_acsm
from sandbox.truth import true_keypoints
from selection import CRITERIA, select
from tables import Dataset, Lake, fingerprint, join_rows, schema, to_column, to_numpy
from trainers.data import Instances
from trainers.evaluate import BATCH
from trainers.jobs import run_job


@dataclass(frozen=True)
class Arm:
    """What differs from the bench's settings.

    Attributes:
        labels: labelled animals to train with.
        criterion: by which pseudo-labels are kept; None: labels alone.
        keep: pseudo-labelled animals to keep.
        rules: rules and parameters of the selection beside the criterion.
        rounds: of the loop; each round's model judges the next round's pseudo-labels, each makes a row.
        shuffled: the kept animals get each other's joints.
        train: settings of the 3D net's training by dotted path.
        longer: times as many steps.
    """

    name: str
    labels: int = 150
    criterion: str | None = "cf_cm2"
    keep: int = 300
    rules: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1
    shuffled: bool = False
    train: Mapping[str, Any] = field(default_factory=dict)
    longer: int = 1


@dataclass(frozen=True)
class Bench:
    """Where an experiment runs, and the settings that its arms share.

    `settings` holds those of the 2D nets `pose` and `aux`, of the round-0 model `former`, and of the arms' `acsm`.

    Attributes:
        world: what `benchmarks.study_world` made.
        work: folder for all that is trained, a lake for each world in it.
    """

    world: str
    work: str
    device: str
    settings: Mapping[str, Any]

    def told(self) -> dict[str, Any]:
        """What is known of the world."""
        return yaml.safe_load((Path(self.world) / "world.json").read_text(encoding="utf-8"))

    @property
    def lake(self) -> str:
        """Where what is trained in this world lies: two worlds may share a category."""
        return f"{self.work}/{self.told()['world']}"

    def mark(self, arm: Arm) -> str:
        """Names an arm's way of being trained: a row made in another way is another row."""
        return fingerprint({"world": self.told()["world"], "settings": self.settings, "arm": asdict(arm)})


def train_settings(size: int, width: int) -> dict[str, Any]:
    """`conf/train/small.yaml` for nets of another size."""
    path = Path(__file__).parents[1] / "conf" / "train" / "small.yaml"
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    plain["image_size"] = size

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: resolved(v) for k, v in node.items()}
        if isinstance(node, str) and node.startswith("${train."):
            target: Any = plain
            for name in node[len("${train.") : -1].split("."):
                target = target[name]
            return resolved(target)
        return node

    made = {name: resolved(plain[name]) for name in ("pose", "aux", "acsm")}
    for name, section in made.items():
        section["net"]["width"] = width // 2 if name == "aux" else width
        section["plan"]["checkpoint_every"] = 10**6  # an arm is shorter than what it would cost to go on with one
    return made


def change(settings: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a section with other values at dotted paths.

    Raises:
        KeyError: the section has no such key.
    """
    out = {k: dict(v) if isinstance(v, Mapping) else v for k, v in settings.items()}
    for path, value in train.items():
        *folders, name = path.split(".")
        at = out
        for folder in folders:
            at = at[folder]
        if name not in at:
            raise KeyError(path)
        at[name] = value
    return out


def draw(bench: Bench, labels: int, seed: int) -> tuple[str, Dataset]:
    """The category that holds a seed's draw of labels, and the pool beside it."""
    told = bench.told()
    world, work = Lake(bench.world), Lake(bench.lake)
    category = f"{told['category']}-{labels}-{seed}"
    pool = work.dataset("instances", category, {"world": told["world"]}, slot="pool")
    if pool.finished() is not None:
        return category, pool
    table = world.dataset("labels", told["category"], {"world": told["world"]}).read()
    train = sorted(table.filter(pc.equal(table["split"], "train"))["instance_id"].to_pylist())
    if labels > len(train):
        raise SystemExit(f"labels={labels}: the world has {len(train)}")
    left_out = np.random.default_rng([seed, len(train)]).permutation(len(train))[labels:]
    keep = pc.invert(pc.is_in(table["instance_id"], pa.array([train[i] for i in left_out], pa.string())))
    identity = {"world": told["world"], "labels": labels, "seed": seed}
    crops = instances(world, told["category"], told["world"], "labelled").read()
    commit(work.dataset("instances", category, identity), crops)
    commit(work.dataset("labels", category, identity), table.filter(keep))
    return category, commit(pool, instances(world, told["category"], told["world"], "pool").read())


def net(bench: Bench, name: str, labels: int, seed: int) -> str:
    """Path of a 2D network: `pose` or `aux`."""
    category, _ = draw(bench, labels, seed)
    settings = {k: v for k, v in bench.settings[name].items() if k != "start"}
    job = {"kind": "pose", "lake": bench.lake, "category": category, "seed": seed, "settings": settings}
    return run_job(job, device=bench.device)["model"]


def former(bench: Bench, labels: int, seed: int) -> str:
    """Path of the round-0 model, which the first round's pseudo-labels are judged by."""
    own = replace(bench, settings={**bench.settings, "acsm": bench.settings["former"]})
    return _train(own, Arm("labels only", labels, None), seed)["model"]


def pseudo_labels(bench: Bench, labels: int, seed: int, number: int = 1, model: str | None = None) -> Dataset:
    """A round's pseudo-labels of the pool; `model`: the round before's, None: round 0's."""
    category, pool = draw(bench, labels, seed)
    nets = {name: net(bench, name, labels, seed) for name in ("pose", "aux")}
    nets["acsm"] = model or former(bench, labels, seed)
    return inferred(Lake(bench.lake), category, pool, nets, number, None)


def judged(bench: Bench, pseudo: Dataset, pool: Dataset) -> pa.Table:
    """Pseudo-labels with their boxes and, for the oracle and the diagnostics, the truth."""
    rows = join_rows(pseudo.read(), pool.read(["instance_id", "photo_id", "bbox"]), "instance_id")
    return rows.append_column("truth_keypoints", true_keypoints(rows, f"{bench.world}/truth.parquet"))


def kept_by(arm: Arm, rows: pa.Table, seed: int) -> pa.Table:
    """The `selections` of an arm with a criterion among judged pseudo-labels."""
    assert arm.criterion is not None
    params = {"seed": seed} if "seed" in CRITERIA[arm.criterion].params else {}
    return select(rows, arm.criterion, arm.keep, **params, **arm.rules)


def run_arm(bench: Bench, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """A row for each round of an arm."""
    began, rows = time.time(), []
    if arm.criterion is None:
        return [_row(bench, arm, arm.name, seed, _train(bench, arm, seed), began)]
    _, pool = draw(bench, arm.labels, seed)
    model = former(bench, arm.labels, seed)
    for number in range(1, arm.rounds + 1):
        pseudo = pseudo_labels(bench, arm.labels, seed, number, model)
        table = judged(bench, pseudo, pool)
        kept = kept_by(arm, table, seed)
        identity = {"arm": bench.mark(arm), "pseudo": pseudo.fingerprint, "rules": dict(arm.rules)}
        selection = Lake(bench.lake).dataset("selections", pseudo.category, identity, slot=arm.name)
        commit(selection, kept)
        if arm.shuffled:
            pseudo = _shuffled(bench, pseudo, table, kept, seed)
        made = {"instances": pool, "pseudo_labels": pseudo, "selections": selection}
        lineage = {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in made.items()}
        done = _train(bench, arm, seed, lineage, model)
        name = f"{arm.name}, round {number}" if arm.rounds > 1 else arm.name
        rows.append(_row(bench, arm, name, seed, done, began))
        began, model = time.time(), done["model"]
    return rows


def _train(bench: Bench, arm: Arm, seed: int, lineage: Any = None, before: str | None = None) -> dict[str, Any]:
    category, _ = draw(bench, arm.labels, seed)
    settings = _settings(bench, arm)
    start = settings.pop("start")
    starts = {"pose": lambda: net(bench, "pose", arm.labels, seed), "former": lambda: before, None: lambda: None}
    job = {
        "kind": "acsm", "lake": bench.lake, "category": category, "seed": seed, "settings": settings,
        "template": str(Path(bench.world) / "animal.template"), "pseudo": lineage, "start_from": starts[start](),
    }  # fmt: skip
    return run_job(job, device=bench.device)


def _settings(bench: Bench, arm: Arm) -> dict[str, Any]:
    settings = change(bench.settings["acsm"], arm.train)
    settings["plan"]["steps"] *= arm.longer
    return settings


def _row(bench: Bench, arm: Arm, name: str, seed: int, done: Mapping[str, Any], began: float) -> dict[str, Any]:
    found = {**done["metrics"], "wild": {"auc_06_10": _wild_auc(bench, done["model"])}}
    return {
        "arm": name, "seed": seed, "labels": arm.labels, "items": done["items"],
        "steps": _settings(bench, arm)["plan"]["steps"],
        **{split: round(found[split]["auc_06_10"], 3) for split in ("val", "test", "wild")},
        "camera_error_deg": round(found["test"]["camera_error_deg"], 2), "miou": round(found["test"]["miou"], 4),
        "mark": bench.mark(arm), "seconds": round(time.time() - began, 1),
    }  # fmt: skip


def _wild_auc(bench: Bench, model: str) -> float:
    """As `trainers.evaluate` measures it, on web animals that no arm trains on."""
    net: Any = load_checkpoint(model).to(bench.device)  # type: ignore[union-attr]
    data = _wild(bench.world, int(bench.settings["acsm"]["image_size"]))
    parts = [slice(at, at + BATCH) for at in range(0, len(data), BATCH)]
    joints = [in_photo(predict_acsm(net, data.crops[p]).keypoints[:, 0], data.windows[p]) for p in parts]
    truth = to_photo(data.keypoints[..., :2].astype(np.float64), data.windows)
    return auc_06_10(np.concatenate(joints), truth, data.keypoints[..., 2] > 0, data.size)


@lru_cache(1)
def _wild(world: str, size: int) -> Instances:
    told = Bench(world, "", "", {}).told()
    found = instances(Lake(world), told["category"], told["world"], "wild")
    return wild_instances(found, str(Path(world) / "truth.parquet"), size)


def _shuffled(bench: Bench, pseudo: Dataset, table: pa.Table, kept: pa.Table, seed: int) -> Dataset:
    """The same pseudo-labels, but each kept animal has the joints of another, moved and scaled into its own box."""
    ids = kept.filter(kept["selected"])["instance_id"]
    at = pc.index_in(ids, table["instance_id"]).to_numpy(zero_copy_only=False).astype(np.int64)
    box = to_numpy(table["bbox"], 4).astype(np.float64)
    joints = to_numpy(table["keypoints"], -1, 3).copy()
    other = at[np.random.default_rng(seed).permutation(len(at))]
    moved = (joints[other, :, :2] - box[other, None, :2]) / box[other, None, 2:] * box[at, None, 2:] + box[at, None, :2]
    joints[at] = np.concatenate([moved, joints[other, :, 2:]], -1)
    rows = table.select(schema("pseudo_labels").names)
    rows = rows.set_column(rows.column_names.index("keypoints"), "keypoints", to_column(joints.astype(np.float32)))
    out = Lake(bench.lake).dataset("pseudo_labels", pseudo.category, {"shuffled": pseudo.fingerprint, "seed": seed})
    return commit(out, rows)
