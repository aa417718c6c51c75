"""Photos of every kind through the detect worker, without Ray: the right status each, boxes on the upright one."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_decode_photo import UNDO, header

from pipelines import detect_worker
from pipelines.detect_worker import DetectWorker
from pipelines.detectors import Found
from tables import Dataset, Lake, schema, to_numpy

RULES: dict[str, Any] = {"score": 0.3, "overlap": 0.5, "most": 8, "min_side": 8, "crop_px": 96, "radius": 0}
BOX = (300, 60, 260, 200)  # of the red box in the photo


class Red:
    """Finds what is red; photos that are all black make it raise."""

    names = ("animal",)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return height // 256, width // 256

    def __call__(self, photos: Sequence[np.ndarray]) -> list[Found]:
        return [self.find(p) for p in photos]

    def find(self, photo: np.ndarray) -> Found:
        if not photo.any():
            raise ArithmeticError("nothing to see")
        r, g, b = photo.astype(int).transpose(2, 0, 1)
        y, x = np.nonzero((r > g + 90) & (r > b + 90))
        if not len(y):
            return Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
        box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
        return Found(np.array([box], float), np.ones(1), np.zeros(1, int))


@pytest.fixture
def red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_worker, "open_detector", lambda *_: Red())


def picture() -> Image.Image:
    """640 x 480, grey noise and a red box."""
    noise = np.random.default_rng(0).integers(90, 160, (60, 80, 1)).astype(np.uint8).repeat(3, 2)
    photo = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    x, y, w, h = BOX
    photo[y : y + h, x : x + w] = (220, 20, 20)
    return Image.fromarray(photo)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def crawled(lake: Lake, bodies: dict[str, bytes | None]) -> Dataset:
    photos = lake.dataset("photos", "deer", {"stage": "crawl"})
    rows = {"photo_id": list(bodies), "status": ["ok"] * len(bodies), "bytes": list(bodies.values())}
    rows["sha256"] = [hashlib.sha256(b or b"").hexdigest() for b in bodies.values()]
    every = {f.name: rows.get(f.name, [None] * len(bodies)) for f in schema("photos")}
    photos.write("p", pa.table(every, schema("photos")), schema("photos"))
    return photos


def look(folder: Path, bodies: dict[str, bytes | None], **over: Any) -> tuple[Dataset, dict[str, int], dict[str, str]]:
    lake = Lake(str(folder))
    made = lake.dataset("instances", "deer", {"stage": "detect"})
    counts = DetectWorker(crawled(lake, bodies), made, "none", "red", "deer", {**RULES, **over})("p", {})
    return made, counts, made.manifests()["p"]["lost"]


def mutated() -> dict[str, bytes]:
    """200 photos, each harmed in its own way; the name says how."""
    rng, image, found = np.random.default_rng(1), picture(), dict[str, bytes]()
    for n, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF") * 20):
        data = encoded(image, kind)
        found[f"cut{n}"] = data[: int(rng.integers(30, len(data) - 30))]
    for n, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF") * 20):
        data = np.frombuffer(encoded(image, kind), np.uint8).copy()
        data[rng.integers(20, len(data), 5)] ^= (1 << rng.integers(0, 8, 5)).astype(np.uint8)
        found[f"flipped{n}"] = data.tobytes()
    for n, text in enumerate((b"", b"\0" * 99, b"<html>gone</html>", b"%PDF-1.4", b"GIF", b"BM" + b"\0" * 60)):
        found[f"other{n}"] = text
    for n, size in enumerate(((100_000, 100_000), (2**31 - 1, 2**31 - 1), (65_535, 65_535), (40_000, 100))):
        found[f"giant{n}"] = header(*size)
    for n in range(6):
        found[f"cmyk{n}"] = encoded(image.convert("CMYK"), "JPEG", quality=70 + 5 * n)
        deep = np.asarray(image)[..., ::-1].astype(np.uint16) * (257 - n)
        found[f"deep{n}"] = cv2.imencode(".png", deep)[1].tobytes()
        later = [picture().rotate(90 * k) for k in range(1, 3 + n)]
        found[f"animated{n}"] = encoded(image, "GIF", save_all=True, append_images=later)
    for orientation in UNDO:
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"turned{orientation}"] = encoded(image.transpose(UNDO[orientation]), "JPEG", quality=95, exif=exif)
    for n in range(5):
        kind = ("JPEG", "PNG", "WEBP", "GIF", "JPEG")[n]
        found[f"grey{n}"] = encoded(image.convert("L"), kind, quality=70 + 5 * n)  # no two of the same bytes
    return found


def test_two_hundred_mutated_photos(tmp_path: Path, red: None) -> None:
    bodies = mutated()
    assert len(bodies) == 200
    made, counts, lost = look(tmp_path, {**bodies, "good": encoded(picture(), "PNG")})
    assert counts["photos"] + len(lost) == 201
    status = {name: lost.get(name, "ok").partition(":")[0] for name in bodies}
    for name, found in status.items():
        how = name.rstrip("0123456789")
        if how in ("cmyk", "deep", "animated", "turned", "grey"):
            assert found == "ok", name
        elif how in ("cut", "other", "giant"):
            assert found == {"cut": "truncated", "other": "not_image", "giant": "bomb"}[how], name
        else:
            assert found in ("ok", "truncated", "not_image", "bomb", "undecodable"), name
    rows = made.read(["photo_id", "bbox", "crop"])
    boxes = dict(zip(rows["photo_id"].to_pylist(), to_numpy(rows["bbox"], 4), strict=True))
    for name, box in boxes.items():
        if name.rstrip("0123456789") in ("good", "cmyk", "deep", "animated", "turned"):
            assert np.abs(box - BOX).max() <= 2, name
    for name in bodies:
        assert (name in boxes) or status[name] != "ok" or name.startswith(("grey", "flipped")), name
    assert {reason: n for reason, n in counts.items() if reason in set(status.values())} == {
        reason: list(status.values()).count(reason) for reason in set(status.values()) - {"ok"}
    }


def test_a_poison_photo_costs_its_own_row(tmp_path: Path, red: None) -> None:
    bodies = {f"good{i}": encoded(picture(), "JPEG", quality=80 + i) for i in range(3)} | {
        "black": encoded(Image.new("RGB", (640, 480)), "PNG"), "null": None,
    }  # fmt: skip
    made, counts, lost = look(tmp_path, bodies)
    assert set(made.read(["photo_id"])["photo_id"].to_pylist()) == {"good0", "good1", "good2"}
    assert lost["black"] == "poison: ArithmeticError: nothing to see"
    assert lost["null"].startswith("not_image")
    assert (counts["photos"], counts["poison"], counts["instances"]) == (4, 1, 3)


def test_a_detector_that_fails_on_every_photo_is_no_poison(tmp_path: Path, red: None) -> None:
    one, other = (encoded(Image.new("RGB", (64, side)), "PNG") for side in (48, 50))
    with pytest.raises(RuntimeError, match="fails on every photo of p: poison: ArithmeticError"):
        look(tmp_path, {"a": one, "b": other})


def test_a_device_that_breaks_in_a_part_leaves_it_to_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sick(Red):
        asked = 0

        def __call__(self, photos: Sequence[np.ndarray]) -> list[Found]:
            self.asked += 1
            if self.asked > 1:
                raise RuntimeError("some kernel failed")
            return super().__call__(photos)

    monkeypatch.setattr(detect_worker, "open_detector", lambda *_: Sick())
    bodies = {f"{i:02}": encoded(picture(), "JPEG", quality=70 + i) for i in range(20)}
    with pytest.raises(RuntimeError, match="answered before: some kernel failed"):
        look(tmp_path, bodies)
    assert Lake(str(tmp_path)).dataset("instances", "deer", {"stage": "detect"}).parts() == []


def test_rows_do_not_depend_on_how_photos_were_batched(tmp_path: Path, red: None) -> None:
    sizes = [(640, 480), (1000, 300), (300, 1000), (700, 500)] * 6
    bodies = {f"{i:02}": encoded(picture().resize(s), "JPEG", quality=70 + i) for i, s in enumerate(sizes)}
    every, counts, _ = look(tmp_path / "every", bodies)
    assert counts["instances"] == 24
    one = [look(tmp_path / name, {name: body})[0].read() for name, body in bodies.items()]
    assert every.read().sort_by("photo_id").equals(pa.concat_tables(one).combine_chunks())
    assert look(tmp_path / "border", bodies, border=700)[1]["cut_off"] > 0


def test_real_boxes_of_photos_on_their_side(tmp_path: Path, shared_data: Path) -> None:
    """YOLOX, staged, on real photos as they are and lying in their files: the same boxes."""
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'wildshape[onnx]'")
    lake, bodies = Lake(str(tmp_path)), dict[str, bytes | None]()
    for path in sorted((shared_data / "coco_animals" / "images").glob("*.jpg"))[:6]:
        photo = Image.open(path).convert("RGB")
        bodies[f"{path.stem}-0"] = encoded(photo, "PNG")
        for orientation in (3, 6, 8):
            exif = Image.Exif()
            exif[0x0112] = orientation
            bodies[f"{path.stem}-{orientation}"] = encoded(photo.transpose(UNDO[orientation]), "PNG", exif=exif)
    made = lake.dataset("instances", "deer", {"stage": "detect"})
    rules = {**RULES, "classes": ["cat", "dog", "horse", "sheep", "cow", "bird", "bear", "zebra", "giraffe"]}
    model = str(shared_data / "detector" / "yolox_nano.onnx")
    DetectWorker(crawled(lake, bodies), made, model, "yolox", "deer", rules, "onnx")("p", {})
    found: dict[str, dict[str, list[Any]]] = {}
    for row in made.read(["photo_id", "bbox", "score"]).to_pylist():
        name, _, turn = row["photo_id"].partition("-")
        found.setdefault(name, {}).setdefault(turn, []).append(json.dumps([*row["bbox"], row["score"]]))
    assert found
    for turns in found.values():
        assert len(turns) == 4
        assert all(sorted(boxes) == sorted(turns["0"]) for boxes in turns.values())
