"""How many crops a second the networks label: JPEG in, joints in photo pixels out. Needs no Ray.

    python -m benchmarks.pose_inference --out benchmarks/results/pose_inference.json

`main net` is the 2D network alone with all seven views. `rows` is `pipelines.keypoint_worker` as the stage runs it,
several parts at once on a GPU: Parquet in, seven views of the main net, the auxiliary net, the 3D net and its joints in
the main net's heatmaps, Parquet out. `one by one` calls the same networks for one crop after the other, as they come
from their files. `gpu_busy` is the mean of what the driver says of the share of time in which a kernel was running,
sampled while `rows` was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch

from benchmarks.train_speed import SIZE, machine
from models.acsm import ACSM
from models.checkpoint import checkpoint_bytes, load_checkpoint
from models.crops import SEEN, stored_pixels, window
from models.heatmap import PoseNet
from models.predict import VIEWS, in_photo, predict_all
from models.predictor import Predictor
from pipelines.keypoint_worker import KeypointWorker
from pipelines.stage import ON_GPU
from sandbox.animal import animal
from tables import Dataset, Lake, schema, to_column
from trainers.data import decode_crops

BOX = [20.0, 30.0, 300.0, 240.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--part", type=int, default=1024, help="rows of a part")
    parser.add_argument("--alone", type=int, default=64, help="crops of the loop over one at a time")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    files = jpegs(min(args.rows, 1024))
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder)
        paths = networks(lake)
        found: dict[str, Any] = {
            "command": "python -m benchmarks.pose_inference " + " ".join(sys.argv[1:]),
            **(machine() if device == "cuda" else {"device": "cpu", "torch": torch.__version__}),
            "threads": torch.get_num_threads(), "views": len(VIEWS), "image_size": SIZE, "part": args.part,
            "jpeg_kb": round(statistics.mean(map(len, files)) / 1e3, 1),
        }  # fmt: skip
        found |= main_net(paths["pose"], [files[i % len(files)] for i in range(args.rows)], device)
        found |= rows(lake, paths, files, args.rows, args.part, device)
        found |= alone(paths, files[: args.alone], device)
        if device == "cuda":
            found["against_float32"] = against_float32(paths, files[:16])
    found["ratio"] = round(found["rows_per_s"] / found["one_by_one_rows_per_s"], 1)
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def networks(lake: Lake) -> dict[str, str]:
    """Files of the published networks with random weights, batch norm's statistics as of noise."""
    paths = {}
    for name, make in (("pose", PoseNet), ("aux", PoseNet), ("acsm", lambda: ACSM(animal(), image_size=SIZE))):
        torch.manual_seed(len(paths))
        net: Any = make().train()
        if name != "acsm":
            torch.nn.init.normal_(net.head.weight, std=0.1)
        with torch.no_grad():
            for _ in range(3):
                net(torch.randn(4, 3, SIZE, SIZE))
        paths[name] = f"{lake.uri}/{name}.safetensors"
        notes = {"job": {"settings": {"image_size": SIZE}}}
        lake.files.write(f"{name}.safetensors", checkpoint_bytes(net.eval(), notes))
    return paths


def jpegs(n: int) -> list[bytes]:
    """Smooth random pictures with some grain, the size of a photo's crop at JPEG quality 92."""
    rng, pixels = np.random.default_rng(0), stored_pixels(SIZE)
    out = []
    for _ in range(n):
        image = cv2.resize(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), (pixels, pixels))
        grain = rng.integers(-6, 7, image.shape, dtype=np.int8)
        image = np.clip(image.astype(np.int16) + grain, 0, 255).astype(np.uint8)
        out.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    return out


def main_net(path: str, files: Sequence[bytes], device: str) -> dict[str, Any]:
    """Crops a second of the 2D net with its seven views, decoding while the device works."""
    predict = Predictor({"pose": load_checkpoint(path)}, SIZE, device)
    windows = window(np.tile(BOX, (predict.batch, 1)), SEEN)

    def label(start: int) -> None:
        views = predict(decode_crops(files[start : start + predict.batch], stored_pixels(SIZE)))["keypoints_mt"]
        for view in views.swapaxes(0, 1):
            in_photo(view, windows[: len(view)])

    starts = range(0, len(files), predict.batch)
    seconds = at_once(label, list(starts), device)
    return {"batch": predict.batch, "crops": len(files), "main_net_crops_per_s": round(len(files) / seconds)}


