"""Photos without animals, to stand behind the sandbox's: from each COCO photo its largest part that shows none.

    python -m benchmarks.backgrounds --coco instances.json --photos images --out backgrounds

The parts are rectangles that no box of a COCO animal touches, at least a fifth of the photo a side, of 2:3 to 3:2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import cv2
import numpy as np

from models.photo import decode_photo

CELLS = 20  # a side of the grid that the rectangles lie on
LEAST = 4  # cells a side


def free_part(boxes: np.ndarray, height: int, width: int) -> tuple[slice, slice] | None:
    """Rows and columns of the largest part that no box [N,4] (xywh) touches; None if there is none."""
    ys, xs = (np.rint(np.linspace(0, n, CELLS + 1)).astype(int) for n in (height, width))
    taken = np.zeros((CELLS, CELLS), int)
    for x, y, w, h in boxes:
        rows = (ys[1:] > y) & (ys[:-1] < y + h)
        taken |= rows[:, None] & ((xs[1:] > x) & (xs[:-1] < x + w))
    total = np.pad(taken.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    best, found = 0, None
    for (top, bottom), (left, right) in itertools.product(itertools.combinations(range(CELLS + 1), 2), repeat=2):
        inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
        if inside or min(bottom - top, right - left) < LEAST:
            continue
        tall, wide = int(ys[bottom] - ys[top]), int(xs[right] - xs[left])
        if tall * wide > best and 2 / 3 <= wide / tall <= 3 / 2:
            best, found = tall * wide, (slice(ys[top], ys[bottom]), slice(xs[left], xs[right]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", required=True, help="COCO instances JSON")
    parser.add_argument("--photos", required=True, help="folder of its photos")
    parser.add_argument("--out", required=True, help="folder for the parts")
    args = parser.parse_args()
    data = json.loads(Path(args.coco).read_text(encoding="utf-8"))
    animals = {c["id"] for c in data["categories"] if c.get("supercategory") == "animal"}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    made = 0
    for image in data["images"]:
        photo = decode_photo((Path(args.photos) / image["file_name"]).read_bytes())
        if photo is None:
            raise SystemExit(f"{image['file_name']}: cannot be decoded")
        mine = [a["bbox"] for a in data["annotations"] if a["image_id"] == image["id"] and a["category_id"] in animals]
        part = free_part(np.array(mine, float).reshape(-1, 4), *photo.shape[:2])
        if part is not None:
            cv2.imwrite(str(out / image["file_name"]), photo[part][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
            made += 1
    sys.stdout.write(f"{made} parts of {len(data['images'])} photos\n")


if __name__ == "__main__":
    main()
