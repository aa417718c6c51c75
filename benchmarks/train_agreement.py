"""Whether the fast training step is the plain one: 200 steps of both, loss by loss. Needs no Ray.

    python -m benchmarks.train_agreement --out benchmarks/results/train_agreement.json

On a GPU sums are taken in an order that changes from run to run, and training grows such differences; the libraries
are asked for kernels that keep their order.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.train_speed import KEPT, machine, make, photos
from trainers.data import Instances
from trainers.engine import Plan, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    data = photos(512)
    found = {"command": "python -m benchmarks.train_agreement " + " ".join(sys.argv[1:]), **machine(), "rows": []}
    for name, batch in (("acsm H=1", 12), ("pose", 32), ("acsm H=8", 12)):
        found["rows"].append(agreement(name, batch, data))
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(json.dumps(found["rows"][-1]) + "\n")
        sys.stdout.flush()


def agreement(name: str, batch: int, data: Instances, steps: int = 200) -> dict[str, Any]:
    """Losses of the plain path (float32 without tf32, kernel by kernel) against the same again and the fast ones.

    Each is the largest distance from 1 of the ratio of the losses' means over a tenth of the steps: `plain_again` is
    what the device alone does, `replayed` is float32 from a graph, `fast` is bfloat16 from a graph.
    """
    curves: dict[str, np.ndarray] = {}
    for path in ("plain", "plain_again", "replayed", "fast"):
        task, losses = make(name, data), []
        task.replay = path in ("replayed", "fast")
        plan = Plan(steps=steps, batch=batch, precision="bfloat16" if path == "fast" else "float32", **KEPT)
        fit(task, plan, device="cuda", on_step=lambda done, loss, to=losses: to.append(loss))  # type: ignore[misc]
        curves[path] = np.array(losses)
    means = {path: np.array(np.split(c, 10)).mean(1) for path, c in curves.items()}
    found = {p: float(np.abs(m / means["plain"] - 1).max()) for p, m in means.items() if p != "plain"}
    equal = int((curves["replayed"] == curves["plain"]).sum())
    return {
        "what": name, "batch": batch, "steps": steps, **found, "replayed_losses_equal": f"{equal} of {len(losses)}",
        "plain_means": means["plain"].round(5).tolist(), "fast_means": means["fast"].round(5).tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