def rows(lake: Lake, paths: dict[str, str], files: Sequence[bytes], n: int, part: int, device: str) -> dict[str, Any]:
    """Rows of `pseudo_labels` a second, and the share of the time that the device computes."""
    instances, pseudo = stored(lake, files, n, part), lake.dataset("pseudo_labels", "deer", {"n": n})
    work = KeypointWorker(instances, pseudo, dict(paths), dict(paths), 1, SIZE)
    parts, samples, done = list(instances.manifests()), [], threading.Event()

    def watch() -> None:
        while device == "cuda" and not done.wait(0.05):
            samples.append(torch.cuda.utilization())

    watcher = threading.Thread(target=watch)

    def label(name: str) -> None:
        work(name, {})

    seconds = at_once(label, parts, device, watcher.start)
    done.set()
    watcher.join()
    busy = {"gpu_busy": round(statistics.mean(samples) / 100, 3), "samples": len(samples)} if samples else {}
    return {"rows": n, "rows_per_s": round(n / seconds, 1), **busy}


def stored(lake: Lake, files: Sequence[bytes], n: int, part: int) -> Dataset:
    """`instances` of so many rows, the same pictures over and over."""
    made = lake.dataset("instances", "deer", {"n": n})
    fields = schema("instances")
    for start in range(0, n, part):
        count = min(part, n - start)
        known = {
            "instance_id": [f"i{start + i:07d}" for i in range(count)],
            "bbox": to_column(np.tile(np.float32(BOX), (count, 1))),
            "window": to_column(np.zeros((count, 3), np.float32)),
            "crop": [files[(start + i) % len(files)] for i in range(count)],
        }
        made.write(
            f"p{start:07d}",
            pa.table([known.get(f.name, pa.nulls(count, f.type)) for f in fields], fields.names),
            fields,
        )
    made.finish("x")
    return made


def at_once(
    work: Callable[[Any], None], items: Sequence[Any], device: str, begin: Callable[[], None] | None = None
) -> float:
    """Seconds for all items, on a GPU in several threads and after a few that do not count."""
    threads = ON_GPU if device == "cuda" else 1
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items[:threads] if device == "cuda" else []))
        if begin:
            begin()
        began = time.perf_counter()
        list(pool.map(work, items))
        return time.perf_counter() - began


def alone(paths: dict[str, str], files: Sequence[bytes], device: str) -> dict[str, Any]:
    """Rows a second of a loop over one crop after the other."""
    nets = {n: load_checkpoint(p).to(device) for n, p in paths.items()}
    windows = window(np.array([BOX]), SEEN)
    times = []
    for data in [*files[:3], *files]:
        began = time.perf_counter()
        crops = torch.from_numpy(decode_crops([data], stored_pixels(SIZE))).to(device)
        for name, values in predict_all(nets, crops, SIZE).items():
            if name == "keypoints_mt":
                values = values[:, 0]
            if name != "heatmap_3d":
                in_photo(values, windows)
        times.append(time.perf_counter() - began)
    return {"one_by_one_rows_per_s": round(1 / statistics.median(times[3:]), 1)}


def against_float32(paths: dict[str, str], files: Sequence[bytes]) -> dict[str, float]:
    """Largest and median distance, in the network's frame, from what the networks say in float32 on the CPU."""
    nets = {n: load_checkpoint(p) for n, p in paths.items()}
    crops = decode_crops(files, stored_pixels(SIZE))
    exact = Predictor(nets, SIZE, "cpu")(crops)
    fast = Predictor(nets, SIZE, "cuda")(crops)
    found = {}
    for name in exact:
        difference = np.abs(exact[name] - fast[name])
        if name in ("keypoints_mt", "keypoints_aux"):
            difference = difference[..., :2]
        found |= {f"{name} largest": float(difference.max()), f"{name} median": float(np.median(difference))}
    return found


if __name__ == "__main__":
    main()
