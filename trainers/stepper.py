"""One optimizer step: forward, backward, the workers' mean, clipping, update. On CUDA a replayed graph.

A step of a small batch is a thousand short kernels, and starting them one by one takes longer than running them. On
CUDA the first steps of a phase run one by one, then the step is recorded and from there on replayed as a whole: the
host only copies in what was drawn for the batch and never waits.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import distributed, nn

Drawn = Mapping[str, torch.Tensor]
WARM = 3  # steps before recording: libraries choose their kernels, the optimizer makes its state
COMPILED_FROM = 40_000  # steps that repay the half minute or so of compiling: each is a millisecond shorter


class Task(Protocol):
    """What is trained: a network, the items it sees, what is drawn for a batch, and the loss of what was drawn.

    Attributes:
        replay: whether `loss` runs the same kernels on every batch of a phase and never looks at a value on the host,
            so that a CUDA graph can hold it.
    """

    model: nn.Module
    replay: bool

    def groups(self, progress: float) -> Sequence[tuple[int, float]]:
        """(Number of items, share of a batch) of consecutive groups of items, at a share of the steps done.

        The shares sum to 1.
        """
        ...

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> Drawn:
        """All that a batch of items [B] and chance decide: tensors [B,...] on the host, alike in shape every step."""
        ...

    def phase(self, progress: float) -> Hashable:
        """All else that decides how the loss is computed, at a share of the steps done."""
        ...

    def loss(self, drawn: Drawn, phase: Hashable) -> torch.Tensor:
        """The mean loss of what was drawn, now on the network's device."""
        ...


