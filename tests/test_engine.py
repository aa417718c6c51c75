"""The loop engine: sampling, exact resume, averaging, and two processes that train one network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.heatmap import PoseNet
from tables import Files
from trainers.data import Instances
from trainers.engine import Plan, bfloat16, chain, fit, grouped_batch
from trainers.stepper import Drawn
from trainers.steps import PoseTask

ITEMS = 10


class Toy:
    """A small net with batch norm and an augmentation that draws from the step's generator."""

    replay = True

    def __init__(self, seed: int = 0, noise: float = 0.1, norm: type[nn.Module] = nn.BatchNorm1d) -> None:
        torch.manual_seed(seed)
        self.model: nn.Module = nn.Sequential(nn.Linear(4, 8), norm(8), nn.ReLU(), nn.Linear(8, 2))
        data = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(ITEMS, 4, generator=data), torch.randn(ITEMS, 2, generator=data)
        self.noise = noise
        self.seen: list[list[int]] = []

    def groups(self, progress: float) -> list[tuple[int, float]]:
        return [(ITEMS, 1.0)]

    def phase(self, progress: float) -> Hashable:
        return None

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"index": index, "noise": self.noise * torch.randn(len(index), 4, generator=generator)}

    def loss(self, drawn: Drawn, phase: Hashable) -> torch.Tensor:
        index = drawn["index"]
        self.seen.append(index.tolist())
        x = self.x[index] + drawn["noise"].to(self.x.dtype)
        return (self.model(x) - self.y[index]).square().mean()


PLAN = Plan(steps=10, batch=4, lr=0.05, schedule="cosine", ema=0.9, precision="float32", checkpoint_every=3, seed=5)


def plan(**changes: object) -> Plan:
    return Plan(**{**PLAN.__dict__, **changes})  # type: ignore[arg-type]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def differ(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = weights(a), weights(b)
    return any(not torch.equal(ours[k], theirs[k]) for k in ours)


# -- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("items", "batch"), [(10, 4), (10, 10), (7, 3), (5, 12), (1, 3)])
def test_batches_cover_every_item_once_an_epoch(items: int, batch: int) -> None:
    steps = [chain(items, step * batch, step * batch + batch, seed=3) for step in range(items)]
    assert all(len(step) == batch for step in steps)
    drawn = torch.cat(steps).tolist()
    epochs = [drawn[i : i + items] for i in range(0, len(drawn), items)]
    assert all(sorted(e) == list(range(items)) for e in epochs)
    if items > 5:
        assert len({tuple(e) for e in epochs}) == len(epochs)


def test_batches_follow_from_seed_and_step_alone() -> None:
    groups = [(100, 0.3), (50, 0.7)]
    late = grouped_batch(groups, 8, 57, seed=1)
    torch.manual_seed(99)
    assert torch.equal(late, grouped_batch(groups, 8, 57, seed=1))
    assert not torch.equal(late, grouped_batch(groups, 8, 57, seed=2))
    assert not torch.equal(late, grouped_batch(groups, 8, 58, seed=1))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_groups_keep_their_share_of_every_batch(share: float) -> None:
    groups = [(6, share), (30, 1 - share)]
    steps = 30
    batches = [grouped_batch(groups, 20, step, seed=4) for step in range(steps)]
    for b in batches:
        assert len(b) == 20
        assert int((b < 6).sum()) == round(20 * share)
        assert int(b.max()) < 36
    first = torch.cat([b[b < 6] for b in batches])
    second = torch.cat([b[b >= 6] for b in batches])
    for drawn, low, high in ((first, 0, 6), (second, 6, 36)):
        counts = np.bincount(drawn.numpy(), minlength=36)[low:high]
        assert counts.max() - counts.min() <= 1


