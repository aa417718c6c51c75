"""A wrong value of what commands share, `resources` and `lake`, is one line and exit code 2, and starts nothing."""

from __future__ import annotations

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

from tables import InputError
from trainers.app import check_lake
from trainers.cluster import check_resources

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


@pytest.mark.parametrize("lake", ["/proc/nope", "/proc/nope/deeper", "file:///proc/nope", "/proc", "/dev/null/lake"])
def test_a_lake_that_cannot_be_written_is_refused(lake: str) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("no /proc here")
    with pytest.raises(InputError, match=r"^lake=.*: cannot be written: /\w+"):
        check_lake(lake)


def test_a_lake_that_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    for lake in (tmp_path, tmp_path / "deep" / "lake", f"file://{tmp_path}/lake", "s3://bucket/lake"):
        check_lake(str(lake))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "args", "said"),
    [
        ("pipelines.crawl", ["resources.actors=abc"], "resources.actors=abc: must be a whole number between 1"),
        ("pipelines.export", ["resources.cpus=-1"], "resources.cpus=-1: must be a number between"),
        ("trainers.pose", ["resources.train.workers=0"], "resources.train.workers=0: must be a whole number"),
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
