"""What deploy/ holds can be read by what it is for: schemas, a shell, and the configuration of the commands in it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from documented import compose, ours
from processes import families

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SLURM = DEPLOY / "slurm.sh"

# Fields of KubeRay's ray.io/v1 RayJob that we use -> those that must be there. Its definition is in no package.
RAYJOB: dict[str, tuple[set[str], set[str]]] = {
    "spec": (
        {"backoffLimit", "entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"},
        {"entrypoint", "rayClusterSpec"},
    ),
    "rayClusterSpec": (
        {"authOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs"}, {"headGroupSpec", "rayVersion"},
    ),
    "headGroupSpec": ({"rayStartParams", "template"}, {"template"}),
    "workerGroupSpecs": (
        {"groupName", "maxReplicas", "minReplicas", "rayStartParams", "replicas", "template"},
        {"groupName", "maxReplicas", "minReplicas", "template"},
    ),
    "pod": ({"containers", "securityContext", "volumes"}, {"containers", "securityContext"}),
    "container": (
        {"envFrom", "image", "name", "ports", "resources", "volumeMounts"}, {"image", "name", "resources"},
    ),
}  # fmt: skip


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def stages() -> dict[str, list[dict[str, Any]]]:
    """The Dockerfile's instructions by stage."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in DockerfileParser(str(DEPLOY / "Dockerfile")).structure:
        if line["instruction"] == "FROM":
            name = line["value"].split(" AS ")[1]
            found[name] = []
        if found:
            found[name].append(line)
    return found


def test_images_hold_what_is_installed_and_run_without_rights() -> None:
    made = stages()
    assert list(made) == ["base", "sources", "build-cpu", "build-gpu", "cpu", "gpu"]
    copied = {line["value"].split()[0] for line in made["sources"] if line["instruction"] == "COPY"}
    assert {*PROJECT["tool"]["setuptools"]["packages"]} <= copied
    assert all((ROOT / name).exists() for name in copied)
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    files = {w for line in made["sources"] if line["instruction"] == "COPY" for w in line["value"].split()[:-1]}
    assert {word[1:] for word in kept if word.startswith("!")} == files
    extras = re.findall(r'"\.\[([\w,]+)\]"', (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    assert len(extras) == 2
    assert {e for listed in extras for e in listed.split(",")} <= {*PROJECT["project"]["optional-dependencies"]}
    torch = next(d for d in PROJECT["project"]["dependencies"] if d.startswith("torch"))
    assert f'"{torch}"' in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for target in ("cpu", "gpu"):
        last = {line["instruction"]: line["value"] for line in made[target]}
        assert last["FROM"] == f"base AS {target}"
        assert (last["USER"], last["COPY"].split()[0]) == ("1000", f"--from=build-{target}")


def test_the_launcher_takes_the_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read("ray-cluster.yaml"))
    validate_config(config)  # Ray's own schema
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])


def check_fields(kind: str, found: dict[str, Any]) -> None:
    known, needed = RAYJOB[kind]
    assert needed <= found.keys() <= known, kind


def test_the_rayjob_has_the_fields_of_its_definition() -> None:
    import ray

    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check_fields("spec", job["spec"])
    cluster = job["spec"]["rayClusterSpec"]
    check_fields("rayClusterSpec", cluster)
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    check_fields("headGroupSpec", cluster["headGroupSpec"])
    for group in cluster["workerGroupSpecs"]:
        check_fields("workerGroupSpecs", group)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len({g["template"]["spec"]["containers"][0]["image"] for g in groups}) == 1
    for group in groups:
        pod = group["template"]["spec"]
        check_fields("pod", pod)
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        check_fields("container", container)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        # Kubernetes gives a pod with equal requests and limits its memory for good.
        assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", ["Dockerfile", "ray-cluster.yaml", "rayjob.yaml", "slurm.sh"])
def test_the_commands_in_it_are_commands_of_ours(name: str, capsys: pytest.CaptureFixture) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    entry = read(name)["spec"]["entrypoint"] if name == "rayjob.yaml" else ""
    found = [line for line in text.splitlines() if line.startswith("#") and "wildshape selftrain" in line]
    assert found or entry
    for line in [*found, entry]:
        for words in ours(line):
            compose(words)
    assert "cluster=" in " ".join([*found, entry]) or name == "Dockerfile"


def test_the_shell_script_is_clean() -> None:
    done = subprocess.run(["shellcheck", str(SLURM)], capture_output=True, text=True, env=with_path(), check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(SLURM, os.X_OK)


def with_path(*first: Path) -> dict[str, str]:
    folders = [*map(str, first), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**os.environ, "PATH": os.pathsep.join(folders)}


def tool(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.mark.ray
@pytest.mark.slow
def test_a_slurm_node_joins_runs_the_command_and_goes(tmp_path: Path) -> None:
    """Slurm's part is played by a shell, its only node is this machine."""
    tool(tmp_path, "scontrol", "echo localhost")
    tool(tmp_path, "srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    environment = with_path(tmp_path) | {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
    environment |= {"SLURM_CPUS_PER_TASK": "3"}
    environment.pop("RAY_AUTH_MODE", None)
    asked = (
        "import os, ray; ray.init('auto', log_to_driver=False);"
        "print('CPUs', ray.cluster_resources()['CPU'], os.environ['RAY_AUTH_MODE'], len(os.environ['RAY_AUTH_TOKEN']));"
        "raise SystemExit(7)"
    )
    before = set(families())
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [str(SLURM), sys.executable, "-c", asked], env=environment, stdout=log, stderr=log, timeout=600, check=False
        )
    text = (tmp_path / "log").read_text()
    assert done.returncode == 7, text[-4000:]
    assert "CPUs 3.0 token 64" in text
    port = 20000 + os.getpid() % 10000
    left = [p for p in set(families()) - before if f":{port}" in command_line(p) or f"port={port}" in command_line(p)]
    assert not left


def command_line(pid: int) -> str:
    try:
        return shlex.join(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0"))
    except (FileNotFoundError, ProcessLookupError):
        return ""