def test_one_group_is_the_plain_chain_and_an_odd_share_still_fills_the_batch() -> None:
    whole = torch.cat([grouped_batch([(7, 1.0)], 7, step, 0) for step in range(3)]).tolist()
    assert all(sorted(whole[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    thirds = [(5, 1 / 3), (5, 1 / 3), (5, 1 / 3)]
    assert all(len(grouped_batch(thirds, 8, step, 0)) == 8 for step in range(5))


@pytest.mark.parametrize(
    "shares", [(150 / 5150, 5000 / 5150), (0.1, 0.9), (0.9, 0.1), (0.5, 0.02, 0.48), (1 / 3, 1 / 3, 1 / 3), (0.0, 1.0)]
)
@pytest.mark.parametrize("batch", [1, 4, 12])
def test_a_small_share_is_drawn_now_and_then_and_exact_in_the_long_run(shares: tuple[float, ...], batch: int) -> None:
    groups = [(7, share) for share in shares]
    drawn = torch.zeros(len(shares), dtype=torch.int64)
    for step in range(300):
        index = grouped_batch(groups, batch, step, seed=2)
        assert len(index) == batch
        drawn += torch.bincount(index // 7, minlength=len(shares))
        assert all(abs(int(n) - (step + 1) * batch * s) <= 1 for n, s in zip(drawn, shares, strict=True))


def test_a_group_without_items_leaves_its_share_to_the_others() -> None:
    assert sorted(grouped_batch([(0, 0.5), (6, 0.5)], 6, 0, 0).tolist()) == list(range(6))


# -- resume ---------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """What a test raises to interrupt a training."""


def stop_at(step: int) -> Callable[[int, float], None]:
    def on_step(done: int, loss: float) -> None:
        if done == step:
            raise Stop

    return on_step


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_an_interrupted_training_goes_on_exactly(tmp_path: Path, ema: float, schedule: str) -> None:
    how = plan(ema=ema, schedule=schedule)
    straight = fit(Toy(), how)
    at = (Files(str(tmp_path)), "checkpoint.pt")
    broken = Toy()
    with pytest.raises(Stop):
        fit(broken, how, at, on_step=stop_at(7))
    assert (tmp_path / "checkpoint.pt").exists()
    again = Toy(seed=77)  # whatever it starts from is replaced by the checkpoint
    torch.manual_seed(123)
    continued = fit(again, how, at)
    assert len(again.seen) == 4  # from step 6, the last checkpoint, to 10
    assert again.seen[0] == broken.seen[6]
    assert_equal(straight, continued)


def test_interrupted_before_the_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    at = (Files(str(tmp_path)), "checkpoint.pt")
    with pytest.raises(Stop):
        fit(Toy(), PLAN, at, on_step=stop_at(2))
    assert not (tmp_path / "checkpoint.pt").exists()
    assert_equal(fit(Toy(), PLAN), fit(Toy(), PLAN, at))


def crops(n: int = 6) -> Instances:
    rng = np.random.default_rng(3)
    keypoints = rng.uniform(-0.9, 0.9, (n, 16, 3)).astype(np.float32)
    keypoints[..., 2] = rng.uniform(size=(n, 16)) > 0.2
    return Instances(
        ids=[f"i{i}" for i in range(n)],
        crops=rng.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8),
        windows=np.tile([0.0, 0, 70], (n, 1)),
        size=np.full(n, 64.0),
        keypoints=keypoints,
        cameras=np.full((n, 4), np.nan, np.float32),
        masks=[None] * n,
    )


AUGMENT = {"rotate": 30, "zoom": 0.2, "shift": 0.1, "flip": 0.5, "colour": 0.3}


def pose_task(seed: int = 0) -> PoseTask:
    torch.manual_seed(seed)
    return PoseTask(PoseNet(16, width=8, channels=16), crops(), 64, AUGMENT, "cpu", sigma=1.0)


def test_a_real_network_resumes_exactly_in_the_devices_own_precision(tmp_path: Path) -> None:
    how = plan(steps=4, checkpoint_every=2, precision="auto", lr=1e-3)
    at = (Files(str(tmp_path)), "models/pose/checkpoint.pt")
    with pytest.raises(Stop):
        fit(pose_task(), how, at, on_step=stop_at(3))
    assert_equal(fit(pose_task(), how), fit(pose_task(8), how, at))


def test_crops_that_stay_on_the_host_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    how = plan(steps=2)
    there = fit(pose_task(), how)
    monkeypatch.setattr("trainers.steps.fits", lambda nbytes, device: False)
    assert_equal(there, fit(pose_task(), how))


def test_labels_are_drawn_in_full_precision() -> None:
    task = pose_task()
    with torch.autocast("cpu", torch.bfloat16):
        drawn = task.draw(torch.arange(4), torch.Generator().manual_seed(1))
    assert {n: t.dtype for n, t in drawn.items()} == {
        "index": torch.int64, "matrix": torch.float32, "gain": torch.float32, "offset": torch.float32,
        "points": torch.float32, "weight": torch.float32, "count": torch.float64,
    }  # fmt: skip
    assert all(len(t) == 4 for t in drawn.values())


def test_seeds_decide_everything() -> None:
    first, second = fit(Toy(), PLAN), fit(Toy(), PLAN)
    assert_equal(first, second)
    assert differ(first, fit(Toy(), plan(seed=6)))  # other batches and draws
    assert differ(first, fit(Toy(seed=1), PLAN))  # another start
    quiet = Toy(noise=0.0)
    assert differ(first, fit(quiet, PLAN))  # the draws do reach the loss
    chain = [i for batch in quiet.seen for i in batch]
    assert all(sorted(chain[i : i + ITEMS]) == list(range(ITEMS)) for i in range(0, 40, ITEMS))


# -- the loop -------------------------------------------------------------------------------------------------------


def test_the_result_is_in_evaluation_mode_and_reports_its_progress() -> None:
    told: list[tuple[int, float]] = []
    out = fit(Toy(), plan(steps=250), on_step=lambda done, loss: told.append((done, loss)))
    assert not out.training
    assert [t[0] for t in told] == list(range(2, 251, 2))
    assert np.mean([t[1] for t in told[-10:]]) < np.mean([t[1] for t in told[:10]])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(value: float) -> None:
    task = Toy()
    plain = task.loss
    calls: list[int] = []

    def loss(*args: object) -> torch.Tensor:
        calls.append(1)
        return plain(*args) * (value if len(calls) >= 4 else 1.0)  # type: ignore[arg-type]

    task.loss = loss  # type: ignore[assignment, method-assign]
    with pytest.raises(FloatingPointError, match=r"^the loss is (nan|inf) at step 4$"):
        fit(task, PLAN)


def adam_by_hand(lr: float, steps: int) -> float:
    """AdamW without decay on the loss w, from w = 0: every step's gradient is 1."""
    w = m = v = 0.0
    for step in range(steps):
        m, v = 0.9 * m + 0.1, 0.999 * v + 0.001
        hat_m, hat_v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        w -= lr * hat_m / (math.sqrt(hat_v) + 1e-8)
    return w


class Line:
    """One weight whose loss is itself, so that weights tell the learning rates."""

    replay = False

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.steps: list[float] = []

    def groups(self, progress: float) -> list[tuple[int, float]]:
        return [(1, 1.0)]

    def phase(self, progress: float) -> Hashable:
        return None

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def loss(self, drawn: Drawn, phase: Hashable) -> torch.Tensor:
        self.steps.append(float(self.model.weight.detach()))
        return self.model(torch.ones(1, 1)).float().sum()


def test_constant_schedule_is_plain_adam() -> None:
    out = fit(Line(), Plan(steps=30, batch=1, lr=0.01, precision="float32"))
    assert out.weight.item() == pytest.approx(adam_by_hand(0.01, 30), rel=1e-4)


def test_cosine_schedule_warms_up_and_ends_at_nothing() -> None:
    task = Line()
    fit(task, Plan(steps=200, batch=1, lr=0.01, schedule="cosine", precision="float32"))
    # With a constant gradient a step of Adam is the learning rate itself.
    rates = -np.diff(task.steps)
    peak = int(rates.argmax())
    assert 2 <= peak <= 20
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[0] < 0.005
    assert 0.0095 < rates[peak] <= 0.0101
    assert rates[-1] < 1e-4
    middle = 0.5 * (1 + math.cos(math.pi * 100 / 200)) * 0.01
    assert rates[100] == pytest.approx(middle, rel=1e-2)


def test_averaged_weights_are_a_running_mean_of_the_steps() -> None:
    task = Line()
    steps, ema = 12, 0.8
    kept = fit(task, Plan(steps=steps, batch=1, lr=0.01, ema=ema, precision="float32"))
    last = float(task.model.weight.detach())
    path = [*task.steps[1:], last]  # the weight after each step
    average = 0.0
    for step, w in enumerate(path):
        # Early steps average over as many as there were, so that the start is forgotten.
        decay = min(ema, (step + 1) / (step + 10))
        average = decay * average + (1 - decay) * w
    assert kept.weight.item() == pytest.approx(average, rel=1e-4)
    assert kept.weight.item() != pytest.approx(last, rel=1e-2)
    assert fit(Line(), Plan(steps=3, batch=1, precision="float32")).weight.requires_grad


def test_averaging_carries_batch_norm_along() -> None:
    task = Toy()
    before = copy.deepcopy(task.model)
    kept = fit(task, PLAN)
    assert int(kept[1].num_batches_tracked) == 10  # type: ignore[index]
    assert not torch.equal(kept[1].running_mean, before[1].running_mean)  # type: ignore[index]
    assert not torch.equal(kept[1].running_mean, task.model[1].running_mean)  # type: ignore[index]


def test_precision_by_name() -> None:
    assert bfloat16("bfloat16", "cpu")
    assert not bfloat16("float32", "cpu")
    assert bfloat16("auto", "cpu") in (True, False)


# -- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_step_is_the_step() -> None:
    curves = []
    for replay in (False, True):
        torch.manual_seed(0)
        task = PoseTask(PoseNet(16, width=8, channels=16), crops(), 64, AUGMENT, "cuda", sigma=1.0)
        task.replay, losses = replay, []
        how = plan(steps=40, precision="float32", lr=1e-4)
        fit(task, how, device="cuda", on_step=lambda done, loss, to=losses: to.append(loss))  # type: ignore[misc]
        curves.append(losses)
    np.testing.assert_allclose(*curves, rtol=1e-3)
