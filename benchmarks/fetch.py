"""The crawl against img2dataset: CPU of the whole process tree per image, the same photos from the same origin.

    python -m benchmarks.fetch --out benchmarks/results/fetch.json

img2dataset 1.47.0 comes from the package index into an environment of its own (`--venv`). Both sides run as the command
lines that people type, with one worker process and as many requests at once, and write Parquet. Cases alternate between
the sides. CPU is sampled over every process that a command starts, also those that outlive their parent, so it counts
the start of Python and Ray too; `beyond_start` leaves that out (the CPU of a run of 64 images is taken off). The origin
is a process of its own and not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import platform
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import cv2
import numpy as np
import psutil
import pyarrow.dataset as pds
import pyarrow.parquet as pq

AT_ONCE = 32
START = 64
SIZES = ((640, 480), (800, 600), (1024, 768))  # the usual sizes of Flickr's "z", "c" and "b"
# case: our options, img2dataset's, https, images
CASES: dict[str, tuple[list[str], list[str], bool, int]] = {
    "keep": (["fetch.mode=keep"], ["--resize_mode=no", "--skip_reencode=True"], False, 40_000),
    "raw": (["fetch.mode=raw"], ["--disable_all_reencoding=True"], False, 100_000),
    "resize_256": (
        ["fetch.mode=resize", "fetch.resize_px=256"],
        ["--resize_mode=keep_ratio", "--image_size=256", "--resize_only_if_bigger=True"],
        False,
        40_000,
    ),
    "https": (["fetch.mode=keep"], ["--resize_mode=no", "--skip_reencode=True"], True, 8_000),
}


def photos(count: int = 96) -> list[bytes]:
    """JPEGs of 30-100 KB with texture at several scales."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        size = SIZES[i % len(SIZES)]
        layers = [
            cv2.resize(rng.normal(0, s, (size[1] // k, size[0] // k, 3)), size, interpolation=cv2.INTER_CUBIC)
            for k, s in ((80, 50), (16, 14), (4, 5))
        ]
        image = np.clip(128 + sum(layers), 0, 255).astype(np.uint8)
        quality = next(q for q in range(95, 5, -5) if len(_jpeg(image, q)) < 30_000 + 70_000 * i / count)
        found.append(_jpeg(image, quality))
    return found


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


# -- the origin --------------------------------------------------------------------------------------------------------


class Origin(asyncio.Protocol):
    """Answers `/<n>.jpg` with one of `bodies`, and everything else with 404."""

    bodies: list[bytes]

    def connection_made(self, transport: Any) -> None:
        self.transport, self.head = transport, b""

    def data_received(self, data: bytes) -> None:
        self.head += data
        while b"\r\n\r\n" in self.head:
            head, self.head = self.head.split(b"\r\n\r\n", 1)
            name = head.split(b" ", 2)[1][1:].removesuffix(b".jpg")
            if not name.isdigit():
                self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            body = self.body(name)
            header = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.transport.write(header + body)

    def body(self, name: bytes) -> bytes:
        return self.bodies[int(name) % len(self.bodies)]


def number(url: str) -> int:
    return int(url.rpartition("/")[2].removesuffix(".jpg"))


def serve(ports: list[int], certificate: str) -> None:
    """http at the first port, https at the second, until killed."""
    import uvloop

    Origin.bodies = photos()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def forever() -> None:
        loop = asyncio.get_running_loop()
        await loop.create_server(Origin, "127.0.0.1", ports[0], backlog=256)
        await loop.create_server(Origin, "127.0.0.1", ports[1], ssl=context, backlog=256)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    uvloop.run(forever())


@contextlib.contextmanager
def origin(folder: str) -> Iterator[tuple[list[int], str]]:
    """Ports for http and https, and the file of its certificate."""
    certificate = os.path.join(folder, "origin.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", certificate, "-out", certificate + ".crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    shutil.copy(certificate, certificate + ".key")
    Path(certificate).write_bytes(Path(certificate + ".key").read_bytes() + Path(certificate + ".crt").read_bytes())
    ports = [18801, 18802]
    command = [sys.executable, "-m", "benchmarks.fetch", "--serve", *map(str, ports), "--certificate", certificate]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield ports, certificate + ".crt"
        finally:
            server.terminate()


# -- a run -------------------------------------------------------------------------------------------------------------


def measure(command: list[str], env: dict[str, str], log: str, keep: set[int]) -> dict[str, float]:
    """CPU seconds of all processes of a command, its wall seconds and the most memory of all of them (MiB, unique).

    Args:
        keep: children of this process that are no part of the command.
    """
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of the command stay below us
    cpu: dict[int, float] = {}
    peak, begun = 0.0, time.monotonic()
    with open(log, "wb") as out:
        main = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        while True:
            here = [c for c in psutil.Process().children(recursive=True) if c.pid not in keep]
            memory = 0.0
            for child in here:
                with contextlib.suppress(psutil.Error):
                    times = child.cpu_times()
                    cpu[child.pid] = times.user + times.system
                    info = child.memory_info()
                    memory += info.rss - info.shared
            peak = max(peak, memory)
            done = main.poll() is not None
            for child in here:
                if done and child.pid != main.pid:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(child.pid, os.WNOHANG)
            if done and not [c for c in here if c.pid != main.pid]:
                break
            time.sleep(0.1)
    if main.returncode:
        last = Path(log).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{command}: exit code {main.returncode}: {last}")
    return {"cpu_s": sum(cpu.values()), "wall_s": time.monotonic() - begun, "peak_mib": peak / 2**20}


def trust(folder: str, certificate: str) -> str:
    """A trust store as machines have it, with the origin's certificate too: reading it is part of what https costs."""
    path = os.path.join(folder, "trust.pem")
    Path(path).write_bytes(Path(certifi.where()).read_bytes() + Path(certificate).read_bytes())
    return path


class Side:
    """One of the two tools: how it is called, and what it wrote."""

    def __init__(self, name: str, folder: str, venv: str) -> None:
        self.name, self.folder, self.venv = name, folder, venv

    def command(self, case: str, urls: str, out: str) -> list[str]:
        ours, theirs, _, _ = CASES[case]
        if self.name == "wildshape":
            return [sys.executable, "-m", "pipelines.crawl", f"source.path={urls}", "source.format=urls", "category=x",
                    f"lake={out}", "fetch.allow_hosts=[127.0.0.1]", f"fetch.per_host={AT_ONCE}", "fetch.block=256",
                    f"fetch.window={AT_ONCE}", "resources.actors=1", *ours]  # fmt: skip
        return [f"{self.venv}/bin/img2dataset", f"--url_list={urls}", f"--output_folder={out}", "--retries=0",
                "--output_format=parquet", "--processes_count=1", f"--thread_count={AT_ONCE}",
                *theirs]  # fmt: skip

    def images(self, out: str, *columns: str) -> Iterator[dict[str, Any]]:
        """Rows of the images written, with their `url` and the columns asked for."""
        files = [str(p) for p in Path(out).rglob("*.parquet")]
        files = [f for f in files if {"url", "status"} <= set(pq.read_schema(f).names)]
        for batch in pds.dataset(files).to_batches(columns=["url", "status", *columns]):
            yield from (row for row in batch.to_pylist() if row["status"] in ("ok", "success"))


def run(side: Side, case: str, count: int, base: str, env: dict[str, str], keep: set[int]) -> dict[str, Any]:
    """Fetch `count` images and check that all of them arrived."""
    urls, out = os.path.join(side.folder, "urls.txt"), os.path.join(side.folder, f"out-{side.name}")
    Path(urls).write_text("".join(f"{base}/{i}.jpg\n" for i in range(count)))
    shutil.rmtree(out, ignore_errors=True)
    found = measure(side.command(case, urls, out), env, os.path.join(side.folder, f"{side.name}.log"), keep)
    arrived = sum(1 for _ in side.images(out))
    if arrived != count:
        raise RuntimeError(f"{side.name}, {case}: {arrived} of {count} images arrived")
    return {"images": count, **{k: round(v, 2) for k, v in found.items()}}


def quality(side: Side, bodies: list[bytes]) -> dict[str, float]:
    """PSNR in dB of the resized images against a full decode averaged over areas, at the size the tool chose."""
    seen: dict[int, float] = {}
    column = "bytes" if side.name == "wildshape" else "jpg"
    for row in side.images(os.path.join(side.folder, f"out-{side.name}"), column):
        index = number(row["url"]) % len(bodies)
        if index not in seen:
            small = cv2.imdecode(np.frombuffer(row[column], np.uint8), cv2.IMREAD_COLOR)
            whole = cv2.imdecode(np.frombuffer(bodies[index], np.uint8), cv2.IMREAD_COLOR)
            true = cv2.resize(whole, small.shape[1::-1], interpolation=cv2.INTER_AREA)
            seen[index] = cv2.PSNR(small, true)
    return {"mean": round(float(np.mean(list(seen.values()))), 2), "least": round(min(seen.values()), 2)}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    folder = tempfile.mkdtemp(prefix="bench-fetch-", dir=args.scratch)
    result: dict[str, Any] = {
        "host": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "img2dataset": "1.47.0", "at_once": AT_ONCE, "cases": {}, "memory": {},
    }  # fmt: skip
    if os.path.exists(args.out):  # cases not run this time stay
        result = {**json.loads(Path(args.out).read_text()), **{k: v for k, v in result.items() if v}}
    sides = [Side(name, folder, args.venv) for name in ("wildshape", "img2dataset")]
    bodies = photos()
    result["photos"] = {"kb": [round(len(b) / 1000) for b in (min(bodies, key=len), max(bodies, key=len))]}
    try:
        with origin(folder) as (ports, certificate):
            keep = {c.pid for c in psutil.Process().children(recursive=True)}
            env = {
                **os.environ,
                "SSL_CERT_FILE": trust(folder, certificate),
                "RAY_AUTH_MODE": "disabled",
                "RAY_worker_niceness": "0",  # else a busy machine leaves its workers the time that nobody wants
                "NO_ALBUMENTATIONS_UPDATE": "1",
            }
            for case in args.cases:
                _, _, https, count = CASES[case]
                base = f"https://127.0.0.1:{ports[1]}" if https else f"http://127.0.0.1:{ports[0]}"
                count = int(count * args.scale)
                found: dict[str, Any] = {}
                for side in sides if list(CASES).index(case) % 2 == 0 else sides[::-1]:
                    start = run(side, case, START, base, env, keep)
                    whole = run(side, case, count, base, env, keep)
                    found[side.name] = {
                        **whole,
                        "start_cpu_s": start["cpu_s"],
                        "cpu_ms_per_image": round(1000 * whole["cpu_s"] / count, 3),
                        "beyond_start": round(1000 * (whole["cpu_s"] - start["cpu_s"]) / (count - START), 3),
                    }
                    if case == "resize_256":
                        found[side.name]["psnr_db"] = quality(side, bodies)
                ours, theirs = found["wildshape"], found["img2dataset"]
                for key in ("cpu_ms_per_image", "beyond_start"):
                    found[f"times_fewer_{key}"] = round(theirs[key] / ours[key], 2)
                result["cases"][case] = found
                write(args.out, result)
            for count in args.memory:
                base = f"http://127.0.0.1:{ports[0]}"
                result["memory"][str(count)] = run(sides[0], "keep", count, base, env, keep)
                write(args.out, result)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def write(path: str, result: dict[str, Any]) -> None:
    result["code"] = hashlib.sha256(
        b"".join(p.read_bytes() for p in sorted(Path("pipelines").glob("*.py")))
    ).hexdigest()[:12]
    Path(path).write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/fetch.json")
    parser.add_argument("--venv", default=os.path.join(tempfile.gettempdir(), "i2d"))
    parser.add_argument("--scratch", default=None, help="folder for what is fetched: several GB")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--memory", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of images")
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--certificate", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.certificate)
    if not os.path.exists(f"{args.venv}/bin/img2dataset"):
        subprocess.run([sys.executable, "-m", "venv", args.venv], check=True)
        wanted = ["img2dataset==1.47.0", "opencv-python-headless"]
        subprocess.run([f"{args.venv}/bin/pip", "install", "-q", *wanted], check=True)
    sys.stdout.write(json.dumps(compare(args), indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
