"""Peaks of heatmaps: unbiased at every place of the map, and the reference's way beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.heatmap import decode, gaussian_targets, heights_at
from tables import InputError


def gaussians(places: np.ndarray, height: int, width: int, sigma: float) -> torch.Tensor:
    """One map [1,N,h,w] a place; a cell's middle is at i + 0.5."""
    dx = np.arange(width) + 0.5 - places[:, :1]
    dy = np.arange(height) + 0.5 - places[:, 1:]
    maps = np.exp(-(dy[:, :, None] ** 2 + dx[:, None, :] ** 2) / (2 * sigma**2))
    return torch.from_numpy(maps).float()[None]


def in_cells(joints: torch.Tensor, height: int, width: int) -> np.ndarray:
    return ((joints[0, :, :2].double().numpy() + 1) / 2) * [width, height]


@pytest.mark.parametrize("sigma", [0.8, 1.0, 2.0])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (24, 40), (3, 5)])
def test_any_place_comes_back_the_border_too(sigma: float, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 1, (500, 2)) * [width, height]
    found = in_cells(decode(gaussians(places, height, width, sigma)), height, width)
    assert np.abs(found - places).max() < 0.05
    assert np.abs((found - places).mean(0)).max() < 0.005


def test_targets_and_decoding_are_each_others_inverse() -> None:
    points = torch.rand(8, 16, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = gaussian_targets(points, torch.ones(8, 16), 64, 1.0)
    torch.testing.assert_close(decode(maps)[..., :2], points, rtol=0, atol=1e-4)


def test_noise_leaves_it_unbiased() -> None:
    rng = np.random.default_rng(1)
    places = rng.uniform(2, 62, (4000, 2))
    maps = gaussians(places, 64, 64, 1.0)
    maps += 0.02 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(2))
    error = in_cells(decode(maps), 64, 64) - places
    assert np.abs(error.mean(0)).max() < 0.01
    assert np.abs(error).max() < 1


def test_the_references_way_is_low_by_half_a_cell() -> None:
    """animals3d takes the cell for the place: 2 of 256 pixels too far up and left (docs/method.md, "2D network")."""
    maps = torch.zeros(1, 2, 64, 64)
    maps[0, 0, 10, 20] = 0.7
    maps[0, 1, 63, 0] = 1.4
    found = decode(maps, compat="animals3d")
    # Of 256 pixels: 4 times the cell.
    assert ((found[0, :, :2] + 1) * 128).tolist() == [[80, 40], [0, 252]]
    assert found[0, :, 2].tolist() == pytest.approx([0.7, 1])
    places = np.random.default_rng(3).uniform(1, 63, (4000, 2))
    error = in_cells(decode(gaussians(places, 64, 64, 1.0), compat="animals3d"), 64, 64) - places
    np.testing.assert_allclose(error.mean(0), -0.5, atol=0.02)
    with pytest.raises(InputError, match="compat=dark"):
        decode(maps, compat="dark")


def test_a_map_is_read_where_it_is_asked() -> None:
    cells = np.array([[3.5, 4.5], [4.0, 4.5], [7.9, 2.5], [8.2, 2.5], [9.0, 2.5]])  # x, y of an 8 x 6 map
    maps = torch.rand(1, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    found = heights_at(maps, torch.from_numpy(cells / [8, 6] * 2 - 1).float()[None])[0]
    edge = maps[0, :, 2, 7]
    assert found.tolist() == pytest.approx(
        [float(v) for v in (maps[0, 0, 4, 3], maps[0, 1, 4, 3:5].mean(), 0.6 * edge[2], 0.3 * edge[3], 0)], abs=1e-5
    )
    assert heights_at(torch.full((1, 1, 3, 3), 7.0), torch.zeros(1, 1, 2)).tolist() == [[1]]
    # A joint found by decoding is read at nearly its own height: a cell's width is half a spread.
    points = torch.rand(8, 16, 2, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    assert (heights_at(gaussian_targets(points, torch.ones(8, 16), 64, 2.0), points) > 0.93).all()
