"""What drawing a mesh costs, and how true its gradients are, by resolution.

    python -m benchmarks.raster --out benchmarks/results/raster.json
    python -m benchmarks.raster --device cuda --out ...

Times are medians of one forward and one backward pass, in milliseconds: on the CPU those that one thread worked,
whatever else the machine does. `silhouette` has a blur of one pixel, `depth` is `rasterize` with a loss on its depth,
of ellipsoids of 1,280 faces and of the sandbox's animal, each mesh turned its own way. Where pytorch3d is installed,
its hard z-buffer (one face per pixel) and, of the ellipsoids, its soft silhouette (SoftRas, 50 faces per pixel, the
settings of its tutorial) draw the same meshes once, for a pass takes up to a minute: up to 8 of them, for on the CPU it
draws one after the other. The ratios are given, the pixels where it sees another face, and how far its depths lie from
ours.

Errors are relative, in float64. `against_differences`: the gradient along random directions against central
differences of what is drawn; pixels whose face changes within the step are left out for depth. `against_the_limit`:
the gradient of the integral of (silhouette times a smooth function of the place) against that at 1,024 px, which
tells what the resolution itself costs. Depth has no such limit: its slope grows without bound on faces seen edge-on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from torch import Tensor

from models import rasterize, silhouette
from sandbox.animal import animal

SIZES = (64, 128, 256)
LIMIT = 1024
STEP = 1e-6  # of differences, in image units: half of the image is 1
COMPARED = 8  # meshes that pytorch3d draws
AWAY = 5.0  # from its camera


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 96], help="meshes drawn at once")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cuda = args.device.startswith("cuda")
    out = {
        "command": "python -m benchmarks.raster " + " ".join(sys.argv[1:]),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": 1,
        "torch": torch.__version__,
        "pytorch3d": importlib.import_module("pytorch3d").__version__ if find_spec("pytorch3d") else "not installed",
        "milliseconds": [
            row for batch in args.batch for name in MESHES for row in times(name, batch, args.device, args.repeats)
        ],
        "gradient_errors": errors(),
    }
    text = json.dumps(out, indent=1)
    if args.out:
        Path(args.out).write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


def ellipsoid() -> tuple[np.ndarray, np.ndarray]:
    mesh = trimesh.creation.icosphere(subdivisions=3)
    return np.asarray(mesh.vertices) * (0.9, 0.5, 0.7), np.asarray(mesh.faces)


def quadruped() -> tuple[np.ndarray, np.ndarray]:
    template = animal()
    return template.vertices / np.linalg.norm(template.vertices, axis=1).max(), template.faces


MESHES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {"ellipsoid": ellipsoid, "animal": quadruped}


def turned(name: str, batch: int) -> tuple[Tensor, Tensor]:
    """Poses [B, V, 3] float64 of a mesh, each turned its own way, and its faces [F, 3]."""
    vertices, faces = MESHES[name]()
    turns = np.linalg.qr(np.random.default_rng(0).normal(size=(batch, 3, 3)))[0]
    return torch.from_numpy(0.9 * vertices @ turns), torch.from_numpy(np.asarray(faces, np.int64))


def times(name: str, batch: int, device: str, repeats: int) -> list[dict[str, Any]]:
    vertices, faces = turned(name, batch)
    vertices, faces = vertices.float().to(device), faces.to(device)
    rows = []
    for size in SIZES:
        row = {"mesh": name, "faces": len(faces), "meshes": batch, "pixels": size}
        row["silhouette"] = median(lambda v, s=size: silhouette(v, faces, s, 1.0).sum(), vertices, repeats)
        row["depth"] = median(lambda v, s=size: _finite(rasterize(v, faces, s).depth).sum(), vertices, repeats)
        if find_spec("pytorch3d") and batch <= COMPARED:
            theirs = {"depth": median(lambda v, s=size: _hard(v, faces, s).sum(), vertices, 0)}
            if name == "ellipsoid":
                theirs["silhouette"] = median(lambda v, s=size: _soft(v, faces, s).sum(), vertices, 0)
                row["both_times_faster"] = round(sum(theirs.values()) / sum(row[what] for what in theirs), 1)
            for what, taken in theirs.items():
                row |= {f"pytorch3d_{what}": taken, f"{what}_times_faster": round(taken / row[what], 1)}
            row |= _against(vertices, faces, size)
        rows.append(row)
    return rows


def _against(vertices: Tensor, faces: Tensor, size: int) -> dict[str, Any]:
    """Where pytorch3d sees other faces than we do, and how far its depths lie from ours where it sees the same."""
    theirs, depth = (t[..., 0] for t in _fragments(vertices, faces, size, 0.0, 1)[:2])
    ours = rasterize(vertices, faces, size)
    same = torch.where(theirs >= 0, theirs % len(faces), -1) == ours.face_id
    off = (depth - AWAY - ours.depth)[same & ours.mask].abs()
    return {
        "pixels_covered": int(ours.mask.sum()),
        "pixels_of_another_face": int((~same).sum()),
        "depth_off": {"mean": _rounded(float(off.mean())), "most": _rounded(float(off.max()))},
    }


def median(draw: Callable[[Tensor], Tensor], vertices: Tensor, repeats: int) -> float:
    """Milliseconds of forward and backward; the first pass does not count where it is repeated."""
    taken = []
    for _ in range(repeats + 1):
        leaf = vertices.clone().requires_grad_()
        started = _now(vertices)
        draw(leaf).backward()
        taken.append(_now(vertices) - started)
    return round(1000 * statistics.median(taken[1:] or taken), 2)


def _now(like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _finite(depth: Tensor) -> Tensor:
    return depth[depth.isfinite()]


def _fragments(vertices: Tensor, faces: Tensor, size: int, blur: float, per_pixel: int) -> tuple[Tensor, ...]:
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    # Its x runs left and its y up, and it draws nothing behind the camera.
    frame = vertices * vertices.new_tensor((-1, -1, 1)) + vertices.new_tensor((0, 0, AWAY))
    return rasterize_meshes(Meshes(frame, faces.expand(len(frame), -1, -1)), size, blur, per_pixel)


def _hard(vertices: Tensor, faces: Tensor, size: int) -> Tensor:
    face, depth = _fragments(vertices, faces, size, 0.0, 1)[:2]
    return depth[face >= 0]


def _soft(vertices: Tensor, faces: Tensor, size: int, sigma: float = 1e-4) -> Tensor:
    face, _, _, distance = _fragments(vertices, faces, size, float(np.log(1 / 1e-4 - 1)) * sigma, 50)
    return 1 - (1 - torch.sigmoid(-distance / sigma) * (face >= 0)).prod(-1)


def errors() -> list[dict[str, Any]]:
    """Relative errors of the gradients for the animal, by resolution."""
    vertices, faces = turned("animal", 2)
    finest = _smooth_gradient(vertices, faces, LIMIT)
    rows = []
    for size in SIZES:
        off = _smooth_gradient(vertices, faces, size) - finest
        rows.append(
            {
                "pixels": size,
                "silhouette": {
                    "against_differences": _differences("silhouette", vertices, faces, size),
                    "against_the_limit": _rounded(float(off.norm() / finest.norm())),
                },
                "depth": {"against_differences": _differences("depth", vertices, faces, size)},
            }
        )
    return rows


def _differences(what: str, vertices: Tensor, faces: Tensor, size: int, directions: int = 8) -> float:
    """Largest error along random directions, of a loss with random weights, relative to the largest slope."""
    weights = torch.rand(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    off, slopes = [], []
    for _ in range(directions):
        way = torch.randn(vertices.shape, generator=generator, dtype=torch.float64)
        low, high = vertices - STEP * way, vertices + STEP * way
        leaf = vertices.clone().requires_grad_()
        if what == "depth":
            middle, below, above = (rasterize(v, faces, size) for v in (leaf, low, high))
            same = middle.mask & (middle.face_id == below.face_id) & (middle.face_id == above.face_id)
            values = [(r.depth[same] * weights.expand_as(same)[same]).sum() for r in (below, middle, above)]
        else:
            values = [(silhouette(v, faces, size) * weights).sum() for v in (low, leaf, high)]
        (gradient,) = torch.autograd.grad(values[1], leaf)
        slope = float(values[2] - values[0]) / (2 * STEP)
        off.append(abs(slope - float((gradient * way).sum())))
        slopes.append(abs(slope))
    return _rounded(max(off) / max(slopes))


def _smooth_gradient(vertices: Tensor, faces: Tensor, size: int) -> Tensor:
    at = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1
    weights = 1 + torch.sin(3 * at)[:, None] * torch.cos(2 * at)
    leaf = vertices.clone().requires_grad_()
    return torch.autograd.grad((silhouette(leaf, faces, size) * weights).sum() / size**2, leaf)[0]


def _rounded(x: float) -> float:
    return float(f"{x:.2g}")


if __name__ == "__main__":
    main()
