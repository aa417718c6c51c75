"""What `fetch.mode=resize` costs and what it loses: CPU and PSNR on real photos, against a full decode and area means.

    WILDSHAPE_TEST_DATA=../shared/data python -m benchmarks.resize --out benchmarks/results/resize.json

PSNR in dB of pixels before and after the JPEG that is kept, mean and least over the photos. CPU of one thread, the
least of several goes. `area` is a full decode and OpenCV's means over areas, which is what img2dataset does.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipelines.photo_checks import check_photo
from pipelines.photo_resize import resize

SIDES = (128, 192, 256, 320)


def area(data: bytes, width: int, height: int) -> np.ndarray:
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def pixels(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def milliseconds(work: Callable[[], Any], goes: int = 5) -> float:
    took = []
    for _ in range(goes):
        begun = time.process_time()
        work()
        took.append(time.process_time() - begun)
    return 1000 * min(took)


def compare(photos: list[bytes], side: int) -> dict[str, Any]:
    loss: dict[str, list[float]] = {"resize": [], "area": []}
    cost: dict[str, list[float]] = {"resize": [], "area": []}
    for data in photos:
        verdict = check_photo(data, 10**9)
        small = resize(data, verdict, side)
        if small is None or min(verdict.width, verdict.height) <= side:
            continue
        kept, width, height, _ = small
        true = area(data, width, height)
        loss["resize"].append(cv2.PSNR(pixels(kept), true))
        loss["area"].append(cv2.PSNR(pixels(jpeg(true)), true))
        cost["resize"].append(milliseconds(lambda d=data, v=verdict: resize(d, v, side)))  # type: ignore[misc]
        cost["area"].append(milliseconds(lambda d=data, w=width, h=height: jpeg(area(d, w, h))))  # type: ignore[misc]
    return {
        "photos": len(loss["area"]),
        **{
            name: {
                "psnr_db": round(float(np.mean(loss[name])), 1),
                "least_psnr_db": round(min(loss[name]), 1),
                "cpu_ms": round(float(np.mean(cost[name])), 2),
            }
            for name in loss
        },
        "times_fewer_cpu_ms": round(float(np.mean(cost["area"]) / np.mean(cost["resize"])), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/resize.json")
    parser.add_argument("--photos", default=f"{os.environ.get('WILDSHAPE_TEST_DATA', '../shared/data')}/coco_animals")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    photos = [path.read_bytes() for path in sorted(Path(args.photos).rglob("*.jpg"))]
    shorter = [min(verdict.width, verdict.height) for verdict in (check_photo(data, 10**9) for data in photos)]
    result = {
        "shorter_px": [min(shorter), max(shorter)],
        "sides": {str(side): compare(photos, side) for side in SIDES},
    }
    Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
