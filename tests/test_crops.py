"""Windows, crops and the maps between photo and network; and the one photo decoder."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from models.crops import (
    FILL,
    SEEN,
    STORED,
    affine,
    apply_affine,
    cut,
    invert_affine,
    sample,
    stored_pixels,
    stored_to_seen,
    to_frame,
    to_photo,
    window,
)
from models.photo import decode_photo, letterbox, normalise


def dot(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    """A black photo with a white Gaussian blob at a continuous place (pixel i covers [i, i+1))."""
    ys, xs = np.mgrid[:height, :width] + 0.5
    bump = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * radius**2))
    return np.repeat((255 * bump).astype(np.uint8)[..., None], 3, -1)


def centroid(image: np.ndarray) -> np.ndarray:
    """Continuous place of the bright blob; black and `fill` are the dark rest."""
    mass = image.astype(np.float64).mean(-1)
    ys, xs = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(mass * xs).sum(), (mass * ys).sum()]) / mass.sum()


def test_window_is_square_and_centred() -> None:
    out = window(np.array([[10.0, 20, 40, 30], [0, 0, 5, 50]]), 1.5)
    np.testing.assert_allclose(out, [[0, 5, 60], [-35, -12.5, 75]])
    np.testing.assert_allclose(window([10, 20, 40, 30], 1.1), [8, 13, 44])
    assert window(np.zeros((0, 4)), 1.1).shape == (0, 3)


def test_frame_and_photo_are_inverse_to_a_ten_thousandth_of_a_pixel() -> None:
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(-50, 4000, (50, 2)), rng.uniform(1, 3000, (50, 2))], 1)
    win = window(boxes, SEEN)
    points = rng.uniform(-500, 5000, (50, 16, 2))
    assert np.abs(to_photo(to_frame(points, win), win) - points).max() < 1e-4
    views = rng.uniform(-500, 5000, (50, 7, 16, 2))
    assert np.abs(to_photo(to_frame(views, win), win) - views).max() < 1e-4
    corner = np.stack([win[:, :2], win[:, :2] + win[:, 2:]], 1)
    np.testing.assert_allclose(to_frame(corner, win), np.tile([[-1.0, -1], [1, 1]], (50, 1, 1)), atol=1e-9)


@pytest.mark.parametrize(
    ("box", "place", "pixels"),
    [
        ([60, 50, 120, 80], (110.3, 95.6), 48),  # shrinking
        ([60, 50, 120, 80], (110.3, 95.6), 64),
        ([100, 80, 30, 24], (112.7, 91.2), 128),  # growing
        ([150, 90, 120, 110], (170.5, 120.25), 64),  # over the right and lower border
        ([-40, -30, 100, 90], (21.5, 17.75), 64),  # over the left and upper border
        ([-20, -15, 280, 230], (33.4, 140.9), 31),  # larger than the photo, an odd size
    ],
)
def test_cut_puts_a_dot_where_to_frame_says(box: list[float], place: tuple[float, float], pixels: int) -> None:
    win = window(box, STORED)
    scale = pixels / win[2]
    photo = dot(173, 227, *place, radius=max(1.5, 1.2 / scale))
    crop = cut(photo, win, pixels, fill=(0, 0, 0))
    assert crop.shape == (pixels, pixels, 3)
    expected = (to_frame(np.array([[place]]), win[None])[0, 0] + 1) / 2 * pixels
    assert np.abs(centroid(crop) - expected).max() < 0.12


def test_cut_fills_outside_with_the_mean_colour_and_keeps_the_inside() -> None:
    photo = np.full((40, 60, 3), (200, 10, 30), np.uint8)
    crop = cut(photo, [-30, 0, 60], 60)
    assert (crop[:, :29] == FILL).all()
    assert (crop[:39, 31:] == (200, 10, 30)).all()
    assert (crop[41:] == FILL).all()
    far = cut(photo, [500, 500, 20], 16)
    assert (far == FILL).all()


def test_cut_at_the_same_size_changes_no_pixel() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cut(photo, [10, 5, 32], 32), photo[5:37, 10:42])


def test_shrinking_averages() -> None:
    checks = np.indices((128, 128)).sum(0) % 2 * 255
    photo = np.repeat(checks[..., None], 3, -1).astype(np.uint8)
    crop = cut(photo, [0, 0, 128], 32)
    assert np.abs(crop[1:-1, 1:-1].astype(int) - 127).max() <= 2


def test_stored_crops_have_the_networks_resolution() -> None:
    for size in (64, 96, 256):
        pixels = stored_pixels(size)
        assert pixels % 16 == 0
        assert size <= pixels * SEEN / STORED < size + 16


def test_affine_leads_into_the_stored_crop() -> None:
    corners = torch.tensor([[[-1.0, -1], [1, 1], [0, 0]]])
    plain = apply_affine(affine(1), corners)
    np.testing.assert_allclose(plain.numpy(), corners.numpy() * (SEEN / STORED), atol=1e-6)
    np.testing.assert_allclose(stored_to_seen(plain).numpy(), corners.numpy(), atol=1e-6)
    wide = apply_affine(affine(1, zoom=1.2), corners)
    np.testing.assert_allclose(wide.numpy(), 1.2 * plain.numpy(), atol=1e-6)
    moved = apply_affine(affine(1, shift=torch.tensor([[0.5, -0.25]])), corners)
    np.testing.assert_allclose((moved - plain)[0].numpy(), np.tile([0.5, -0.25], (3, 1)) * SEEN / STORED, atol=1e-6)
    mirrored = apply_affine(affine(1, flip=-1.0), corners)
    np.testing.assert_allclose(mirrored.numpy(), plain.numpy() * [-1, 1], atol=1e-6)


def test_affine_turns_content_from_x_towards_y() -> None:
    # What stands to the right of the crop's centre stands below it in the turned picture (y is down).
    matrix = affine(1, angle=math.pi / 2)
    right = torch.tensor([[[0.5, 0.0]]]) * (SEEN / STORED)
    seen = apply_affine(invert_affine(matrix), right)
    np.testing.assert_allclose(seen.numpy(), [[[0.0, 0.5]]], atol=1e-6)


def test_invert_affine_inverts() -> None:
    g = torch.Generator().manual_seed(0)
    n = 20
    flip = torch.where(torch.rand(n, generator=g) < 0.5, -1.0, 1.0)
    shift = torch.rand(n, 2, generator=g) - 0.5
    matrix = affine(n, 0.7 + torch.rand(n, generator=g), 6 * torch.rand(n, generator=g), shift, flip)
    points = torch.rand(n, 5, 2, generator=g) * 2 - 1
    back = apply_affine(invert_affine(matrix), apply_affine(matrix, points))
    assert (back - points).abs().max() < 1e-5
    assert (torch.linalg.det(matrix[:, :, :2]).sign() == flip).all()


@pytest.mark.parametrize(
    ("zoom", "angle", "shift", "flip"),
    [(1.0, 0.0, (0.0, 0.0), 1), (1.2, 0.4, (0.1, -0.05), 1), (0.85, -0.5, (0.0, 0.1), -1), (1.0, 0.0, (0.2, 0.0), -1)],
)
def test_sample_shows_a_dot_where_the_points_go(
    zoom: float, angle: float, shift: tuple[float, float], flip: int
) -> None:
    size, pixels = 64, stored_pixels(64)
    places = np.array([[40.3, 52.1], [55.0, 37.7]])
    crops = np.stack([dot(pixels, pixels, *p, radius=2.0) for p in places])
    matrix = affine(2, zoom, angle, torch.tensor([shift] * 2), float(flip))
    images = sample(torch.from_numpy(crops), matrix, size)
    assert images.shape == (2, 3, size, size)
    stored = torch.tensor(places / pixels * 2 - 1, dtype=torch.float32)[:, None]
    expected = (apply_affine(invert_affine(matrix), stored)[:, 0].numpy() + 1) / 2 * size
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    for image, where in zip(images, expected, strict=True):
        # Outside the stored crop is the mean colour, at most 124: what is brighter is the dot.
        bright = ((image * std + mean) * 255 - 130).clamp_min(0)
        assert np.abs(centroid(bright.permute(1, 2, 0).numpy()) - where).max() < 0.15


def test_sample_normalises_and_is_zero_outside() -> None:
    crops = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    images = sample(crops, affine(1, zoom=2 * STORED / SEEN), 32)
    np.testing.assert_allclose(
        images[0, :, 16, 16].numpy(), (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-5
    )
    assert images[0, :, 0, 0].abs().max() == 0


def test_autocast_leaves_places_alone() -> None:
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8))
    matrix = affine(2, 1.07, 0.3, torch.tensor([[0.03, -0.02]] * 2))
    exact = sample(crops, matrix, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample(crops, matrix, 64), exact)


# -- photos ---------------------------------------------------------------------------------------------------------

COLOURS = {"red": (220, 20, 30), "green": (20, 180, 40), "blue": (30, 40, 210), "white": (240, 240, 240)}


def quarters(width: int = 64, height: int = 48) -> Image.Image:
    """Upright picture: red, green above; blue, white below."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2], array[: height // 2, width // 2 :] = COLOURS["red"], COLOURS["green"]
    array[height // 2 :, : width // 2], array[height // 2 :, width // 2 :] = COLOURS["blue"], COLOURS["white"]
    return Image.fromarray(array)


def assert_upright(data: bytes, width: int = 64, height: int = 48, tolerance: int = 14) -> None:
    out = decode_photo(data)
    assert out is not None
    assert out.shape == (height, width, 3)
    assert out.dtype == np.uint8
    seen = [out[y, x] for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    assert np.abs(np.array(seen, int) - np.array(list(COLOURS.values()))).max() <= tolerance


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_come_out_upright(orientation: int) -> None:
    # The stored picture is what the camera's sensor saw: the upright one with the orientation undone.
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    image = quarters()
    stored = image if undo is None else image.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_upright(encode(stored, "JPEG", quality=95, exif=exif))


def test_modes_and_formats_come_out_as_rgb() -> None:
    image = quarters()
    assert_upright(encode(image, "PNG"), tolerance=0)
    assert_upright(encode(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"))
    assert_upright(encode(image.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"))
    assert_upright(encode(image, "WEBP", lossless=True), tolerance=0)
    assert_upright(encode(image, "JPEG", quality=95, progressive=True))
    assert_upright(encode(image.convert("CMYK"), "JPEG", quality=95))


def test_grey_photos_have_three_equal_channels() -> None:
    grey = quarters().convert("L")
    for data in (encode(grey, "JPEG", quality=95), encode(grey, "PNG"), encode(grey.convert("LA"), "PNG")):
        out = decode_photo(data)
        assert out is not None
        assert out.shape == (48, 64, 3)
        assert (out[..., 0] == out[..., 1]).all()
        assert (out[..., 0] == out[..., 2]).all()
        assert np.abs(out[..., 0].astype(int) - np.asarray(grey, int)).max() <= 40
    deep = Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16))
    out = decode_photo(encode(deep, "PNG"))
    assert out is not None
    assert out.dtype == np.uint8
    assert out.max() > 250


def test_transparent_photos_keep_their_colours() -> None:
    image = quarters().convert("RGBA")
    assert_upright(encode(image, "PNG"), tolerance=0)


def test_what_is_no_photo_is_none() -> None:
    whole = encode(quarters(), "JPEG", quality=95)
    for data in (
        b"",
        b"\0" * 100,
        b"<html>404</html>",
        b"\xff\xd8\xff\xe0",
        encode(quarters(), "PNG")[:40],
        whole[:60],
    ):
        assert decode_photo(data) is None


def test_letterbox_keeps_proportions_at_the_top_left() -> None:
    photo = np.full((30, 60, 3), 200, np.uint8)
    out, scale = letterbox(photo, 96)
    assert scale == 1.6
    assert out.shape == (96, 96, 3)
    assert (out[:48] == 200).all()
    assert (out[48:] == FILL).all()
    out, scale = letterbox(cv2.resize(photo, (300, 600)), 96)
    assert scale == pytest.approx(0.16)
    assert (out[:, :48] == 200).all()
    assert (out[:, 48:] == FILL).all()
    out, _ = letterbox(np.zeros((1, 4000, 3), np.uint8), 64)
    assert out.shape == (64, 64, 3)


def test_normalise_is_imagenets() -> None:
    image = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    out = normalise(image)
    assert out.shape == (1, 3, 1, 1)
    expected = (np.array([0, 128, 255]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(out[0, :, 0, 0].numpy(), expected, rtol=1e-5)
