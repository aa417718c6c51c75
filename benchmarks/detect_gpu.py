"""RT-DETRv2-R50 with random weights on a GPU: photos a second, one at a time against a batch.

    python -m benchmarks.detect_gpu --data ../shared/data --out benchmarks/results/detect_gpu.json

The 30 real COCO photos over and over, decoded; shrinking them to the network's 640 px counts, as it does in the stage.
Random weights find nothing of use, so every query counts as found. Compared are the boxes of a batch with those of one
photo at a time, all in bfloat16: the median over the boxes, not the largest. Boxes of bfloat16 and float32 are not
compared: which queries are chosen is chaotic with random weights, and real ones could not be fetched. So what bfloat16
costs in accuracy is not measured here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.train_speed import machine
from models.photo import decode_photo
from pipelines.detect_rules import Rules
from pipelines.detectors import BATCH, PhotoDetector, open_detector

RULES = Rules.read({"score": 0.0, "overlap": 0.5, "most": 8, "min_side": 24, "crop_px": 352, "radius": 0})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with coco_animals/")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    files = sorted((args.data / "coco_animals" / "images").iterdir())
    photos = [p for p in (decode_photo(f.read_bytes()) for f in files) if p is not None]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config()).save_pretrained(folder)
        net = open_detector("hf", folder, RULES, "cuda")
    rates = {n: rate(net, photos * 8, n) for n in (1, BATCH)}
    single = boxes(net, photos[:BATCH], 1)
    found: dict[str, Any] = {
        "command": "python -m benchmarks.detect_gpu " + " ".join(sys.argv[1:]), **machine(), "photos": len(photos),
        "transformers": transformers.__version__,
        "photos_per_s": {f"batch_{n}": r for n, r in rates.items()}, "ratio": round(rates[BATCH] / rates[1], 2),
        "median_px_batch_from_single": apart(boxes(net, photos[:BATCH], BATCH), single),
    }  # fmt: skip
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def rate(net: PhotoDetector, photos: Sequence[np.ndarray], batch: int) -> float:
    """Photos a second, the median of three passes."""
    net(photos[:batch])
    passes = []
    for _ in range(3):
        began = time.perf_counter()
        for start in range(0, len(photos), batch):
            net(photos[start : start + batch])  # the answers are arrays: the device is done
        passes.append(time.perf_counter() - began)
    return round(len(photos) / statistics.median(passes), 1)


def boxes(net: PhotoDetector, photos: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
    found = [net(photos[start : start + batch]) for start in range(0, len(photos), batch)]
    return [answer.boxes for part in found for answer in part]


def apart(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Median over boxes of the farthest side's distance from the nearest box of the other, in pixels."""
    nearest = [np.abs(a[:, None] - b[None]).max(-1).min(1) for a, b in zip(ours, theirs, strict=True)]
    return round(float(np.median(np.concatenate(nearest))), 4)


if __name__ == "__main__":
    main()
