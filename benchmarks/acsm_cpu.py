"""One training step of the 3D network on the CPU, ours and the same mathematics written as animals3d writes it.

    python -m benchmarks.acsm_cpu --out benchmarks/results/acsm_cpu.json

The plain step follows animals3d (network.py:160-206, 337-341; camera.py; geom_utils.py:259-307): the batch is doubled
by mirroring and the second half's predictions are replaced by the mirrored first half's; one small network a part and a
hypothesis; every part turns a copy of all vertices by quaternion products, up to the root; all vertices are projected
and a silhouette is drawn that no loss reads (with our rasteriser, once at the crop's size: the reference draws on CUDA
alone, at twice the size); single-tensor Adam in float32. It is checked first that both give the same loss for the same
weights. Ours is timed in float32 as well as in bfloat16, which training takes by itself where the processor has
instructions for it.

Seconds are of the processor, not of the clock: one thread does all the work, and whoever else uses the machine takes
its turn unseen. `convolutions` is the floor: our network's convolutions alone, forward and backward, at the sizes they
have in the step, in float32. No way of writing the rest makes a step shorter than that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.acsm import ACSM
from models.animals3d_heads import Animals3dHeads, euler_to_quat
from models.camera import axis_angle_to_quat, mirror_camera, quat_multiply
from models.losses import keypoint_loss
from models.raster import rasterize
from sandbox.animal import animal
from trainers.engine import bfloat16

BATCH, PIXELS, STEPS = 12, 256, 11


def grouped(layer: Any, group: int, x: Tensor) -> Tensor:
    """One of the reference's separate linear layers."""
    return nn.functional.linear(x, layer.weight[group], layer.bias[group])


def stacked(layers: nn.Sequential, group: int, x: Tensor) -> Tensor:
    x = nn.functional.leaky_relu(grouped(layers[0], group, x), 0.1)
    return nn.functional.leaky_relu(grouped(layers[2], group, x), 0.1)


def turned(q: Tensor, points: Tensor) -> Tensor:
    """q (0, X) q* for all points [B, V, 3]."""
    q = q[:, None].expand(-1, points.shape[1], 4)
    conjugate = torch.cat([q[..., :1], -q[..., 1:]], -1)
    zero = torch.zeros_like(points[..., :1])
    return quat_multiply(q, quat_multiply(torch.cat([zero, points], -1), conjugate))[..., 1:]


def plain_loss(net: ACSM, images: Tensor, points: Tensor, weight: Tensor, flip: Tensor, double: bool) -> Tensor:
    """The reference's loss, one hypothesis, part and ancestor at a time."""
    template, heads = net.template, net.heads
    assert isinstance(heads, Animals3dHeads)
    count = len(images)
    if double:
        images = torch.cat([images, images.flip(-1)])
        mirrored = points[:, flip] * points.new_tensor([-1, 1])
        points, weight = torch.cat([points, mirrored]), torch.cat([weight, weight[:, flip]])
    feature = stacked(heads.fc, 0, net.encode(net.squeeze(net.backbone(images)).flatten(1)))
    cameras, quaternions, logits = [], [], []
    for h in range(net.hypotheses):
        f = stacked(heads.camera_fc, h, feature)
        if net.hypotheses == 1:
            rotation = nn.functional.normalize(grouped(heads.rotation, h, f), dim=-1)
        else:
            rotation = quat_multiply(euler_to_quat(torch.tanh(f[:, :3])), heads.starts[h].expand(len(f), 4))
        logits.append(grouped(heads.prob, h, f))
        cameras.append(torch.cat([1 + 0.05 * grouped(heads.scale, h, f), grouped(heads.shift, h, f), rotation], -1))
        f, own = stacked(heads.parts_fc, h, feature), []
        for p in range(net.parts):
            group = h * net.parts + p
            turn = nn.functional.normalize(grouped(heads.angle, group, stacked(heads.part_fc, group, f)), dim=-1)
            own.append(axis_angle_to_quat(net.axes.view(-1, net.parts, 3)[h, p], torch.atan2(turn[:, 1], turn[:, 0])))
        quaternions.append(torch.stack(own, 1))
    camera, quaternion = torch.stack(cameras, 1), torch.stack(quaternions, 1)
    prob = torch.cat(logits, 1).softmax(1) if net.hypotheses > 1 else torch.ones_like(logits[0])
    if double:
        camera = torch.cat([camera[:count], mirror_camera(camera[:count])])
        quaternion = torch.cat([quaternion[:count], quaternion[:count, :, list(template.part_mirror)]])
        prob = torch.cat([prob[:count], prob[:count]])
    losses, faces = [], torch.from_numpy(template.faces.astype(np.int64))
    vertices: Any = net.vertices
    pivots: Any = net.pivots
    weights: Any = net.weights
    index: Any = net.index
    for h in range(net.hypotheses):
        copies = []
        for p in range(net.parts):
            ancestors: list[int] = []
            above = template.parents[p]
            while above >= 0:
                ancestors.insert(0, above)
                above = template.parents[above]
            moved = vertices.expand(len(images), -1, 3)
            for part in (p, *ancestors):
                moved = turned(quaternion[:, h, part], moved - pivots[part]) + pivots[part]
            copies.append(moved)
        posed = (torch.stack(copies, 2) * weights[None, ..., None]).sum(2)
        s, t, q = camera[:, h, :1, None], camera[:, h, None, 1:3], camera[:, h, 3:]
        drawn = s * turned(q, posed)
        rasterize(torch.cat([drawn[..., :2] + t, drawn[..., 2:]], -1), faces, PIXELS)
        found = s * turned(q, posed[:, index])
        error = weight * (found[..., :2] + t - points).square().sum(-1)
        losses.append(error.mean(-1) / (weight.mean(-1) + 1e-4))
    return (torch.stack(losses, 1) * prob).sum(1).mean()


