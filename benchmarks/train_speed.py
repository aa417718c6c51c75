"""What a training step costs on a GPU, and what it could cost at least. Needs no Ray.

    python -m benchmarks.train_speed --out benchmarks/results/train_speed.json            # one GPU
    torchrun --nproc-per-node 2 -m benchmarks.train_speed --workers --out benchmarks/results/train_speed_2gpu.json

Every time is of the loop that trains, `trainers.engine.fit` with data on the device and the settings of
`conf/train/full.yaml`: drawing a batch, its augmentation, the network, clipping, the update, averaged weights. A step's
time is that between two events on the device's stream, so that gaps in which the host is late count; a figure is the
median of at least 50 steps after the step was recorded. `compiled` is how a training of the whole schedule runs;
a shorter one saves itself the compiling.

The floor of a step is the larger of two times: its floating-point operations over the rate of a large bfloat16 matrix
product, and the bytes that must move (each parameter, gradient, moment and average; each convolution's input and output
once forward and twice backward, in bfloat16) over the speed of a large copy, both measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.utils.flop_counter import FlopCounterMode

from models.acsm import ACSM
from models.camera import project
from models.crops import SEEN, STORED, stored_pixels
from models.heatmap import PoseNet
from sandbox.animal import animal
from trainers.data import Instances
from trainers.engine import Plan, fit
from trainers.steps import ACSMTask, CropTask, PoseTask

SIZE = 256
SCHEDULE, SHORT = 70_000, 1_000  # steps of a whole training, and of one that is not compiled
WARM = 30
TURNS = 3  # of one GPU alone and all together
PARTS = ("short", "compiled", "scaling", "schedule")
# The settings of conf/train/full.yaml.
POSE_AUGMENT = {"rotate": 30, "zoom": 0.25, "shift": 0.0, "flip": 0.5, "colour": 0.2}
ACSM_AUGMENT = {"rotate": 0, "zoom": 0.05, "shift": 0.025, "flip": 0.5, "colour": 0.2}
KEPT = {"lr": 1e-4, "clip": 1.0, "ema": 0.999}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of the run on one GPU")
    parser.add_argument("--workers", action="store_true", help="under torchrun: one GPU against all")
    args = parser.parse_args()
    began = time.time()
    start = f"torchrun --nproc-per-node {os.environ['WORLD_SIZE']}" if args.workers else "python"
    found = {"command": f"{start} -m benchmarks.train_speed " + " ".join(sys.argv[1:]), **machine()}
    for part in across_gpus() if args.workers else on_one_gpu(args.parts):
        found |= {**part, "seconds": round(time.time() - began)}
        if int(os.environ.get("RANK", 0)) == 0:
            Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(json.dumps(part) + "\n")
            sys.stdout.flush()


def on_one_gpu(parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    data, limits = photos(2048), ceilings()
    yield {"ceilings": limits}
    rows = []
    for name, batch in (("pose", 32), ("acsm H=1", 12), ("acsm H=8", 12)):
        for part, steps in (("short", SHORT), ("compiled", SCHEDULE)):
            if part in parts:
                one = step_ms(make(name, data), batch, steps)
                rows.append({"what": name, "batch": batch, "compiled": steps == SCHEDULE, **one})
                rows[-1] |= floor(name, batch, limits)
                yield {"steps": rows}
    scaling = []
    for batch in (12, 32, 128, 256, 512) if "scaling" in parts else ():
        one = step_ms(make("acsm H=1", data), batch, SHORT)
        scaling.append({"batch": batch, **one, "images_per_s": round(1e3 * batch / one["ms"])})
        yield {"scaling (acsm H=1, not compiled)": scaling}
    if "schedule" not in parts:
        return
    began, losses = time.time(), []
    fit(
        make("acsm H=1", data), Plan(steps=SCHEDULE, batch=12, **KEPT), device="cuda",
        on_step=lambda done, loss: losses.append(loss),
    )  # fmt: skip
    minutes = round((time.time() - began) / 60, 2)
    yield {"schedule": {"steps": SCHEDULE, "batch": 12, "minutes": minutes, "losses": losses[::11]}}


def across_gpus() -> Iterator[dict[str, Any]]:
    """The time of a step on one GPU alone, and on all with as many images for each GPU, by turns.

    All GPUs measure the first at once, and their mean counts; the speedup is the median of the turns. A GPU that was
    idle is some 3 % faster than one that has worked for a while: one long turn after the other would compare the two.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(device)
    distributed.init_process_group("nccl", device_id=torch.device(device))
    data, rows = photos(1024), []
    step_ms(make("acsm H=1", data, device), 256, SHORT, device)
    for batch in (128, 12, 256):
        alone, both = [], []
        for _ in range(TURNS):
            each = [0.0] * world  # GPUs of a kind differ, and together they go at the pace of the slowest
            distributed.all_gather_object(each, step_ms(make("acsm H=1", data, device), batch, SHORT, device)["ms"])
            alone.append(each)
            net = make("acsm H=1", data, device)
            both.append(step_ms(net, batch * world, SHORT, device, rank, world)["ms"])
        rows.append({
            "images_per_gpu": batch, "compiled": False, "ms_one_gpu": alone, f"ms_{world}_gpus": both,
            "images_per_s": round(1e3 * batch * world / statistics.median(both)),
            "speedup": round(statistics.median(sum(a) / b for a, b in zip(alone, both, strict=True)), 3),
        })  # fmt: skip
        yield {"workers": rows}
    distributed.destroy_process_group()


