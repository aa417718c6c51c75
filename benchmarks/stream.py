"""The fused stream: memory of the whole process tree by the number of photos, and its time against the three stages.

    python -m benchmarks.stream --out benchmarks/results/stream.json
    python -m benchmarks.stream --out benchmarks/results/stream.json --photos 20000 --staged

Photos of about 10 kB, no two of the same bytes, come from an origin on this machine; networks are tiny, by config, so
that Ray and what flows through it are what is measured. Commands are those that people type. Memory is sampled twice a
second over every process that a command starts: what is theirs alone, and the object store's pages once. Counts that
are not run this time stay in the result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from benchmarks.fetch import Origin
from models.acsm import ACSM
from models.checkpoint import checkpoint_bytes
from models.heatmap import Detector, PoseNet
from sandbox.animal import animal
from tables import Lake

PORT = 18811
SIZE = 64  # pixels that the networks see
CATEGORY = "x"
STAGES = ("crawl", "detect", "keypoints")
TABLES = ("photos", "instances", "pseudo_labels")


def pictures(count: int = 64) -> list[bytes]:
    """JPEGs of about 10 kB, 320 x 240 and 240 x 320."""
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        size = (320, 240) if i % 2 else (240, 320)
        rough = rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)
        image = cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image = np.clip(image + rng.integers(-9, 10, image.shape), 0, 255).astype(np.uint8)
        made.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 72])[1].tobytes())
    return made


class _Origin(Origin):
    """A picture's comment holds its number, so that no two are the same bytes."""

    def body(self, name: bytes) -> bytes:
        body = super().body(name)
        return body[:2] + b"\xff\xfe" + (len(name) + 2).to_bytes(2, "big") + name + body[2:]


def serve() -> None:
    """Until killed."""

    async def forever() -> None:
        await asyncio.get_running_loop().create_server(_Origin, "127.0.0.1", PORT, backlog=256)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    _Origin.bodies = pictures()
    asyncio.run(forever())


@contextlib.contextmanager
def origin() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-m", "benchmarks.stream", "--serve"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield
        finally:
            server.terminate()


def networks(folder: str) -> dict[str, str]:
    """Files of tiny networks with random weights."""
    made: dict[str, Any] = {
        "model": lambda: Detector(width=8, channels=16),
        "pose": lambda: PoseNet(width=8, channels=16),
        "aux": lambda: PoseNet(width=8, channels=16),
        "acsm": lambda: ACSM(animal(), width=8, features=32, image_size=SIZE),
    }
    paths = {}
    for seed, (name, make) in enumerate(made.items()):
        torch.manual_seed(seed)
        paths[name] = os.path.join(folder, f"{name}.safetensors")
        notes = {"job": {"category": CATEGORY, "settings": {"image_size": 96 if name == "model" else SIZE}}}
        Path(paths[name]).write_bytes(checkpoint_bytes(make().eval(), notes))
    return paths


def commands(way: str, folder: str, nets: dict[str, str]) -> list[list[str]]:
    """What is typed for the stream, or for the three stages one after the other."""
    crawl = [
        f"source.path={folder}/urls.txt",
        "source.format=urls",
        "fetch.allow_hosts=[127.0.0.1]",
        "fetch.per_host=16",
    ]
    look = [f"model={nets['model']}", "detect.score=0.0", "detect.most=1", "detect.radius=0", "detect.crop_px=96"]
    label = [f"{name}={nets[name]}" for name in ("pose", "aux", "acsm")]
    given = {"stream": [*crawl, *look, *label], "crawl": crawl, "detect": look, "keypoints": label}
    shared = [f"category={CATEGORY}", f"lake={folder}/lake", "resources.actors=1"]
    names = ["stream"] if way == "streamed" else STAGES
    return [[sys.executable, "-m", f"pipelines.{name}", *given[name], *shared] for name in names]


