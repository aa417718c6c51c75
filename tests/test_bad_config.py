"""A wrong value of what commands share, `resources`, `seed`, `lake` and `train`, is one line and starts nothing."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny import _train_settings

from tables import InputError
from trainers.app import check_lake, check_seed
from trainers.cluster import check_resources
from trainers.settings import check_settings

NO_WHOLE: list[Any] = ["abc", None, True, 1.5, -1, 10**30, math.nan, [1], {"a": 1}]
NO_NUMBER: list[Any] = ["abc", None, True, -1, 10**30, math.nan, math.inf, [1], {"a": 1}]


def given(name: str, value: Any) -> dict[str, Any]:
    """The section of conf/base.yaml with one key changed; a name with a dot is below `train`."""
    section: dict[str, Any] = yaml.safe_load((files("conf") / "base.yaml").read_text(encoding="utf-8"))["resources"]
    *folders, key = name.split(".")
    (section["train"] if folders else section)[key] = value
    return section


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("actors", [*NO_WHOLE, 0]),
        ("threads", [*NO_WHOLE, 0]),
        ("cpus", [*NO_NUMBER, 0]),
        ("gpus", [*NO_NUMBER, 1.5]),
        ("failure_budget", [*NO_NUMBER, 2]),
        ("address", [5, True, "", "somewhere", "host:", "host:port", ["auto"], "a b:1"]),
        ("train", [5, None, "abc", []]),
        ("train.workers", [*NO_WHOLE, 0]),
        ("train.threads", [*NO_WHOLE, 0, "x"]),
        ("train.max_failures", NO_WHOLE),
        ("train.cpus", [*NO_NUMBER, 0]),
        ("train.gpus", [*NO_NUMBER, 2.5]),
        ("actor", [1]),
        ("train.worker", [1]),
    ],
)
def test_a_wrong_value_of_resources_is_named(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError) as caught:
            check_resources(given(name, value))
        assert caught.value.argument == f"resources.{name}", value
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("actors", [1, 10_000]),
        ("cpus", [0.5, 1, 3.5]),
        ("gpus", [0, 0.5, 1, 2.0]),
        ("failure_budget", [0, 0.0, 0.1, 1]),
        ("address", [None, "auto", "10.0.0.1:6379", "head.cluster:6379", "ray://head:10001", "[::1]:6379"]),
        ("train.cpus", [0.01]),
        ("train.max_failures", [0]),
    ],
)
def test_a_right_value_passes(name: str, values: list[Any]) -> None:
    for value in values:
        check_resources(given(name, value))
        check_resources(OmegaConf.create(given(name, value)))


@pytest.mark.parametrize("section", [None, 5, "abc", [1]])
def test_resources_is_a_section(section: Any) -> None:
    with pytest.raises(InputError, match=r"^resources="):
        check_resources(section)


def test_a_key_taken_away_is_missed() -> None:
    section = given("actors", 1)
    del section["actors"]
    with pytest.raises(InputError, match=r"^resources\.actors=null: must be given"):
        check_resources(section)


def test_every_command_passes_with_its_own_config() -> None:
    names = [f.name.removesuffix(".yaml") for f in files("conf").iterdir() if f.name.endswith(".yaml")]
    with initialize_config_module("conf", version_base="1.3"):
        for name in names:
            check_resources(compose(name).resources)


@pytest.mark.parametrize("seed", [*NO_WHOLE, "0", 2**32])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(InputError, match=r"^seed=.*: must be a whole number between 0 and 4294967295$"):
        check_seed(seed)
    check_seed(0)
    check_seed(2**32 - 1)


# -- train ----------------------------------------------------------------------------------------------------------


def trained(name: str, key: str, value: Any) -> dict[str, Any]:
    """A section of conf/train/small.yaml, made tiny, with one key changed."""
    section = {**copy.deepcopy(_train_settings()[name]), "start": None}
    *folders, last = key.split(".")
    at = section
    for folder in folders:
        at = at[folder]
    at[last] = value
    return section


NO_SHARE: list[Any] = [*NO_NUMBER, "0.5", 1.01]
NO_FLAG: list[Any] = ["false", 0, 1, None, 1.0]


@pytest.mark.parametrize(
    ("name", "keys", "values"),
    [
        ("pose", ("plan.steps", "plan.batch", "plan.checkpoint_every", "net.width", "net.channels"), [*NO_WHOLE, 0]),
        ("acsm", ("net.hypotheses", "net.features"), [*NO_WHOLE, 0]),
        ("detector", ("image_size",), [*NO_WHOLE, 32, 100]),
        ("aux", ("net.depth",), [*NO_WHOLE, 19, 18.0]),
        ("pose", ("plan.lr", "sigma"), [*NO_NUMBER, 0, "1e-3"]),
        ("pose", ("plan.weight_decay", "plan.clip", "augment.zoom", "augment.shift", "augment.colour"), NO_NUMBER),
        ("acsm", ("robust", "keypoint_weight", "augment.rotate", "mask_losses.cycle"), NO_NUMBER),
        ("acsm", ("labels_from", "rigid", "min_confidence", "augment.flip", "mask_losses.warm_up"), NO_SHARE),
        ("acsm", ("plan.ema",), [*NO_SHARE, 1]),
        ("acsm", ("label_share",), [v for v in NO_SHARE if v is not None]),
        ("acsm", ("gate",), [0, *(v for v in NO_NUMBER if v is not None)]),
        ("acsm", ("pseudo_weight",), [*NO_NUMBER, "sure"]),
        ("acsm", ("plan.freeze_norm", "net.surface"), NO_FLAG),
        ("pose", ("plan.schedule", "plan.precision"), ["linear", None, 1, True, ["auto"]]),
        ("acsm", ("net.compat",), ["csm", True, 0]),
        ("acsm", ("plan", "net", "augment", "mask_losses"), [5, None, "abc", []]),
        ("pose", ("typo", "plan.stpes", "net.widht", "net.hypotheses", "augment.rotation", "rigid"), [1]),
        ("acsm", ("mask_losses.cylce", "sigma"), [1]),
        ("detector", ("augment.rotate",), [1]),
    ],
)
def test_a_wrong_value_of_train_is_named(name: str, keys: tuple[str, ...], values: list[Any]) -> None:
    for key in keys:
        for value in values:
            with pytest.raises(InputError) as caught:
                check_settings(name, trained(name, key, value))
            assert caught.value.argument == f"train.{name}.{key}", value
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("label_share", [None, 0, 0.5, 1]),
        ("gate", [None, 0.1, 100.0]),
        ("pseudo_weight", [0, 2.5, "confidence"]),
        ("plan.clip", [0, 0.5]),
        ("plan.precision", ["auto", "float32", "bfloat16", "float64"]),
        ("net.compat", [None, "animals3d"]),
    ],
)
def test_a_right_value_of_train_passes(key: str, values: list[Any]) -> None:
    for value in values:
        check_settings("acsm", trained("acsm", key, value))


@pytest.mark.parametrize("key", ["start", "rigid", "plan.lr", "net.depth", "mask_losses.cycle"])
def test_a_key_of_train_taken_away_is_missed(key: str) -> None:
    section: Any = trained("acsm", "rigid", 0)
    *folders, last = key.split(".")
    del (section[folders[0]] if folders else section)[last]
    with pytest.raises(InputError, match=rf"^train\.acsm\.{key}=null: must be given$"):
        check_settings("acsm", section)


@pytest.mark.parametrize("size", ["small", "full"])
def test_our_own_trainings_pass(size: str) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        train = compose("selftrain", overrides=[f"train={size}"]).train
    for name in ("pose", "aux", "detector", "acsm"):
        check_settings(name, train[name])


def test_the_trainings_of_the_study_and_of_the_extensions_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from benchmarks import extensions, study
    from benchmarks.study_arms import change, train_settings

    made = train_settings(64, 24)
    for name in ("pose", "aux"):
        check_settings(name, made[name])
    check_settings("acsm", change(made["acsm"], study.MIXING))
    for arm in extensions.ARMS:
        check_settings("acsm", change(change(made["acsm"], extensions.BASE), arm.train))


# -- lake -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lake", ["/proc/nope", "/proc/nope/deeper", "file:///proc/nope", "/proc", "/dev/null/lake"])
def test_a_lake_that_cannot_be_written_is_refused(lake: str) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("no /proc here")
    with pytest.raises(InputError, match=r"^lake=.*: cannot be written: /\w+"):
        check_lake(lake)


def test_a_lake_that_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    for lake in (tmp_path, tmp_path / "deep" / "lake", f"file://{tmp_path}/lake"):
        check_lake(str(lake))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "args", "said"),
    [
        ("pipelines.crawl", ["resources.actors=abc"], "resources.actors=abc: must be a whole number between 1"),
        ("pipelines.export", ["resources.cpus=-1"], "resources.cpus=-1: must be a number between"),
        ("trainers.pose", ["resources.train.workers=0"], "resources.train.workers=0: must be a whole number"),
        ("trainers.pose", ["seed=-1"], "seed=-1: must be a whole number between 0"),
        ("pipelines.selftrain", ["train.acsm.plan.lr=fast"], "train.acsm.plan.lr=fast: must be a number between"),
        ("trainers.tune", ["resources=5"], "resources=5: is a section"),
        ("pipelines.detect", ["~resources.threads"], "resources.threads=null: must be given"),
        ("pipelines.report", ["resources.actors=${nope}"], "resources.actors: Interpolation key 'nope' not found"),
        ("pipelines.select", ["lake=${nope}"], "config: Interpolation key 'nope' not found"),
        ("pipelines.selftrain", ["lake=/proc/nope"], "lake=/proc/nope: cannot be written"),
        ("pipelines.crawl", ["lake=/proc/nope"], "lake=/proc/nope: cannot be written"),
    ],
)
def test_a_command_refuses_in_one_line(module: str, args: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"error: {said}")
    assert list(tmp_path.iterdir()) == []