def make(name: str, data: Instances, device: str = "cuda") -> CropTask:
    """The task of that name with fresh weights."""
    torch.manual_seed(0)
    if name == "pose":
        return PoseTask(PoseNet(16, 18), data, SIZE, POSE_AUGMENT, device, sigma=1.0)
    net = ACSM(animal(), hypotheses=int(name.split("=")[1]), image_size=SIZE)
    # Articulated from the start: the longer of the two kinds of step.
    return ACSMTask(net, data, SIZE, ACSM_AUGMENT, device, rigid=0.0, weight=3.0, robust=0.0)


def photos(n: int, seed: int = 0) -> Instances:
    """Random views of the rigid animal as coloured discs at its keypoints on noise: something that can be learnt."""
    rng = np.random.default_rng(seed)
    template, pixels = animal(), stored_pixels(SIZE)
    yaw = rng.uniform(-np.pi, np.pi, n)
    camera = np.zeros((n, 7))
    camera[:, 0], camera[:, 1:3] = rng.uniform(0.6, 0.8, n), rng.uniform(-0.05, 0.05, (n, 2))
    camera[:, 4], camera[:, 6] = np.cos(yaw / 2), np.sin(yaw / 2)  # upright, as the network starts from
    points = torch.from_numpy(template.vertices[template.keypoints].astype(np.float64))
    joints = project(torch.from_numpy(camera), points)[..., :2].numpy()
    places = (joints * (SEEN / STORED) + 1) / 2 * pixels
    colours = rng.integers(0, 256, (16, 3))
    crops = np.empty((n, pixels, pixels, 3), np.uint8)
    noise = rng.integers(96, 160, (pixels, pixels, 3), dtype=np.uint8)
    cells = np.arange(-9, 10)
    for crop, own in zip(crops, places, strict=True):
        crop[:] = noise
        for (x, y), colour in zip(own.astype(int), colours, strict=True):
            crop[np.clip(y + cells, 0, pixels - 1)[:, None], np.clip(x + cells, 0, pixels - 1)] = colour
    keypoints = np.concatenate([joints, np.ones((n, 16, 1))], -1).astype(np.float32)
    return Instances(
        [f"i{i}" for i in range(n)], crops, np.tile([0.0, 0.0, 256.0], (n, 1)), np.full(n, 256.0), keypoints,
        np.full((n, 4), np.nan, np.float32), [None] * n,
    )  # fmt: skip


class Enough(Exception):
    """Ends a training whose steps have been timed."""


def step_ms(
    task: CropTask, batch: int, steps: int, device: str = "cuda", rank: int = 0, world: int = 1
) -> dict[str, Any]:
    """Median and quartiles of the first steps of a training of so many, in milliseconds."""
    events: list[torch.cuda.Event] = []
    draw, wanted = task.draw, WARM + (120 if batch < 200 * world else 60)

    def timed(index: torch.Tensor, generator: torch.Generator) -> Any:
        if len(events) > wanted:
            raise Enough
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
        return draw(index, generator)

    task.draw = timed  # type: ignore[method-assign]
    with contextlib.suppress(Enough):
        fit(task, Plan(steps=steps, batch=batch, **KEPT), rank=rank, world=world, device=device)
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in zip(events[WARM:], events[WARM + 1 :], strict=False)]
    low, middle, high = statistics.quantiles(times, n=4)
    return {"ms": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)], "timed": len(times)}


def ceilings() -> dict[str, float]:
    """Measured rates: a large copy (bytes read and written) and a large bfloat16 matrix product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    product, copy = event_ms(lambda: a @ b), event_ms(lambda: target.copy_(source))
    return {"tflops": round(2 * 8192**3 / product / 1e9, 1), "tb_per_s": round(2 * source.nbytes / copy / 1e9, 3)}


def event_ms(work: Callable[[], Any], repeats: int = 20) -> float:
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def floor(name: str, batch: int, limits: dict[str, float]) -> dict[str, float]:
    """The least a step can take on this device; see the top of the file."""
    net = make(name, photos(1)).model.to("cuda")
    net.backbone._by_blocks = lambda x: net.backbone.conv1(x)  # type: ignore[union-attr, operator]
    moved = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal moved
        moved += 3 * 2 * (inputs[0].numel() + output.numel())

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    images = torch.randn(batch, 3, SIZE, SIZE, device="cuda")
    with FlopCounterMode(display=False) as counter:
        out = net(images, mesh=False).keypoints if isinstance(net, ACSM) else net(images)
        out.sum().backward()
    for hook in hooks:
        hook.remove()
    parameters = sum(p.numel() for p in net.parameters())
    # Adam reads and writes weight and two moments; the gradient is written and read; the averaged weight both.
    moved += 4 * parameters * (6 + 2 + 2)
    flops = counter.get_total_flops()
    arithmetic, memory = flops / limits["tflops"] / 1e9, moved / limits["tb_per_s"] / 1e9
    return {
        "gflop": round(flops / 1e9, 1), "mb": round(moved / 1e6, 1), "floor_flop_ms": round(arithmetic, 3),
        "floor_bytes_ms": round(memory, 3), "floor_ms": round(max(arithmetic, memory), 3),
    }  # fmt: skip


def machine() -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "host": f"{os.cpu_count()} cores, {platform.machine()}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
