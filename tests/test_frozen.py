"""Networks folded for inference, and their kernels on a GPU: the same answers as the networks they come from."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, max_pool2d

from models import pool
from models.acsm import ACSM
from models.crops import stored_pixels
from models.frozen import frozen
from models.heatmap import PoseNet
from models.predict import predict_all
from models.predictor import Predictor
from sandbox.animal import animal

SIZE = 64
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trained(net: nn.Module) -> nn.Module:
    """With statistics and scales as a training leaves them: none is 0 or 1."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(std=0.3)  # type: ignore[union-attr, operator]
            m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
            nn.init.normal_(m.weight, 1, 0.2)
            nn.init.normal_(m.bias, std=0.2)
    return net.eval()


def networks(width: int = 8) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {n: PoseNet(16, width=width, channels=16) for n in ("pose", "aux")}
    found["acsm"] = ACSM(animal(), hypotheses=2, width=width, image_size=SIZE, features=16)
    return {n: trained(net) for n, net in found.items()}


@pytest.mark.parametrize("depth", [18, 50])
def test_folding_changes_no_answer(depth: int) -> None:
    torch.manual_seed(0)
    pose = trained(PoseNet(16, depth, width=8, channels=16)).double()
    acsm = trained(ACSM(animal(), 2, depth, width=8, image_size=SIZE, features=16)).double()
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.inference_mode():
        plain, folded = pose(images), frozen(pose, torch.float64)(images)
        torch.testing.assert_close(folded, plain, rtol=1e-9, atol=1e-12)
        folded = frozen(acsm, torch.float64)
        theirs, ours = (net.squeeze(net.backbone(images)) for net in (acsm, folded))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in acsm.modules())


def test_a_network_with_a_map_head_is_frozen_without_it() -> None:
    acsm = trained(ACSM(animal(), 2, width=8, image_size=SIZE, features=16, surface=True)).double()
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.inference_mode():
        plain, folded = acsm(images), frozen(acsm, torch.float64)(images)
    assert folded.surface is None
    for theirs, ours in zip(folded[:5], plain[:5], strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)


def test_a_predictor_on_the_cpu_says_what_the_networks_say() -> None:
    nets = networks()
    pixels = stored_pixels(SIZE)
    crops = np.random.default_rng(0).integers(0, 256, (5, pixels, pixels, 3), dtype=np.uint8)
    predict = Predictor(nets, SIZE, "cpu")
    predict.batch = 2
    pairs = [predict_all(nets, torch.from_numpy(crops[s : s + 2]), SIZE) for s in range(0, 5, 2)]
    for name, values in predict(crops).items():
        assert np.array_equal(values, np.concatenate([p[name].numpy() for p in pairs]))
    assert "keypoints_mt" not in Predictor(nets, SIZE, "cpu", views=False)(crops)


class Poor(PoseNet):
    """Has memory for so many images; the first threads to ask fail together."""

    def __init__(self, holds: int, threads: int, error: Exception) -> None:
        super().__init__(16, width=8, channels=16)
        self.holds, self.error, self.together = holds, error, threading.Barrier(threads)
        self.first, self.sizes = threads, list[int]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.holds:
            if self.first:
                self.together.wait(60)
                self.first = 0
            raise self.error
        return super().forward(images)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_threads_without_memory_halve_the_batch_once(error: Exception) -> None:
    torch.manual_seed(0)
    net = Poor(holds=4, threads=3, error=error).eval()
    predict = Predictor({"pose": net}, SIZE, "cpu")
    predict.batch = 8
    crops = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(predict, [crops] * 3))
    assert predict.batch == 4
    assert sorted(net.sizes, reverse=True) == [8] * 3 + [4] * 7 * 2 * 3
    net.holds = 8
    whole = predict_all({"pose": net}, torch.from_numpy(crops), SIZE)["keypoints_mt"].numpy()
    for answer in answers:
        np.testing.assert_allclose(answer["keypoints_mt"], whole, atol=2e-4)
    net.holds = 0
    with pytest.raises(type(error)):
        predict(crops)
    assert predict.batch == 1


@pytest.mark.gpu
@on_gpu
def test_norm_pool_and_cut_as_one_are_the_three() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 16, 12, 20, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(16).cuda()
    nn.init.normal_(norm.weight)  # negative scales too: the largest is then the smallest
    nn.init.normal_(norm.bias, std=0.3)
    assert pool.applies(x, norm)
    leaf = x.clone().requires_grad_()
    ours = pool.pooled(leaf, norm)
    up = torch.randn_like(ours)
    got = torch.autograd.grad(ours, (leaf, norm.weight, norm.bias), up)
    exact = [t.detach().double().requires_grad_() for t in (x, norm.weight, norm.bias)]
    mean, var = torch.zeros(16, device="cuda").double(), torch.ones(16, device="cuda").double()
    theirs = max_pool2d(batch_norm(exact[0], mean, var, exact[1], exact[2], True, 0.1, 1e-5), 3, 2, 1).relu()
    wanted = torch.autograd.grad(theirs, exact, up.double())
    made = (ours, *got, norm.running_mean, norm.running_var)
    for a, b in zip(made, (theirs, *wanted, mean, var), strict=True):
        a, b = a.detach().double(), b.detach()
        assert float((a - b).norm() / b.norm()) < 4e-3  # bfloat16 holds 8 bits
    norm.eval()
    assert not pool.applies(x, norm)


@pytest.mark.gpu
@on_gpu
def test_a_gpu_says_what_a_cpu_says_of_a_crop_alone_and_among_others() -> None:
    nets = networks(width=16)
    rng, pixels = np.random.default_rng(0), stored_pixels(SIZE)
    crops = rng.integers(0, 256, (9, pixels, pixels, 3), dtype=np.uint8)
    exact = Predictor(nets, SIZE, "cpu")(crops)
    predict = Predictor(nets, SIZE, "cuda")
    found = predict(crops)
    # float16: joints of a network that is not trained may jump to another peak, few do.
    for name, values in found.items():
        width = 2 if name.startswith("keypoints") else 1
        apart = np.abs(values - exact[name])[..., :width]
        assert np.median(apart) < 2e-3
        assert (apart < 2e-2).mean() > 0.9
    for i in (0, 8):
        for name, values in predict(crops[i : i + 1]).items():
            assert np.array_equal(values[0], found[name][i])
    predict.batch, predict.graph = 4, None
    for name, values in predict(crops).items():
        np.testing.assert_allclose(np.median(np.abs(values - found[name])), 0, atol=1e-3)
