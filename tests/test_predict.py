"""All networks on stored crops at once: what each says is what it says alone, however crops are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.acsm import ACSM
from models.crops import affine, sample, stored_pixels
from models.heatmap import PoseNet, heights_at
from models.predict import VIEWS, predict_acsm, predict_all, predict_pose
from sandbox.animal import animal

SIZE = 64


@pytest.fixture(scope="module")
def nets() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    made = {n: PoseNet(16, width=8, channels=16) for n in ("pose", "aux")}
    for net in made.values():
        torch.nn.init.normal_(net.head.weight, std=20.0)  # peaks of some height
    made["acsm"] = ACSM(animal(), hypotheses=2, width=8, image_size=SIZE, features=16)
    return {n: net.eval() for n, net in made.items()}


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (5, stored_pixels(SIZE), stored_pixels(SIZE), 3), dtype=np.uint8))


def test_each_net_says_what_it_says_alone(nets: dict[str, torch.nn.Module], crops: torch.Tensor) -> None:
    found = predict_all(nets, crops, SIZE)
    assert {n: tuple(v.shape) for n, v in found.items()} == {
        "keypoints_mt": (5, 7, 16, 3), "keypoints_aux": (5, 16, 3), "keypoints_3d": (5, 16, 2), "heatmap_3d": (5, 16),
    }  # fmt: skip
    for t, (zoom, angle) in enumerate(VIEWS):
        assert torch.equal(found["keypoints_mt"][:, t], predict_pose(nets["pose"], crops, SIZE, zoom, angle))
    assert torch.equal(found["keypoints_aux"], predict_pose(nets["aux"], crops, SIZE))
    there = predict_acsm(nets["acsm"], crops).keypoints[:, 0]
    assert torch.equal(found["keypoints_3d"], there)
    with torch.inference_mode():
        maps = nets["pose"](sample(crops, affine(5), SIZE))
        assert torch.equal(found["heatmap_3d"], heights_at(maps, there))
    assert found["heatmap_3d"].max() > 0.01


def test_a_later_round_asks_again_what_depends_on_the_3d_net(
    nets: dict[str, torch.nn.Module], crops: torch.Tensor
) -> None:
    both = {n: nets[n] for n in ("pose", "acsm")}
    every, later = predict_all(nets, crops, SIZE), predict_all(both, crops, SIZE, views=False)
    assert later.keys() == {"keypoints_3d", "heatmap_3d"}
    for name, values in later.items():
        assert torch.equal(values, every[name])
    assert predict_all({"aux": nets["aux"]}, crops, SIZE).keys() == {"keypoints_aux"}
    assert "heatmap_3d" not in predict_all({"pose": nets["pose"]}, crops, SIZE)


def test_a_crop_is_labelled_alike_alone_and_among_others(nets: dict[str, torch.nn.Module], crops: torch.Tensor) -> None:
    every = predict_all(nets, crops, SIZE)
    for i in range(len(crops)):
        for name, values in predict_all(nets, crops[i : i + 1], SIZE).items():
            torch.testing.assert_close(values[0], every[name][i], rtol=0, atol=2e-4)
