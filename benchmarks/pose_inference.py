"""How many crops a second the 2D network labels: JPEG in, joints of all seven views in photo pixels out. Needs no Ray.

    python -m benchmarks.pose_inference --out benchmarks/results/pose_inference.json

The same calls as `pipelines.keypoint_worker`, one batch after the other: decode on the CPU's threads, then seven views
warped and seen by the network on the device, then joints back on the host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.train_speed import SIZE, machine
from models.crops import stored_pixels
from models.heatmap import PoseNet
from models.predict import VIEWS, in_photo, predict_pose
from trainers.data import decode_crops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--crops", type=int, default=1024)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net, files = PoseNet(16, 18).eval().to(device), jpegs(args.crops)
    windows = np.tile([10.0, 20.0, 300.0], (len(files), 1))
    rows = [timed(net, files, windows, batch) for batch in (64, 256)]
    found: dict[str, Any] = {
        "command": "python -m benchmarks.pose_inference " + " ".join(sys.argv[1:]),
        **(machine() if device == "cuda" else {"device": "cpu", "torch": torch.__version__}),
        "crops": len(files), "views": len(VIEWS), "image_size": SIZE,
        "jpeg_kb": round(statistics.mean(map(len, files)) / 1e3, 1), "rows": rows,
    }  # fmt: skip
    if device == "cuda":
        found["half_precision"] = half_precision(net, decode_crops(files[:64], stored_pixels(SIZE)))
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


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


def timed(net: PoseNet, files: list[bytes], windows: np.ndarray, batch: int) -> dict[str, Any]:
    """Crops a second over all files, the median of three passes, and the share that is decoding."""
    device = next(net.parameters()).device
    label(net, files[:batch], windows, device)
    passes, decoding = [], 0.0
    for _ in range(3):
        began, decoding = time.perf_counter(), 0.0
        for start in range(0, len(files), batch):
            decoding += label(net, files[start : start + batch], windows[start : start + batch], device)
        passes.append(time.perf_counter() - began)
    whole = statistics.median(passes)
    return {"batch": batch, "crops_per_s": round(len(files) / whole), "decode_share": round(decoding / passes[-1], 3)}


def label(net: PoseNet, files: list[bytes], windows: np.ndarray, device: torch.device) -> float:
    """All views of some crops; returns the seconds spent decoding."""
    began = time.perf_counter()
    decoded = decode_crops(files, stored_pixels(SIZE))
    decoding = time.perf_counter() - began
    crops = torch.from_numpy(decoded).to(device)
    views = torch.stack([predict_pose(net, crops, SIZE, zoom, angle) for zoom, angle in VIEWS], 1)
    in_photo(views.flatten(0, 1), np.repeat(windows[: len(files)], len(VIEWS), 0))
    return decoding


@torch.inference_mode()
def half_precision(net: PoseNet, crops: np.ndarray) -> dict[str, float]:
    """Heights of random maps in float16 against float32, relative to their largest."""
    device = next(net.parameters()).device
    images = torch.randn(len(crops), 3, SIZE, SIZE, device=device)
    exact = net(images)
    with torch.autocast(device.type, torch.float16):
        half = net(images).float()
    return {"largest_difference_of_heights": float((exact - half).abs().max() / exact.abs().max())}


if __name__ == "__main__":
    main()