def agree(net: ACSM, images: Tensor, points: Tensor, weight: Tensor, flip: Tensor) -> float:
    """Relative difference of the plain loss and ours, for the same weights and images."""
    net.eval()
    with torch.no_grad():
        out = net(images, mesh=False)
        ours = keypoint_loss(out.keypoints, points, weight, out.prob)
        plain = plain_loss(net, images, points, weight, flip, double=False)
    net.train()
    return abs(float(plain / ours) - 1)


def timed(work: Callable[[], object]) -> float:
    """Seconds of the processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def stepper(loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def step() -> None:
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def convolutions(net: ACSM, images: Tensor) -> tuple[Callable[[], None], float]:
    """What makes all convolutions of a step and nothing else, and how many floating-point operations they are."""
    seen: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def keep(layer: Any, given: tuple[Tensor], out: Tensor) -> None:
        x = given[0].detach().clone()
        x.requires_grad_(given[0].requires_grad)
        seen.append((layer, x, torch.randn_like(out)))

    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    net(images, mesh=False)
    for hook in hooks:
        hook.remove()
    operations = 0.0
    for layer, x, out in seen:
        once = 2 * out.numel() * layer.weight[0].numel()
        operations += once * (3 if x.requires_grad else 2)  # the photos want no gradient

    def run() -> None:
        for layer, x, out in seen:
            wanted = [layer.weight, x] if x.requires_grad else [layer.weight]
            torch.autograd.grad(
                nn.functional.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding), wanted, out
            )

    return run, operations


def measure(hypotheses: int) -> dict[str, Any]:
    """Median seconds of a step of each, taken in turns; how many times faster is the median over the turns."""
    torch.manual_seed(0)
    template = animal()
    images, points, weight = (
        torch.randn(BATCH, 3, PIXELS, PIXELS),
        torch.rand(BATCH, 16, 2) - 0.5,
        torch.rand(BATCH, 16),
    )
    flip = torch.randperm(16)
    theirs = ACSM(template, hypotheses, image_size=PIXELS, compat="animals3d")
    difference = agree(theirs, images[:2, ..., :PIXELS], points[:2], weight[:2], flip)
    ours = ACSM(template, hypotheses, image_size=PIXELS)
    ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    slow = torch.optim.Adam(theirs.parameters(), lr=1e-4, foreach=False)
    fast = torch.optim.AdamW(ours.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def our_step(low: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = ours(images, mesh=False)
            return keypoint_loss(out.keypoints, points, weight, out.prob)

    alone, operations = convolutions(ours, images)
    steps: dict[str, Callable[[], object]] = {
        "ours_float32": stepper(lambda: our_step(False), fast),
        "ours_bfloat16": stepper(lambda: our_step(True), fast),
        "convolutions": alone,
        "plain_float32": stepper(lambda: plain_loss(theirs, images, points, weight, flip, double=True), slow),
    }
    if not bfloat16("auto", "cpu"):
        del steps["ours_bfloat16"]
    turns = [{name: timed(step) for name, step in steps.items()} for _ in range(STEPS + 1)][1:]
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in steps}
    faster = {
        n: statistics.median(turn["plain_float32"] / turn[n] for turn in turns) for n in steps if n != "plain_float32"
    }
    gflops = operations / seconds["convolutions"] / 1e9
    return {
        "hypotheses": hypotheses, "median_cpu_s": seconds, "times_faster": faster, "loss_differs_by": difference,
        "convolutions_gflop_per_s": gflops,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    result = {
        "what": f"one step, batch {BATCH}, {PIXELS} px, ResNet-18, one thread, median of {STEPS} turns",
        "host": f"{os.cpu_count()} cores, {platform.machine()}", "torch": torch.__version__,
        "rows": [measure(h) for h in (1, 8)],
    }  # fmt: skip
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    Path(out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
