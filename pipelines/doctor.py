"""Is this machine fit to work on this lake: a line for each thing that work rests on, with the fix where it is not."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import Any, NamedTuple

from tables import InputError, Lake
from trainers.app import Exit, check_lake, command

GIB = 2**30
METRICS_AGENT = ("opencensus", "prometheus_client", "aiohttp_cors")  # what of ray[default] serves metrics
OPEN_FILES = 4096  # Ray's processes and a crawl's sockets on one machine
LAKE_GIB, TEMP_GIB, MEMORY_GIB = 10, 10, 4  # free, below which work may stop half way
FULL = 0.95  # of the temporary folder's disk: from there on Ray spills no objects


class Check(NamedTuple):
    """A line. `state` is ok, warn (it works, but) or fail; `fix` is empty for ok."""

    name: str
    state: str
    text: str
    fix: str = ""


@command("doctor")
def main(cfg: Any) -> None:
    checks = list(examine(cfg))
    if cfg.json:
        sys.stdout.write(json.dumps({"checks": [c._asdict() for c in checks]}, indent=1) + "\n")
    else:
        show(checks)
    if any(c.state == "fail" for c in checks):
        sys.exit(Exit.LOST)


def examine(cfg: Any) -> Iterator[Check]:
    """All checks, one after the other; one that breaks is a `fail` that says how."""
    parts: dict[str, Callable[[], Iterator[Check]]] = {
        "python": _python, "packages": _packages, "torch": lambda: _torch(cfg.resources),
        "ray": lambda: _ray(cfg.resources), "mlflow": lambda: _mlflow(cfg), "lake": lambda: _lake(cfg.lake),
        "memory": _memory, "temporary folder": _temporary, "open files": _open_files,
    }  # fmt: skip
    for name, check in parts.items():
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - what is broken here is what is asked for
            yield Check(name, "fail", f"{type(error).__name__}: {str(error).strip()[:200]}", "see docs/operations.md")


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} in {sys.prefix}")


def _packages() -> Iterator[Check]:
    """Dependencies and extras as the installed distribution declares them."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(r) for r in metadata.requires("wildshape") or ()]
        version = metadata.version("wildshape")
    except metadata.PackageNotFoundError:
        yield Check("wildshape", "warn", "runs from its source tree, not installed", "pip install -e . in the clone")
        return
    yield Check("wildshape", "ok", version)
    own = [r for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    if missing := [text for r in own if (text := _lacks(r))]:
        yield Check("dependencies", "fail", "; ".join(missing), "pip install -e . in the clone, or pip install -U")
    else:
        yield Check("dependencies", "ok", f"{len(own)} installed")
    for extra in sorted(metadata.metadata("wildshape").get_all("Provides-Extra") or ()):
        of_it = [r for r in wanted if r not in own and r.marker and r.marker.evaluate({"extra": extra})]
        lacking = [text for r in of_it if r.name != "wildshape" and (text := _lacks(r))]
        text = f"not installed ({'; '.join(lacking)}): pip install 'wildshape[{extra}]'" if lacking else "installed"
        yield Check(f"extra {extra}", "ok", text)


def _lacks(requirement: Any) -> str:
    """What is wrong with a requirement, or nothing."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"no {requirement.name}"
    return "" if requirement.specifier.contains(version, True) else f"{requirement.name} {version} is not {requirement}"


def _torch(resources: Any) -> Iterator[Check]:
    import torch

    build, gpus = torch.version.cuda or torch.version.hip, torch.cuda.device_count()
    text = f"{torch.__version__}, {f'built for {build}' if build else 'a CPU build'}"
    asked = max(float(resources.gpus), float(resources.train.gpus))
    if gpus:
        names = {torch.cuda.get_device_name(i) for i in range(gpus)}
        yield Check("torch", "ok", f"{text}, {gpus} GPUs: {', '.join(sorted(names))}")
    elif asked and not resources.address:
        yield Check("torch", "fail", f"{text}, no GPU", "set resources.gpus=0 and resources.train.gpus=0, or fix it")
    elif os.path.exists("/dev/nvidia0"):
        fix = "its driver is too old for this torch" if build else "install torch's CUDA build"
        yield Check("torch", "warn", f"{text}, and a GPU that it cannot use", fix)
    else:
        yield Check("torch", "ok", f"{text}, no GPU")
    if find_spec("torchvision"):
        try:
            import torchvision  # noqa: F401
        except Exception as error:  # noqa: BLE001 - RuntimeError, where it was built for another torch
            yield Check(
                "torchvision", "warn", f"does not import: {str(error).splitlines()[0]}",
                "uninstall it, or install the build that fits torch: the extra hf fails beside it",
            )  # fmt: skip


def _ray(resources: Any) -> Iterator[Check]:
    version = metadata.version("ray")
    if not resources.address:
        yield Check("ray", "ok", f"{version}; each command starts a local one")
    else:
        import ray

        from trainers.cluster import connect

        try:
            with connect(resources):
                nodes = sum(n["Alive"] for n in ray.nodes())
                has = {k: round(v) for k, v in sorted(ray.cluster_resources().items()) if k in ("CPU", "GPU")}
            yield Check("ray", "ok", f"{version}; {resources.address}: {nodes} nodes, {has}")
        except (InputError, RuntimeError, OSError) as error:
            fix = "start one with `ray start --head`, of the same version of Python and Ray"
            yield Check("ray", "fail", f"{version}; {resources.address}: {str(error).splitlines()[0]}", fix)
    served = all(find_spec(name) for name in METRICS_AGENT)
    text = "served" if served else "not served: pip install 'ray[default]' if Prometheus is to see them"
    yield Check("ray metrics", "ok", text)


def _mlflow(cfg: Any) -> Iterator[Check]:
    from trainers.tracking import check_store, store_of

    try:
        uri = cfg.mlflow.uri or store_of(cfg.mlflow, Lake(cfg.lake))
    except InputError as error:
        yield Check("mlflow", "warn", "no store: the loop and trainings need one", error.fix)
        return
    path = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else None
    try:
        if path is None or os.path.isdir(os.path.dirname(path)):
            check_store(uri)
        if path and os.path.exists(path):
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as store:
                runs = store.execute("select count(*) from runs").fetchone()[0]
            yield Check("mlflow", "ok", f"{metadata.version('mlflow')}; {uri}: {runs} runs")
        else:
            there = "made by the first run" if path else "answers"
            yield Check("mlflow", "ok", f"{metadata.version('mlflow')}; {uri}: {there}")
    except InputError as error:
        yield Check("mlflow", "fail", f"{uri}: {error.fix}", "start the server, or name another store: mlflow.uri")
    except sqlite3.Error as error:
        yield Check("mlflow", "fail", f"{uri}: {error}", "move the file away: tracking begins anew")


def _lake(uri: Any) -> Iterator[Check]:
    from pipelines.status import survey

    try:
        check_lake(uri)
        lake = Lake(uri)
        there = "://" not in lake.uri and not os.path.exists(lake.uri)
        found = None if there else survey(lake)
    except InputError as error:
        yield Check("lake", "fail", f"{uri}: {error.fix}", "give another folder: lake=...")
        return
    if found is None:
        yield Check("lake", "ok", f"{lake.uri}: not there yet, the first command makes it")
    elif found["damaged"]:
        fix = "bring the file back from a copy, or move the dataset or run away: its command makes it again"
        yield Check("lake", "fail", f"{lake.uri}: {'; '.join(found['damaged'][:3])}", fix)
    else:
        yield Check("lake", "ok", f"{lake.uri}: datasets {len(found['datasets'])}, runs {len(found['runs'])}")
    if "://" not in lake.uri:
        free = shutil.disk_usage(_there(lake.uri)).free / GIB
        fix = "" if free >= LAKE_GIB else "make room: a crawl keeps its photos, 100 kB to 1 MB each"
        yield Check("lake disk", "warn" if fix else "ok", f"{free:.0f} GiB free", fix)


def _there(path: str) -> str:
    """The first folder above that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _memory() -> Iterator[Check]:
    total, free = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    with open("/proc/meminfo", encoding="ascii") as f:
        known = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in f if line.endswith("kB\n")}
    free = known.get("MemAvailable", free)
    fix = "" if free >= MEMORY_GIB * GIB else "end other work, or fewer resources.actors: Ray kills workers at 95 %"
    yield Check("memory", "warn" if fix else "ok", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free", fix)
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").free
        fix = "" if shared >= 0.3 * total else "give it 30 % of memory (docker run --shm-size): Ray uses the disk else"
        yield Check("shared memory", "warn" if fix else "ok", f"{shared / GIB:.1f} GiB free in /dev/shm", fix)


def _temporary() -> Iterator[Check]:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    disk = shutil.disk_usage(folder)
    share = 1 - disk.free / disk.total
    fix = ""
    if disk.free < TEMP_GIB * GIB or share > FULL:
        fix = f"make room, or set RAY_TMPDIR and TMPDIR: from {FULL:.0%} on Ray spills nothing"
    yield Check("temporary folder", "warn" if fix else "ok", f"{folder}: {disk.free / GIB:.0f} GiB free", fix)


def _open_files() -> Iterator[Check]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fix = "" if soft >= OPEN_FILES or soft < 0 else f"ulimit -n {min(65536, hard) if hard > 0 else 65536}"
    yield Check("open files", "warn" if fix else "ok", f"at most {soft} in a process", fix)


def show(checks: list[Check]) -> None:
    """A line a check, and what to do."""
    from rich.console import Console

    console, width = Console(highlight=False, soft_wrap=True), max(len(c.name) for c in checks)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for c in checks:
        fix = f"; {c.fix}" if c.fix else ""
        console.print(f"[{colours[c.state]}]{c.state:<4}[/] ", end="")
        console.print(f"{c.name:<{width}}  {c.text}{fix}", markup=False)


if __name__ == "__main__":
    main()
