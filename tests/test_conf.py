"""Every YAML file under conf/ is composed, resolves, and is a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from trainers.cluster import check_resources

CONF = Path(__file__).resolve().parents[1] / "conf"
FILES = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.rglob("*.yaml"))
ENTRIES = [f for f in FILES if "/" not in f and f != "base"]
GROUP_FILES = [f for f in FILES if "/" in f]


def defaults(name: str) -> list:
    return (yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")) or {}).get("defaults", [])


def groups_of(entry: str) -> dict[str, str]:
    """Config groups an entry chooses from: group as named on the command line -> default option."""
    chosen = {}
    for item in defaults(entry):
        if isinstance(item, dict):
            for key, option in item.items():
                key = key.removeprefix("optional ").removeprefix("override ")
                chosen[key] = str(option)
    return chosen


def resolved(name: str, *overrides: str) -> dict:
    with initialize_config_module(config_module="conf", version_base="1.3"):
        cfg = compose(name, overrides=list(overrides))
    OmegaConf.resolve(cfg)
    # "???" is a value the user must give: part of the document, and not an error of composition.
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)


def test_there_is_something_to_compose() -> None:
    assert "select" in ENTRIES
    assert "selection/default" in GROUP_FILES


@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_composes_and_has_the_shared_keys(entry: str) -> None:
    cfg = resolved(entry)
    assert {"category", "lake", "seed", "resources"} <= set(cfg), "defaults must hold base"
    assert not [k for k in cfg if k == "hydra"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_is_a_command_and_a_document(entry: str) -> None:
    sources = {room: CONF.parent / room / f"{entry}.py" for room in ("pipelines", "trainers")}
    found = [r for r, p in sources.items() if p.exists() and f'@command("{entry}")' in p.read_text(encoding="utf-8")]
    assert len(found) == 1, f"conf/{entry}.yaml needs one module pipelines.{entry} or trainers.{entry}"
    header = header_of(entry)
    assert len(header) >= 2, f"conf/{entry}.yaml: the header says what it does, how to launch it, what to override"
    assert f"python -m {found[0]}.{entry}" in " ".join(header), "the header names the launch command"


def header_of(name: str) -> list[str]:
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    stop = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:stop]


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_explained(name: str) -> None:
    """Each key has a comment on a line of its own or above its block, in this file or in its group's other options."""
    family = [name] if "/" not in name else [f for f in GROUP_FILES if f.rsplit("/", 1)[0] == name.rsplit("/", 1)[0]]
    known = {key for f in family for key, text in keys_of(f) if text}
    assert not (bare := [key for key, text in keys_of(name) if key not in known]), f"conf/{name}.yaml: {bare}"


def keys_of(name: str) -> Iterator[tuple[str, str]]:
    """Keys that hold values, with what explains them: the line's comment, a comment above, or another key's value."""
    section, above = "", ""
    for line in (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if line[:1].isalpha():
            section = line.split(":")[0]
        if not text or text.startswith("#"):
            above = text
        elif section not in ("defaults", "hydra") and not text.endswith(":"):
            key, _, value = text.partition(":")
            yield key, above or ("${" in value and value) or value.partition("#")[2]


@pytest.mark.parametrize("name", [f for f in GROUP_FILES if f.rsplit("/", 1)[0] not in groups_of("base")])
def test_group_file_composes_in_every_entry_that_uses_its_group(name: str) -> None:
    group, option = name.rsplit("/", 1)
    users = [(e, key) for e in ENTRIES for key in groups_of(e) if key.split("@")[0].lstrip("/") == group]
    nested = [f for f in GROUP_FILES for key in groups_of(f) if key.split("@")[0].lstrip("/") == group]
    assert users or nested, f"no config chooses from the group {group}"
    for entry, key in users:
        assert resolved(entry, f"{key}={option}")
    if not users:
        assert resolved(name)


@pytest.mark.parametrize("option", [f.rsplit("/", 1)[1] for f in GROUP_FILES if f.startswith("cluster/")])
def test_a_cluster_is_a_size_that_every_command_may_take(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WILDSHAPE_LAKE", "s3://bucket/lake")
    assert groups_of("base") == {"cluster": "laptop"}
    plain = resolved("selftrain")
    for entry in ("selftrain", "crawl", "tune"):
        cfg = resolved(entry, f"cluster={option}")
        check_resources(cfg["resources"])
        assert cfg["lake"] == ("s3://bucket/lake" if option == "bucket" else "./lake")
        assert (cfg["resources"]["address"] == "auto") == (option in ("nodes", "bucket"))
        # What is said on the command line stands above it.
        said = resolved(entry, f"cluster={option}", "resources.actors=3", "lake=elsewhere")
        assert (said["resources"]["actors"], said["lake"]) == (3, "elsewhere")
    for key in ("resources", "lake", "hydra"):
        plain.pop(key, None)
    assert resolved("selftrain", f"cluster={option}").keys() == {*plain, "resources", "lake"}


def test_criterion_is_one_key_in_select_and_selftrain() -> None:
    for entry in {"select", "selftrain"} & set(ENTRIES):
        cfg = resolved(entry, "criterion=kp_conf", "top_n=7")
        assert (cfg["criterion"], cfg["top_n"]) == ("kp_conf", 7)
