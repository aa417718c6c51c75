"""Detectors on the 30 real COCO photos: what they find, whether batching changes it, and photos a second.

    PYTHONPATH=. python benchmarks/detect.py --data ../shared/data       # minutes; writes results/detect.json

YOLOX-nano needs the extra `onnx`; RT-DETRv2 on a GPU is timed by `benchmarks.detect_gpu`. Everything here is on a CPU
with one thread; seconds are of the CPU, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.checkpoint import checkpoint_bytes
from models.heatmap import Detector, box_iou
from models.photo import decode_photo
from pipelines.detect_rules import Rules, sift, wanted_classes
from pipelines.detect_worker import DetectWorker
from pipelines.detectors import BATCH, PhotoDetector, open_detector
from tables import Dataset, Lake, schema, to_numpy

RESULTS = Path(__file__).parent / "results" / "detect.json"
ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"]
GIVEN: dict[str, Any] = {"score": 0.3, "overlap": 0.5, "most": 8, "min_side": 24, "crop_px": 352, "radius": 0}
SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}  # COCO's, of the mask's area in pixels


class Truth:
    """The photos as bytes and as arrays, and their animals."""

    def __init__(self, data: Path) -> None:
        given = json.loads((data / "coco_animals" / "instances.json").read_text())
        kinds = {c["id"] for c in given["categories"] if c["name"] in ANIMALS}
        self.bodies, self.boxes, self.sizes = [], [], []
        for image in given["images"]:
            self.bodies.append((data / "coco_animals" / "images" / image["file_name"]).read_bytes())
            mine = [a for a in given["annotations"] if a["image_id"] == image["id"] and a["category_id"] in kinds]
            self.boxes.append(np.array([a["bbox"] for a in mine]).reshape(-1, 4))
            self.sizes.append([next(n for n, most in SIZES.items() if a["area"] < most) for a in mine])
        self.photos = [p for p in map(decode_photo, self.bodies) if p is not None]


def found_by(net: PhotoDetector, photos: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
    """The boxes that the rules leave in each photo, so many photos a call."""
    rules, wanted = Rules.read(GIVEN), wanted_classes(net.names, ANIMALS, "animal")
    answers = [a for start in range(0, len(photos), batch) for a in net(photos[start : start + batch])]
    return [
        sift(a, wanted, (p.shape[1], p.shape[0]), rules, Counter()).boxes for a, p in zip(answers, photos, strict=True)
    ]


def staged(truth: Truth, model: str) -> list[np.ndarray]:
    """The boxes that the stage's worker commits."""
    with tempfile.TemporaryDirectory() as folder:
        crawled(folder, truth.bodies)
        rows = run_worker(folder, model).read(["photo_id", "bbox", "score"])
    rows = rows.sort_by([("photo_id", "ascending"), ("score", "descending")])
    boxes, owner = to_numpy(rows["bbox"], 4), np.array(rows["photo_id"].to_pylist())
    return [boxes[owner == f"{i:05}"] for i in range(len(truth.bodies))]


def crawled(folder: str, bodies: Sequence[bytes]) -> None:
    """A lake with one part of `photos`."""
    ids = [f"{i:05}" for i in range(len(bodies))]
    known = {"photo_id": ids, "sha256": ids, "status": ["ok"] * len(ids), "bytes": bodies}
    rows = {f.name: pa.array(known.get(f.name, [None] * len(ids)), f.type) for f in schema("photos")}
    Lake(folder).dataset("photos", "animal", {}).write("p", pa.table(rows), schema("photos"))


def run_worker(folder: str, model: str) -> Dataset:
    photos, made = (Lake(folder).dataset(t, "animal", {}) for t in ("photos", "instances"))
    DetectWorker(photos, made, model, "benchmark", "animal", {**GIVEN, "classes": ANIMALS}, "onnx")("p", {})
    return made