def measure(command: list[str], log: str, keep: set[int]) -> dict[str, Any]:
    """CPU and wall seconds of a command with all its processes, and the most memory that they had at once (MiB).

    `peak_of` is the most that the processes of each name had, whenever that was.

    Args:
        keep: children of this process that are no part of the command.
    """
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of the command stay below us
    cpu: dict[int, float] = {}
    peak = store = 0.0
    largest: dict[str, float] = {}
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    begun = time.monotonic()
    with open(log, "ab") as out:
        main = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    while main.poll() is None:
        shared, each = 0.0, Counter[str]()
        for child in psutil.Process().children(recursive=True):
            if child.pid in keep:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                times, info = child.cpu_times(), child.memory_info()
                cpu[child.pid] = times.user + times.system
                each[_name(child)] += info.rss - info.shared
                shared = max(shared, _pages_shared(child.pid))
        peak, store = max(peak, each.total() + shared), max(store, shared)
        largest = {name: max(largest.get(name, 0), each[name]) for name in {*largest, *each}}
        time.sleep(0.5)
    if main.returncode:
        raise RuntimeError(f"{command}: exit code {main.returncode}: {Path(log).read_text(errors='replace')[-2000:]}")
    mib: dict[str, Any] = {"peak_mib": round(peak / 2**20, 1), "store_mib": round(store / 2**20, 1)}
    mib["peak_of"] = {name: round(size / 2**20) for name, size in sorted(largest.items()) if size > 2**24}
    return {"cpu_s": round(sum(cpu.values()), 1), "wall_s": round(time.monotonic() - begun, 1), **mib}


def _name(process: psutil.Process) -> str:
    """What a process is: the driver, an actor, or a part of Ray."""
    title = process.cmdline()
    if title and title[0].startswith("ray::"):
        return title[0].removeprefix("ray::").partition(".")[0].strip()  # without the method that it is in
    return "driver" if "-m" in title[1:2] else "Ray's own"


def _pages_shared(pid: int) -> float:
    """Bytes of shared memory that a process has touched: for those that serve the object store, the store."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssShmem:"):
            return 1024.0 * int(line.split()[1])
    return 0.0


def run(way: str, photos: int, folder: str, keep: set[int]) -> dict[str, Any]:
    """One way from so many addresses to pseudo-labels, and what is in the lake then."""
    lake = os.path.join(folder, "lake")
    shutil.rmtree(lake, ignore_errors=True)
    Path(folder, "urls.txt").write_text("".join(f"http://127.0.0.1:{PORT}/{i}.jpg\n" for i in range(photos)))
    steps = [measure(c, os.path.join(folder, f"{way}.log"), keep) for c in commands(way, folder, networks(folder))]
    made = [Lake(lake).datasets(table, CATEGORY)[-1] for table in TABLES]
    found: dict[str, Any] = {
        "photos": photos,
        "rows": {t.table: len(t.read(["photo_id" if t.table == "photos" else "instance_id"])) for t in made},
    }
    if found["rows"]["photos"] != photos:
        raise RuntimeError(f"{way}: {found['rows']} of {photos} photos")
    if way == "streamed":
        found["peak_of"] = steps[0]["peak_of"]
    for name, combine in (("cpu_s", sum), ("wall_s", sum), ("peak_mib", max), ("store_mib", max)):
        found[name] = round(combine(step[name] for step in steps), 1)
    kept = made[-1].files.read_json(f"{made[-1].path}/_stream.json")
    if kept:
        found |= {"rows_per_s": kept["rows_per_s"], "most_waiting": kept["most_waiting"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/stream.json")
    parser.add_argument("--photos", nargs="*", type=int, default=[1000, 4000])
    parser.add_argument("--staged", action="store_true", help="time the three stages too")
    parser.add_argument("--scratch", default=None, help="folder for what is fetched")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    result: dict[str, Any] = {"streamed": {}, "staged": {}}
    if os.path.exists(args.out):
        result |= json.loads(Path(args.out).read_text())
    result["host"] = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    result["photo_kb"] = round(sum(map(len, pictures())) / len(pictures()) / 1000, 1)
    with tempfile.TemporaryDirectory(prefix="bench-stream-", dir=args.scratch) as folder, origin():
        keep = {c.pid for c in psutil.Process().children(recursive=True)}
        for count in args.photos:
            for way in ("streamed", "staged") if args.staged else ("streamed",):
                result[way][str(count)] = run(way, count, folder, keep)
                both = [result[w].get(str(count)) for w in ("streamed", "staged")]
                if all(both):
                    result.setdefault("staged_to_streamed", {})[str(count)] = {
                        name: round(both[1][name] / both[0][name], 2) for name in ("cpu_s", "wall_s")
                    }
                Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
