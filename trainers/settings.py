"""What a section of the `train` config may hold: checked whole, before workers start. Needs no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from models.resnet import BLOCKS
from tables import InputError
from trainers.start import check_start

_WHOLE, _NUMBER = "a whole number", "a number"
_MANY, _TINY = 10**9, 1e-12


class Rule(NamedTuple):
    """What a key may be: a number of a kind between bounds, or one of `others`."""

    kind: str = ""
    least: float = 0
    most: float = 0
    others: tuple[str | bool | None, ...] = ()

    def allows(self, value: Any) -> bool:
        # True is 1 and 1.0 is 1 for Python: here only what is written so.
        if any(type(value) is type(other) and value == other for other in self.others):
            return True
        right = type(value) is int or (type(value) is float and self.kind == _NUMBER)
        return bool(self.kind) and right and self.least <= value <= self.most

    def __str__(self) -> str:
        names = {None: "null", True: "true", False: "false"}
        others = [names.get(other, str(other)) for other in self.others]  # type: ignore[arg-type]
        bounds = [f"{self.kind} between {self.least} and {self.most}"] if self.kind else []
        return f"must be {' or '.join([*bounds, *others])}"


def _whole(least: int, most: int = _MANY) -> Rule:
    return Rule(_WHOLE, least, most)


def _number(least: float, most: float, *others: str | None) -> Rule:
    return Rule(_NUMBER, least, most, others)


def _one_of(*choices: str | bool | None) -> Rule:
    return Rule(others=choices)


_SHARE, _WEIGHT, _FLAG = _number(0, 1), _number(0, 1e6), _one_of(True, False)

# Keys of all sections; conf/train/small.yaml explains them.
_PLAN = {
    "steps": _whole(1), "batch": _whole(1, 10**6), "checkpoint_every": _whole(1), "lr": _number(_TINY, 1000),
    "weight_decay": _number(0, 1000), "clip": _number(0, 1e9), "ema": _number(0, 1 - _TINY), "freeze_norm": _FLAG,
    "schedule": _one_of("cosine", "constant"), "precision": _one_of("auto", "float32", "bfloat16", "float64"),
}  # fmt: skip
_COMMON = {"image_size": _whole(64, 8192)} | {f"plan.{key}": rule for key, rule in _PLAN.items()}
_TRUNK = {"net.width": _whole(1, 4096)}
_AUGMENT = {
    "augment.zoom": _number(0, 10), "augment.shift": _number(0, 10), "augment.flip": _SHARE,
    "augment.colour": _number(0, 10),
}  # fmt: skip
_ROTATE = {"augment.rotate": _number(0, 360)}
_HEATMAPS = _COMMON | _TRUNK | _AUGMENT | {"net.channels": _whole(1, 65536)}
_POSE = _HEATMAPS | _ROTATE | {"sigma": _number(0.01, 1000)}
_ACSM = _COMMON | _TRUNK | _AUGMENT | _ROTATE | {
    "net.hypotheses": _whole(1, 1000), "net.features": _whole(1, 65536), "net.surface": _FLAG,
    "net.compat": _one_of("animals3d", None), "label_share": _number(0, 1, None), "labels_from": _SHARE,
    "rigid": _SHARE, "robust": _number(0, 1e6), "min_confidence": _SHARE, "gate": _number(_TINY, 1e6, None),
    "pseudo_weight": _number(0, 1e6, "confidence"), "keypoint_weight": _WEIGHT,
    "mask_losses.keypoints_first": _SHARE, "mask_losses.warm_up": _SHARE,
} | {
    f"mask_losses.{name}": _WEIGHT
    for name in ("cycle", "visibility", "coverage", "consistency", "segmentation", "entropy", "rotation")
}  # fmt: skip
_SECTIONS = {"pose": _POSE, "aux": _POSE, "detector": _HEATMAPS, "acsm": _ACSM}
_ELSEWHERE = ("start", "net.depth")  # keys with a rule of their own


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a section of the `train` config that cannot be trained, before workers start.

    Args:
        name: pose, aux, detector or acsm.

    Raises:
        InputError: naming the key that is missing, unknown, of the wrong type or out of bounds, its value and the fix.
    """
    rules = _SECTIONS[name]
    folders = {key.split(".")[0] for key in rules if "." in key}
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in folders:
            values[str(key)] = value
        elif not isinstance(value, Mapping):
            raise InputError(f"train.{name}.{key}", value, "is a section: set its keys one by one")
        else:
            values |= {f"{key}.{inner}": value[inner] for inner in value}
    known = {*rules, *_ELSEWHERE}
    for key in sorted(known ^ values.keys()):
        beside = sorted(k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0])
        fix = "must be given" if key in known else f"no such key: use {', '.join(beside)}"
        raise InputError(f"train.{name}.{key}", values.get(key, "null"), fix)
    for key, rule in rules.items():
        if not rule.allows(values[key]):
            raise InputError(f"train.{name}.{key}", values[key], str(rule))
    if values["image_size"] % 32:
        raise InputError(f"train.{name}.image_size", values["image_size"], "must be a multiple of 32, at least 64")
    if type(values["net.depth"]) is not int or values["net.depth"] not in BLOCKS:
        fix = f"use one of {', '.join(map(str, sorted(BLOCKS)))}"
        raise InputError(f"train.{name}.net.depth", values["net.depth"], fix)
    check_start(name, settings)
