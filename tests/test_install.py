"""The wheel, installed elsewhere: it runs, carries its YAML, and travels to the nodes of a cluster."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no `build/` is left in the checkout or finds its way into the wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)]
    major = int(importlib.metadata.version("setuptools").split(".")[0]) if _has("setuptools") else 0
    if major >= 77:
        command.insert(4, "--no-build-isolation")
    subprocess.run(command, check=True, timeout=300)
    return next(out.glob("*.whl"))


def _has(distribution: str) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and nothing else of ours."""
    folder = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True, timeout=120)
    return folder


def environment(pythonpath: Path | None) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("RAY_")}
    env["RAY_AUTH_MODE"] = "disabled"
    if pythonpath:
        env["PYTHONPATH"] = str(pythonpath)
    return env


def run(*command: str, cwd: Path, pythonpath: Path, timeout: float = 120) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd, env=environment(pythonpath), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_rooms_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {n.split("/")[0] for n in names if ".dist-info/" not in n}
    assert tops == set(PACKAGES)
    inside = {n.removeprefix("conf/") for n in names if n.startswith("conf/") and n.endswith(".yaml")}
    assert inside == {p.relative_to(ROOT / "conf").as_posix() for p in (ROOT / "conf").rglob("*.yaml")}
    pages = {p.relative_to(ROOT).as_posix() for p in (ROOT / "pipelines").iterdir() if p.suffix in (".css", ".js")}
    assert pages == {n for n in names if n.endswith((".css", ".js"))}
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_it_runs_from_another_directory(target: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    out = run("-m", "pipelines.select", "--cfg", "job", "top_n=7", cwd=tmp_path, pythonpath=target)
    assert time.monotonic() - started < 10
    assert "criterion: cf_cm2" in out
    assert "top_n: 7" in out
    assert list(tmp_path.iterdir()) == [], "printing a config leaves nothing behind"


EVERY_CONFIG = """
import os, sys
from pipelines import cli

assert os.path.dirname(cli.__file__).startswith(sys.argv[1]), cli.__file__
for name in cli.commands():
    sys.argv = ["wildshape", name, "--cfg", "job"]
    cli.main()
    heavy = [m for m in ("ray", "torch", "mlflow") if m in sys.modules]
    assert not heavy, f"{name} --cfg job imports {heavy}"
"""


def test_every_command_prints_its_config_without_ray_or_torch(target: Path, tmp_path: Path) -> None:
    out = run("-c", EVERY_CONFIG, str(target), cwd=tmp_path, pythonpath=target)
    assert out.count("category: ") >= 1
    assert list(tmp_path.iterdir()) == []


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def bare_cluster() -> Iterator[str]:
    """A Ray head of its own, started where our packages are not; ended by its own process ids."""
    home = Path(tempfile.mkdtemp(prefix="ws-", dir="/tmp"))  # short: sockets live below it
    port = free_port()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false",
        "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=1",
        "--object-store-memory=100000000", f"--temp-dir={home}", "--disable-usage-stats",
    ]  # fmt: skip
    with open(home / "head.log", "w") as log:
        head = subprocess.Popen(command, cwd=home, env=environment(None), stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(port, head, home / "head.log")
        yield f"127.0.0.1:{port}"
    finally:
        _end(head)
        shutil.rmtree(home, ignore_errors=True)


def _end(head: subprocess.Popen) -> None:
    """Never `ray stop`, which ends everybody's Ray."""
    if head.poll() is None:
        family = psutil.Process(head.pid).children(recursive=True)
        head.terminate()  # it ends its own daemons
        _, alive = psutil.wait_procs(family, timeout=20)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=20)
    head.wait(timeout=20)


def _wait_for(port: int, head: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert head.poll() is None, log.read_text()
        if "Ray runtime started" in log.read_text():
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                return
        time.sleep(0.5)
    pytest.fail(f"no Ray head after {seconds} s: {log.read_text()}")


DRIVER = """
import sys
from types import SimpleNamespace

from trainers.cluster import connect

with connect(SimpleNamespace(address=sys.argv[1], actors=1, cpus=1)):
    import ray

    @ray.remote
    def where():
        import conf, models, pipelines, sandbox, selection, tables, trainers

        return [m.__file__ for m in (conf, models, pipelines, sandbox, selection, tables, trainers)]

    sys.stdout.write("\\n".join(ray.get(where.remote(), timeout=120)))
"""


@pytest.mark.ray
def test_nodes_without_the_package_get_it_from_the_driver(bare_cluster: str, target: Path, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    out = run(str(script), bare_cluster, cwd=tmp_path, pythonpath=target, timeout=240)
    files = out.split()
    assert len(files) == len(PACKAGES)
    for file in files:
        # Not the driver's folder and not an editable install that the node might see as well.
        assert "/runtime_resources/py_modules_files/" in file