class Inbox:
    """Batches on their way to a CUDA device: each is one copy from pinned memory, a few ahead of the device."""

    AHEAD = 8

    def __init__(self, example: Drawn, device: torch.device) -> None:
        self.places, size = [], 0
        for name, values in example.items():
            self.places.append((name, size, values.nbytes, values.dtype, values.shape))
            size += -(-values.nbytes // 16) * 16
        self.slots = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(self.AHEAD)]
        self.free = [torch.cuda.Event() for _ in self.slots]
        self.arrived = torch.empty(size, dtype=torch.uint8, device=device)
        self.tensors = self._parts(self.arrived)
        self.sent = 0

    def _parts(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        return {n: memory[at : at + size].view(kind).view(shape) for n, at, size, kind, shape in self.places}

    def send(self, drawn: Drawn) -> None:
        """Put a batch into `tensors`, after all that the device was told before; waits if it is too far ahead."""
        slot, self.sent = self.sent % self.AHEAD, self.sent + 1
        self.free[slot].synchronize()
        for name, place in self._parts(self.slots[slot]).items():
            place.copy_(drawn[name])
        self.arrived.copy_(self.slots[slot], non_blocking=True)
        self.free[slot].record()


class Stepper:
    """Makes the steps of a task; its network must be on the device and its optimizer's state restored.

    Args:
        clip: largest norm of the gradient over all parameters; 0 does not clip.
        low: compute convolutions and linear layers in bfloat16.
        share: of each batch that this worker computes; below 1 a process group must be set up, and the shares of all
            workers sum to 1.
        steps: of the whole training, so that one that is continued is computed as it was begun.
    """

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        device: str,
        clip: float = 0.0,
        low: bool = False,
        share: float = 1.0,
        steps: int = 0,
    ) -> None:
        self.task, self.optimizer, self.clip, self.low, self.share = task, optimizer, clip, low, share
        self.device = torch.device(device)
        self.parameters = list(task.model.parameters())
        kept = task.model.state_dict(keep_vars=True).values()
        # Statistics of batch normalisation: the workers' mean is kept, so that all hold the same network.
        self.statistics = [t for t in kept if t.is_floating_point() and not isinstance(t, nn.Parameter)]
        self.norms = [m for m in task.model.modules() if isinstance(m, nn.BatchNorm2d) and m.momentum]
        self.replays = task.replay and self.device.type == "cuda"
        self.compute_loss = task.loss
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inbox: Inbox | None = None
        self.phase: Hashable = self  # equal to no task's phase
        self.warm = 0
        if self.device.type == "cuda":
            if self.device.index is not None:
                torch.cuda.set_device(self.device)  # graphs are recorded on the current device
            torch.backends.cudnn.benchmark = True
            for group in optimizer.param_groups:
                group["lr"] = torch.zeros((), device=self.device)  # a graph reads it where it lies
        if self.replays and steps >= COMPILED_FROM:
            warnings.filterwarnings("ignore", module=r"torch\._(dynamo|inductor)")  # advice to its developers
            self.compute_loss = torch.compile(task.loss, dynamic=False)  # fewer kernels that touch memory less

    def __call__(self, drawn: Drawn, phase: Hashable, lr: float) -> torch.Tensor:
        """Make one step and return its loss, the mean over all workers: a value on the device, good until the next."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        if phase != self.phase:
            self.phase, self.graph, self.warm = phase, None, 0
        if self.device.type != "cuda":
            return self._step(drawn)
        if self.inbox is None:
            self.inbox = Inbox(drawn, self.device)
        self.inbox.send(drawn)
        if not self.replays or self.warm < WARM:
            self.warm += 1
            return self._step(self.inbox.tensors)
        if self.graph is None:
            self._record(self.inbox.tensors)
        self.graph.replay()  # type: ignore[union-attr]
        return self.loss

    def _record(self, drawn: Drawn) -> None:
        """Capture the step; nothing runs yet."""
        self.optimizer.zero_grad(set_to_none=True)  # gradients are to lie in the graph's own memory
        self.graph = torch.cuda.CUDAGraph()
        for group in self.optimizer.param_groups:
            group["capturable"] = True
        # Other threads (NCCL's watchdog) may call CUDA meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.loss = self._step(drawn)
        for group in self.optimizer.param_groups:
            group["capturable"] = False

    def _step(self, drawn: Drawn) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            loss = self._counted(drawn) if self.replays else self.compute_loss(drawn, self.phase)
        self.optimizer.zero_grad(set_to_none=True)
        value = loss.detach()
        if self.share < 1:
            value = value.reshape(1)
            with AverageOverWorkers(self.share) as average:
                average.add(value, *self.statistics)  # as this step's forward left them
                average.gradients_of(self.parameters, loss)
        else:
            loss.backward()
        if self.clip and self.device.type == "cuda" and value.dtype == torch.float32:
            # The optimizer divides gradients as it reads them (by a float32): they are not written once more.
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
            self.optimizer.grad_scale = ((norm + 1e-6) / self.clip).clamp_min(1)  # type: ignore[attr-defined]
        elif self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return value

    def _counted(self, drawn: Drawn) -> torch.Tensor:
        """The loss; batches are counted for all norms at once, where each would start a kernel of its own."""
        norms = [m for m in self.norms if m.training]
        counts: list[torch.Tensor] = [m.num_batches_tracked for m in norms]  # type: ignore[misc]
        for norm in norms:
            norm.num_batches_tracked = None
        try:
            loss = self.compute_loss(drawn, self.phase)
        finally:
            for norm, count in zip(norms, counts, strict=True):
                norm.num_batches_tracked = count
        if counts:
            torch._foreach_add_(counts, 1)
        return loss


class AverageOverWorkers:
    """Replaces dense tensors by their mean over all workers, which add alike tensors in the same order.

    A long tensor leaves at once and as it is, so that gradients travel while others are still computed; all short ones
    leave as one. All have arrived when the context ends.

    Args:
        share: this worker's weight in the mean; those of all sum to 1.
    """

    LONG = 1 << 20  # bytes: joining such tensors takes longer than a message for each

    def __init__(self, share: float) -> None:
        self.share = share
        self.short: list[torch.Tensor] = []
        self.short_gradients: list[torch.Tensor] = []
        self.sent: list[Any] = []

    def __enter__(self) -> AverageOverWorkers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        joined = [*self.short, *self.short_gradients]
        if joined:
            flat = torch.cat(joined)
            flat[: sum(t.numel() for t in self.short)] *= self.share
            self._send(flat)
        for work in self.sent:
            work.wait()
        if joined:
            torch._foreach_copy_(joined, list(flat.split([t.numel() for t in joined])))

    def add(self, *tensors: torch.Tensor) -> None:
        for t in tensors:
            if t.nbytes < self.LONG:
                self.short.append(_in_memory(t))
            else:
                self._send(_in_memory(t).mul_(self.share))

    def gradients_of(self, parameters: Sequence[nn.Parameter], loss: torch.Tensor) -> None:
        """Go backward from this worker's share of the loss and let each gradient leave when it is there."""
        hooks = [p.register_post_accumulate_grad_hook(lambda p: self._leave(p.grad)) for p in parameters]
        try:
            (loss * self.share).backward()
        finally:
            for hook in hooks:
                hook.remove()

    def _leave(self, gradient: torch.Tensor) -> None:
        if gradient.nbytes < self.LONG:
            self.short_gradients.append(_in_memory(gradient))
        else:
            self._send(_in_memory(gradient))

    def _send(self, values: torch.Tensor) -> None:
        self.sent.append(distributed.all_reduce(values, async_op=True))


def _in_memory(t: torch.Tensor) -> torch.Tensor:
    """A dense tensor's values [N] as they lie, whatever the strides: channels_last needs no transposition."""
    return t.as_strided((t.numel(),), (1,))
