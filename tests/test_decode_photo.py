"""The one decoder: every container and mode upright and in RGB, so that boxes, crops and keypoints agree."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from models.crops import STORED
from models.photo import decode_photo
from pipelines.label_worker import LabelWorker
from tables import Lake, to_numpy

COLOURS = np.array([[220, 20, 30], [20, 180, 40], [30, 40, 210], [240, 240, 240]], np.uint8)
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def quarters(width: int = 64, height: int = 48) -> Image.Image:
    """Upright: red and green above, blue and white below."""
    index = 2 * (np.arange(height) >= height // 2)[:, None] + (np.arange(width) >= width // 2)
    return Image.fromarray(COLOURS[index])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def seen(data: bytes) -> np.ndarray:
    """The colours in the middle of the four quarters, after a check of shape and type."""
    photo = decode_photo(data)
    assert photo is not None
    assert photo.shape == (48, 64, 3)
    assert photo.dtype == np.uint8
    return np.array([photo[y, x] for y in (12, 36) for x in (16, 48)], int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UNDO)
def test_orientation_in_every_container(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = quarters().transpose(UNDO[orientation])
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    assert np.abs(seen(encoded(stored, kind, exif=exif, **options)) - COLOURS).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_become_eight(kind: str, channels: int) -> None:
    deep = np.asarray(quarters()).astype(np.uint16) * 257
    deep = deep[..., :1] if channels == 1 else np.dstack([deep, np.full((48, 64), 9000, np.uint16)])[..., :channels]
    if channels > 1:
        deep[..., :3] = deep[..., 2::-1]  # OpenCV writes BGR
    data = cv2.imencode(f".{kind.lower()}", deep)[1].tobytes()
    np.testing.assert_array_equal(seen(data), COLOURS[:, :1].repeat(3, 1) if channels == 1 else COLOURS)


def test_palettes_alpha_grey_and_cmyk() -> None:
    photo = quarters()
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    hidden = np.dstack([np.asarray(photo), np.zeros((48, 64), np.uint8)])
    for data in (
        encoded(palette, "PNG"), encoded(palette, "PNG", transparency=0), encoded(palette, "GIF"),
        encoded(palette, "TIFF"), encoded(palette, "BMP"),
        encoded(Image.fromarray(hidden), "PNG"), encoded(Image.fromarray(hidden), "WEBP", lossless=True, exact=True),
        encoded(photo.convert("CMYK"), "TIFF"),
        encoded(photo, "GIF", save_all=True, append_images=[photo.transpose(Image.Transpose.ROTATE_180)]),
    ):  # fmt: skip
        np.testing.assert_array_equal(seen(data), COLOURS)
    for data in (
        encoded(photo.convert("CMYK"), "JPEG", quality=95),
        encoded(photo.convert("YCbCr"), "JPEG", quality=95),
        encoded(photo, "WEBP", quality=95),
    ):
        assert np.abs(seen(data) - COLOURS).max() <= 4
    grey = np.asarray(photo.convert("L"))[[12, 12, 36, 36], [16, 48, 16, 48]]
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        np.testing.assert_array_equal(seen(encoded(photo.convert("L"), kind)), grey[:, None].repeat(3, 1))
    np.testing.assert_array_equal(seen(encoded(photo.convert("LA"), "PNG")), grey[:, None].repeat(3, 1))
    black = Image.fromarray(np.asarray(photo)[..., 0] > 100)  # one bit a pixel
    assert seen(encoded(black, "PNG"))[:, 0].tolist() == [255, 0, 0, 255]


def header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_what_cannot_be_decoded_is_none() -> None:
    for size in ((100_000, 100_000), (2**20 + 1, 2), (0, 5), (50, 50)):
        assert decode_photo(header(*size)) is None
    for data in (b"", b"\0", b"GIF89a", encoded(quarters(), "PNG")[:-30]):
        assert decode_photo(data) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_never_raises(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encoded(quarters(), kind), np.uint8)
    for _ in range(150):
        dirty = whole.copy()
        dirty[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
        photo = decode_photo(dirty.tobytes())
        assert photo is None or (photo.ndim == 3 and photo.dtype == np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_boxes_and_crops_agree_on_a_turned_photo(tmp_path: Path, kind: str) -> None:
    """A box drawn on the upright photo cuts the same pixels out of a photo that lies on its side in its file."""
    exif = Image.Exif()
    exif[0x0112] = 8
    options: dict[str, Any] = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    lying = encoded(quarters().transpose(UNDO[8]), kind, exif=exif, **options)
    (tmp_path / "lying").write_bytes(lying)
    (tmp_path / "upright").write_bytes(encoded(quarters(), "PNG"))
    lake = Lake(str(tmp_path / "lake"))
    made = {t: lake.dataset(t, "deer", {"stage": "ingest"}) for t in ("labels", "instances", "photos")}
    box = [34.0, 4.0, 20.0, 16.0]  # within the green quarter
    animal = {"bbox": box, "keypoints": [1.0, 1.0, 2.0] * 16, "camera": None, "segmentation": None}
    block = [{"file": name, "animals": [animal]} for name in ("lying", "upright")]
    LabelWorker(folder=str(tmp_path), split="train", category="deer", crop_px=96, **made)("all", block)
    assert set(zip(*(made["photos"].read()[c].to_pylist() for c in ("width", "height")), strict=True)) == {(64, 48)}
    rows = made["instances"].read()
    one, other = (decode_photo(data) for data in rows["crop"].to_pylist())
    assert one is not None
    assert other is not None
    assert one.shape[0] == 20 * STORED
    assert np.abs(one.astype(int) - other).mean() < 3
    middle = one[10:20, 10:20].reshape(-1, 3).mean(0)
    assert np.abs(middle - COLOURS[1]).max() < 12
    assert (to_numpy(rows["bbox"], 4) == box).all()
