"""The web set: which rows there are, what the origin answers for each, and the truth behind them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sandbox import yfcc
from sandbox.lens import jpeg
from sandbox.shots import Taken
from tables import QUADRUPED, to_column, write_atomically

HOST = yfcc.HOST
PLACEHOLDER = "photo_unavailable.png"


@dataclass(frozen=True)
class Page:
    """One row of the dump and what its URL leads to.

    Attributes:
        index: number of the photo, its seed.
        subject: what to photograph (`animals`, `strangers`, `nothing`), or "" where nothing is photographed.
        copy_of: index of the page whose photo this one repeats, or -1.
        near: the copy is shrunk and compressed anew.
        answer: what the origin does besides sending the file.
    """

    index: int
    subject: str
    row: yfcc.Row
    copy_of: int = -1
    near: bool = False
    listed: bool = True
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"{self.row.photo_id}.jpg"


def plan(config: Mapping[str, Any]) -> list[Page]:
    """Every row of the web set in file order; depends on the config alone."""
    n, shares, word = config["web"]["photos"], config["web"]["shares"], config["category"]
    rng = np.random.default_rng([config["seed"], zlib.crc32(b"plan")])
    kinds = [k for k, share in shares.items() for _ in range(round(share * n))][:n]
    kinds += ["animals"] * (n - len(kinds))
    kinds = [kinds[i] for i in rng.permutation(n)]
    step = 9 * 10**9 // n
    ids = 10**9 + step * rng.permutation(n) + rng.integers(0, step, n)
    originals = [i for i, k in enumerate(kinds) if k in ("animals", "strangers", "nothing")]
    pages = []
    for i, kind in enumerate(kinds):
        away = kind in ("off_topic", "video")
        row = yfcc.draw(
            rng, i, int(ids[i]), None if kind == "off_topic" else word,
            reserved=rng.random() < config["web"]["reserved"], video=kind == "video",
        )  # fmt: skip
        copied = kind in ("duplicate", "near_duplicate") or away
        source = int(rng.choice(originals)) if copied and originals else -1
        answer = _dead(rng) if kind == "dead" else _live(rng)
        subject = kind if kind in ("animals", "strangers", "nothing") else ""
        pages.append(Page(i, subject, row, source, kind == "near_duplicate", not away, answer))
    return pages


def _dead(rng: np.random.Generator) -> dict[str, Any]:
    """How a photo is gone: mostly a redirect to the placeholder, as on Flickr."""
    kind = rng.choice(5, p=(0.50, 0.25, 0.09, 0.08, 0.08))
    if kind == 0:
        return {"redirect": yfcc.UNAVAILABLE}
    if kind == 4:
        return {"truncate": int(rng.integers(60, 900)), "file": ""}
    return {"status": (404, 410, 403)[kind - 1] if rng.random() < 0.9 else 500}


def _live(rng: np.random.Generator) -> dict[str, Any]:
    """Mostly just the file; now and then a host that is busy or slow."""
    draw = rng.random()
    if draw < 0.03:
        return {"fail_first": int(rng.integers(1, 3)), "status": int(rng.choice((429, 500, 503)))}
    if draw < 0.05:
        return {"delay_s": round(float(rng.uniform(0.1, 0.5)), 2)}
    return {}


def write(
    photos: str, rows: str, origin: str, truth: str, pages: list[Page], results: Mapping[str, Taken],
    config: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the copies, the placeholder, the dump, the origin's answers and the truth."""
    rng = np.random.default_rng([config["seed"], zlib.crc32(b"copies")])
    write_atomically(os.path.join(photos, PLACEHOLDER), _placeholder())
    answers: dict[str, dict[str, Any]] = {yfcc.UNAVAILABLE: {"file": f"photos/{PLACEHOLDER}"}}
    lines, found = [], []
    for page in pages:
        lines.append(yfcc.line(page.row))
        answer, source = dict(page.answer), pages[page.copy_of] if page.copy_of >= 0 else page
        taken, scale = results.get(os.path.join(photos, source.file)), 1.0
        name = source.file
        if page.near:
            name, scale = page.file, _copy(rng, os.path.join(photos, source.file), os.path.join(photos, page.file))
        if taken is not None:
            answer["file"] = f"photos/{name}"
        elif "truncate" in answer:
            answer["file"] = f"photos/{next(p.file for p in pages if p.subject)}"
        answers[page.row.path] = answer
        if taken is not None and page.listed:
            found += [_truth(page, i, s, scale) for i, s in enumerate(taken.animals) if s.mask.any()]
    for k in range(2):  # lines a real dump has too
        lines.insert(int(rng.integers(0, len(lines) + 1)), yfcc.malformed(np.random.default_rng([config["seed"], k])))
    write_atomically(rows, ("\n".join(lines) + "\n").encode())
    write_atomically(origin, (json.dumps(answers, indent=0, sort_keys=True) + "\n").encode())
    _write_truth(truth, found)


def _copy(rng: np.random.Generator, source: str, target: str) -> float:
    """Shrink and compress a photo anew; returns the factor its coordinates shrink by."""
    with open(source, "rb") as f:
        image = cv2.imdecode(np.frombuffer(f.read(), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"source={source}: not an image")
    h, w = image.shape[:2]
    scale = float(rng.choice((0.75, 0.9, 1.0)))
    small = cv2.resize(image, (round(w * scale), round(h * scale)), interpolation=cv2.INTER_AREA)
    write_atomically(target, jpeg(small[..., ::-1], int(rng.integers(55, 90))))
    return scale


def _truth(page: Page, index: int, seen: Any, scale: float) -> dict[str, Any]:
    keypoints = seen.keypoints if len(seen.keypoints) else np.zeros((len(QUADRUPED), 3), np.float32)
    resize = np.array([scale, scale, 1], np.float32)
    camera = seen.camera * np.array([scale] * 3 + [1] * 4, np.float32)
    return {
        "photo_id": f"yfcc:{page.row.photo_id}", "index": index, "bbox": seen.bbox * np.float32(scale),
        "keypoints": keypoints * resize, "camera": camera, "is_target": seen.target, "share": seen.share,
    }  # fmt: skip


def _write_truth(path: str, rows: list[dict[str, Any]]) -> None:
    widths = {"bbox": 4, "keypoints": 3 * len(QUADRUPED), "camera": 7}
    columns = {
        "photo_id": pa.array([r["photo_id"] for r in rows], pa.string()),
        "index": pa.array([r["index"] for r in rows], pa.int32()),
        **{k: to_column([r[k] for r in rows], width) for k, width in widths.items()},
        "is_target": pa.array([r["is_target"] for r in rows], pa.bool_()),
        "share": pa.array([r["share"] for r in rows], pa.float32()),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def _placeholder() -> bytes:
    """The picture a host sends in place of a removed photo."""
    image = np.full((375, 500, 3), 235, np.uint8)
    for y, text in ((180, "This photo is"), (215, "no longer available")):
        cv2.putText(image, text, (95, y), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (150, 150, 150), 2, cv2.LINE_AA)
    ok, data = cv2.imencode(".png", image)
    if not ok:
        raise ValueError("the placeholder cannot be encoded")
    return data.tobytes()
