"""One training loop for all networks: counter-based randomness, atomic checkpoints, exact resume. Needs no Ray.

Batch t and every random draw in it follow from (seed, t) alone, so a run continued from a checkpoint makes the same
steps as one that was never interrupted.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tables import Files, InputError
from trainers.stepper import Stepper, Task


@dataclass(frozen=True)
class Plan:
    """How long and how: the part of a training that is not the network and not the data.

    Attributes:
        steps: optimizer steps.
        batch: items a step over all workers.
        lr: peak learning rate of Adam.
        schedule: `cosine` (5 % linear warm-up, then to zero) or `constant` (the reference).
        weight_decay: decoupled, 0 in the reference.
        clip: largest norm of the gradient over all parameters; 0 does not clip (the reference).
        ema: decay of the averaged weights that are evaluated and kept; 0 keeps the last weights (the reference).
        precision: of convolutions and linear layers: `float32`, `bfloat16`, or `auto`, which takes bfloat16 where the
            device has instructions for it; or `float64`, of the whole training, to compare trainings to the last digit.
        freeze_norm: batch normalisation keeps the statistics that it starts with, so that no image's loss depends on
            the others of its batch: for small batches, where a network goes on from trained weights.
        checkpoint_every: steps between checkpoints.
        seed: of initialisation, sampling and augmentation.
    """

    steps: int
    batch: int
    lr: float = 1e-4
    schedule: str = "constant"
    weight_decay: float = 0.0
    clip: float = 0.0
    ema: float = 0.0
    precision: str = "auto"
    freeze_norm: bool = False
    checkpoint_every: int = 200
    seed: int = 0


def grouped_batch(groups: Sequence[tuple[int, float]], batch: int, step: int, seed: int) -> torch.Tensor:
    """Indices [batch] of step `step`: each group gives its share, drawn from a chain of permutations of its own.

    What a share leaves of a whole item is carried to the next steps: after any number of them each group has given its
    share of all that was drawn, to the nearest item.
    """
    out, first = [], 0
    before, after = _given(groups, batch * step), _given(groups, batch * (step + 1))
    for number, (items, _) in enumerate(groups):
        out.append(first + chain(items, before[number], after[number], seed * 31 + number))
        first += items
    return torch.cat(out)


def _given(groups: Sequence[tuple[int, float]], drawn: int) -> list[int]:
    """How many of all items `drawn` so far each group gave; a group without items gives its share to the others."""
    given, shares = [], sum(share for items, share in groups if items)
    for items, share in groups:
        take = round(drawn * share / shares) if items and share else 0
        given.append(take)
        drawn, shares = drawn - take, shares - share * bool(items)
    return given


def chain(items: int, start: int, end: int, seed: int) -> torch.Tensor:
    """Indices [end - start] from place `start` on of an endless chain of seeded permutations of the items."""
    out = [torch.zeros(0, dtype=torch.int64)]
    while start < end:
        epoch, at = divmod(start, items)
        order = torch.randperm(items, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        out.append(order[at : at + end - start])
        start += len(out[-1])
    return torch.cat(out)


def fit(
    task: Task,
    plan: Plan,
    checkpoint: tuple[Files, str] | None = None,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train and return the network to keep, in evaluation mode.

    Args:
        task: network and loss; moved to `device`.
        checkpoint: where to keep model, optimizer and step; training continues from it if it exists.
        rank, world: this worker and the number of workers; with more than one a process group must be set up. A step is
            the same on any number of workers, but that each normalises (BatchNorm) by its own part of the batch.
        on_step: called with (steps done, loss) about a hundred times; also the place to raise to stop early.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: there are more workers than items in a batch.
    """
    if plan.batch < world:
        raise InputError("resources.train.workers", world, f"a batch of {plan.batch} is not enough for all")
    exact = plan.precision == "float64"
    model = task.model.to(device, torch.float64 if exact else None)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, weight_decay=plan.weight_decay, fused=True)
    if world > 1:
        for t in model.state_dict().values():
            torch.distributed.broadcast(t, 0)
    average = _average_of(model) if plan.ema else None
    done = _restore(checkpoint, model, average, optimizer, device, world) if checkpoint else 0
    model.train()
    if plan.freeze_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    low = bfloat16(plan.precision, device)
    take_step = Stepper(task, optimizer, device, plan.clip, low, share_of(plan.batch, rank, world), plan.steps)
    now, kept = _floats(model), _floats(average) if average is not None else []
    say_every = max(1, plan.steps // 100)
    for step in range(done, plan.steps):
        progress = step / plan.steps
        index = grouped_batch(task.groups(progress), plan.batch, step, plan.seed)
        generator = torch.Generator().manual_seed((plan.seed * 1_000_003 + step) * 64)
        # Every worker draws the whole batch and keeps its rows, so that a sample's augmentation is the same on any.
        drawn = {name: values[rank::world] for name, values in task.draw(index, generator).items()}
        if exact:
            drawn = {name: values.double() if values.is_floating_point() else values for name, values in drawn.items()}
        loss = take_step(drawn, task.phase(progress), plan.lr * _schedule(plan, step))
        if average is not None:
            torch._foreach_lerp_(kept, now, 1 - min(plan.ema, (step + 1) / (step + 10)))
        save = checkpoint is not None and (step + 1) % plan.checkpoint_every == 0 and step + 1 < plan.steps
        if save or (step + 1) % say_every == 0 or step + 1 == plan.steps:
            value = float(loss)
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step + 1}")
            if on_step:
                on_step(step + 1, value)
        if checkpoint and save and rank == 0:
            _save(checkpoint, model, average, optimizer, step + 1)
    kept_model = average if average is not None else model
    return (kept_model.float() if exact else kept_model).eval()


def share_of(batch: int, rank: int, world: int) -> float:
    """Share of each batch that a worker computes: it has every `world`-th row."""
    return len(range(rank, batch, world)) / batch


def bfloat16(precision: str, device: str) -> bool:
    """Whether to compute in bfloat16."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def _schedule(plan: Plan, step: int) -> float:
    if plan.schedule == "constant":
        return 1.0
    warm = max(1, plan.steps // 20)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / plan.steps)))


def _average_of(model: nn.Module) -> nn.Module:
    """A copy to hold averaged weights; what is counted instead of averaged it shares with the network."""
    average = copy.deepcopy(model).requires_grad_(False)
    for ours, theirs in zip(average.modules(), model.modules(), strict=True):
        ours._buffers.update({n: t for n, t in theirs._buffers.items() if t is not None and not t.is_floating_point()})
    return average


def _floats(model: nn.Module) -> list[torch.Tensor]:
    return [t for t in model.state_dict().values() if t.is_floating_point()]


def _save(at: tuple[Files, str], model: nn.Module, average: nn.Module | None, optimizer: Any, step: int) -> None:
    sink = io.BytesIO()
    kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    if average is not None:
        kept["average"] = average.state_dict()
    torch.save(kept, sink)
    at[0].write(at[1], sink.getvalue())


def _restore(
    at: tuple[Files, str], model: nn.Module, average: nn.Module | None, optimizer: Any, device: str, world: int
) -> int:
    read: list[bytes | None] = [None]
    if world == 1 or torch.distributed.get_rank() == 0:
        read[0] = at[0].read(at[1])
    if world > 1:  # one reads for all: none goes on from another step
        torch.distributed.broadcast_object_list(read, 0, device=torch.device(device))
    data = read[0]
    if data is None:
        return 0
    kept = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    if average is not None:
        average.load_state_dict(kept["average"])
    return int(kept["step"])