def quality(truth: Truth, found: list[np.ndarray]) -> dict[str, Any]:
    """Recall by size and precision: each box, best first, takes the free animal that it overlaps most, from IoU 0.5."""
    seen, every, right = Counter[str](), Counter[str](), 0
    for boxes, animals, sizes in zip(found, truth.boxes, truth.sizes, strict=True):
        every.update(sizes)
        overlaps = box_iou(torch.from_numpy(boxes.astype(float)), torch.from_numpy(animals)).numpy()
        for row in overlaps if len(animals) else ():
            best = int(row.argmax())
            if row[best] >= 0.5:
                right += 1
                seen[sizes[best]] += 1
                overlaps[:, best] = 0
    return {
        "recall": {n: f"{seen[n]}/{every[n]}" for n in SIZES} | {"all": f"{right}/{every.total()}"},
        "precision": f"{right}/{sum(map(len, found))}",
    }


def farthest(one: list[np.ndarray], other: list[np.ndarray]) -> float | None:
    """Largest difference of a coordinate in pixels; None where there are other boxes."""
    if any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return None
    return max(float(np.abs(a - b).max(initial=0)) for a, b in zip(one, other, strict=True))


def rate(net: PhotoDetector, photos: Sequence[np.ndarray], batch: int, clock: Any = time.process_time) -> float:
    net(photos[:batch])
    began = clock()
    for start in range(0, len(photos), batch):
        net(photos[start : start + batch])
    return round(len(photos) / (clock() - began), 1)


def own_model(folder: str) -> str:
    """The network of `train=small` with random weights."""
    path = Path(folder) / "own.safetensors"
    job = {"settings": {"image_size": 160}}
    path.write_bytes(checkpoint_bytes(Detector(width=24, channels=48), {"job": job}))
    return str(path)


def worker(truth: Truth, model: str, photos: int) -> dict[str, Any]:
    """YOLOX in a worker in a process of its own, on one part of so many photos: peak memory and photos a second."""
    bodies = list(islice(cycle(truth.bodies), photos))
    with tempfile.TemporaryDirectory() as folder:
        crawled(folder, bodies)
        command = [sys.executable, __file__, "--data", ".", "--child", folder, model]
        done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    decoded = sum(p.nbytes for p in islice(cycle(truth.photos), photos))
    rate = round(photos / done.pop("cpu_s"), 1)
    sizes = {"bytes_mb": round(sum(map(len, bodies)) / 1e6), "decoded_mb": round(decoded / 1e6)}
    return {"photos": photos, "photos_per_s": rate, **sizes, **done}


def child(folder: str, model: str) -> dict[str, Any]:
    began = time.process_time()
    crops = run_worker(folder, model).read(["crop"])["crop"].nbytes
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return {"cpu_s": time.process_time() - began, "crops_mb": round(crops / 1e6), "peak_mb": int(peak[1]) // 1024}  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with coco_animals/ and detector/")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.child:
        sys.stdout.write(json.dumps(child(*arguments.child)))
        return
    truth = Truth(arguments.data)
    photos, rules = truth.photos * 2, Rules.read(GIVEN)
    found: dict[str, Any] = {"rules": GIVEN, "photos": len(truth.photos), "animals": sum(map(len, truth.boxes))}
    with tempfile.TemporaryDirectory() as folder:
        own = open_detector("own", own_model(folder), rules, "cpu")
        found["own_photos_per_s"] = {f"batch_{n}": rate(own, photos, n) for n in (1, BATCH)}
    if find_spec("onnxruntime"):
        model = str(arguments.data / "detector" / "yolox_nano.onnx")
        net = open_detector("onnx", model, rules, "cpu")
        one = found_by(net, truth.photos, 1)
        found["yolox_nano"] = quality(truth, one) | {
            "px_batched_from_one_by_one": farthest(one, found_by(net, truth.photos, BATCH)),
            "px_staged_from_one_by_one": farthest(one, staged(truth, model)),
            "photos_per_s": {f"batch_{n}": rate(net, photos, n) for n in (1, BATCH)},
            "worker": [worker(truth, model, n) for n in (300, 2400)],
        }
    began = time.process_time()
    list(map(decode_photo, truth.bodies))
    found["decode_photos_per_s"] = round(len(truth.bodies) / (time.process_time() - began), 1)
    found |= {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(RESULTS.read_text())


if __name__ == "__main__":
    main()
