"""3x3 convolutions with fewer multiplications: torch's sums and gradients, and where they are used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import winograd as module
from models.resnet import ResNet
from models.winograd import Conv3x3, suits, winograd


def drawn(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(batch, inputs, height, width).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
    return x.requires_grad_(), weight.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("shape", [(2, 3, 5, 8, 4), (1, 128, 160, 12, 20), (3, 256, 128, 16, 16)])
def test_values_and_gradients_are_those_of_conv2d(shape: tuple[int, int, int, int, int]) -> None:
    x, weight = drawn(*shape)
    double = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    ours, truth = winograd(x, weight), nn.functional.conv2d(*double, padding=1)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    out = torch.randn_like(ours)
    mine, theirs = torch.autograd.grad(ours, (x, weight), out), torch.autograd.grad(truth, double, out.double())
    for got, want in zip((ours, *mine), (truth, *theirs), strict=True):
        assert float((got.detach() - want.detach()).norm() / want.detach().norm()) < 1e-5
    exact = winograd(*double)
    torch.testing.assert_close(exact, truth, atol=1e-12, rtol=1e-12)
    for got, want in zip(torch.autograd.grad(exact, double, out.double()), theirs, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


def test_it_is_used_in_training_in_float32_on_a_cpu_alone() -> None:
    x, weight = drawn(3, 128, 128, 16, 16)
    assert suits(x, weight)
    assert not suits(x.double(), weight)
    assert not suits(x.bfloat16(), weight)
    assert not suits(x.contiguous(), weight)
    assert not suits(x, weight.detach())
    assert not suits(x[:2], weight)
    assert not suits(x[..., :15], weight)
    assert not suits(*drawn(12, 64, 128, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(x, weight)
    with torch.no_grad():
        assert not suits(x, weight)


def test_a_network_learns_with_it_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = ResNet(18, 64).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(4, 3, 128, 128)
    assert sum(isinstance(m, Conv3x3) for m in net.modules()) == 16
    found = []
    for channels in (module.CHANNELS, 10**9):
        monkeypatch.setattr(module, "CHANNELS", channels)
        out = net(images)
        loss = out.square().mean()
        net.zero_grad()
        loss.backward()
        grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        found.append((out.detach(), grads))
    (ours, mine), (plain, theirs) = found
    assert not torch.equal(ours, plain)  # both ways were gone
    assert float((ours - plain).norm() / plain.norm()) < 1e-5
    for name, grad in theirs.items():
        assert float((mine[name] - grad).norm() / grad.norm()) < 1e-4, name
