"""What a trained network is worth on labelled instances. Needs no Ray.

Workers that share an evaluation take turns at whole batches and tell each other what they found, so the numbers are
those of one worker to the last digit, and every worker has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from models.acsm import ACSM
from models.crops import to_photo
from models.heatmap import Detector, PoseNet, box_iou, decode_boxes
from models.keypoint_transfer import SurfaceMaps, image_pairs, surface_maps, transfer
from models.metrics import auc_06_10, camera_error_deg, miou, pck
from models.photo import normalise
from models.predict import in_photo, predict_acsm, predict_pose
from models.raster import rasterize
from tables import QUADRUPED
from trainers.data import Instances
from trainers.masks import mask_in_window

THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(1, 16))
BATCH = 64

T = TypeVar("T")


def by_turns(work: Callable[[int], T], count: int, rank: int, world: int) -> list[T]:
    """[work(0), ..., work(count - 1)], each made by one of the workers and known to all afterwards."""
    mine = {i: work(i) for i in range(rank, count, world)}
    found: list[Any] = [mine] * world
    if world > 1:
        distributed.all_gather_object(found, mine)
    return [found[i % world][i] for i in range(count)]


def evaluate_acsm(net: ACSM, data: Instances, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Reprojection AUC and PCK curve, camera error, silhouette IoU and keypoint transfer on labelled instances.

    Args:
        rank, world: this worker and the number of workers that share the work, all with the same network and data.

    Returns:
        `auc_06_10`, `pck` (threshold -> percent of visible joints within it), `joints` (joint -> its `auc_06_10`, None
        where it is nowhere visible), `camera_error_deg` and `miou` (None where no label has a camera or a mask),
        `transfer_pck_10` (see `_transfer`), `instances`.
    """

    def batch(number: int) -> tuple[np.ndarray, np.ndarray, SurfaceMaps, float]:
        part = data.take(np.arange(number * BATCH, min((number + 1) * BATCH, len(data))))
        masked = [i for i, m in enumerate(part.masks) if m]
        out = predict_acsm(net, part.crops, mesh=True)
        overlap = 0.0
        if masked:
            size = net.config["image_size"]
            drawn = rasterize(out.vertices[masked, 0], _faces(net), size).mask.cpu().numpy()
            truth = np.stack([mask_in_window(part.masks[i] or b"", part.windows[i], size) for i in masked])
            overlap = miou(drawn, truth) * len(masked)
        maps = SurfaceMaps(*(m.cpu() for m in surface_maps(net, out)))
        return in_photo(out.keypoints[:, 0], part.windows), out.camera[:, 0, 3:].cpu().numpy(), maps, overlap

    found = by_turns(batch, _batches(data), rank, world)
    joints, cameras, maps, overlaps = zip(*found, strict=True)
    result = _reprojection(np.concatenate(joints), data)
    known = np.isfinite(data.cameras).all(1)
    error = camera_error_deg(np.concatenate(cameras), np.nan_to_num(data.cameras), known)
    result["camera_error_deg"] = error if np.isfinite(error) else None
    count = sum(m is not None for m in data.masks)
    result["miou"] = float(sum(overlaps) / count) if count else None
    device = next(net.parameters()).device
    together = SurfaceMaps(*(torch.cat(x).to(device) for x in zip(*maps, strict=True)))
    result["transfer_pck_10"] = _transfer(together, data, rank, world)
    return result


def _transfer(maps: SurfaceMaps, data: Instances, rank: int, world: int) -> float | None:
    """Percent of keypoints, visible in both photos of a pair, that land within a tenth of the target's box side.

    (A-CSM's keypoint transfer: kp_transfer.py of nileshkulkarni/acsm.) None where no pair shares a keypoint.
    """
    keypoints, pairs = torch.from_numpy(data.keypoints).to(maps.points.device), image_pairs(len(data))
    sources = np.unique(pairs[:, 0])
    if not len(sources):
        return None

    def one(number: int) -> torch.Tensor:
        source = sources[number]
        targets = torch.from_numpy(pairs[pairs[:, 0] == source, 1])
        return transfer(keypoints[source, :, :2], maps, source, targets).cpu()

    found = by_turns(one, len(sources), rank, world)
    source, target = pairs.T
    visible = (data.keypoints[source, :, 2] > 0) & (data.keypoints[target, :, 2] > 0)
    truth = to_photo(data.keypoints[target, :, :2].astype(np.float64), data.windows[target])
    predicted = in_photo(torch.cat(found), data.windows[target])
    share = float(pck(predicted, truth, visible, data.size[target], [0.1])[0])
    return share if np.isfinite(share) else None


def evaluate_pose(net: PoseNet, data: Instances, image_size: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """PCK curve of the 2D network, and the same AUC as for the 3D one for comparison."""

    def batch(number: int) -> np.ndarray:
        rows = slice(number * BATCH, (number + 1) * BATCH)
        return in_photo(predict_pose(net, data.crops[rows], image_size), data.windows[rows])

    joints = by_turns(batch, _batches(data), rank, world)
    return _reprojection(np.concatenate(joints)[..., :2], data)


def evaluate_detector(
    net: Detector, photos: np.ndarray, boxes: list[np.ndarray], score: float = 0.3, rank: int = 0, world: int = 1
) -> dict[str, Any]:
    """Recall and precision at IoU 0.5 of the boxes above a score, and the mean IoU of the boxes found.

    Args:
        photos: uint8 [N,S,S,3] letterboxed; boxes: N arrays [n,4] of [x,y,w,h] in those pixels.
    """
    device = next(net.parameters()).device

    def batch(number: int) -> tuple[int, list[float]]:
        """Boxes found, and the IoU of those that hit."""
        rows, found, overlaps = slice(number * BATCH, (number + 1) * BATCH), 0, []
        with torch.inference_mode():
            output = net(normalise(torch.from_numpy(photos[rows]).to(device))).float().cpu()
        for (predicted, _), truth in zip(decode_boxes(output, score, 100), boxes[rows], strict=True):
            found += len(predicted)
            if len(predicted):
                best = box_iou(torch.from_numpy(truth).float(), predicted).amax(1)
                overlaps += best[best > 0.5].tolist()
        return found, overlaps

    parts = by_turns(batch, _batches(photos), rank, world)
    found, overlaps = sum(n for n, _ in parts), [x for _, hit in parts for x in hit]
    hits, total = len(overlaps), sum(len(b) for b in boxes)
    return {
        "recall_50": 100 * hits / max(1, total), "precision_50": 100 * hits / max(1, found),
        "iou_of_hits": float(np.mean(overlaps)) if overlaps else 0.0, "instances": total,
    }  # fmt: skip


def _batches(items: Sized) -> int:
    return -(-len(items) // BATCH)


def _reprojection(joints: np.ndarray, data: Instances) -> dict[str, Any]:
    truth = to_photo(data.keypoints[..., :2].astype(np.float64), data.windows)
    visible = data.keypoints[..., 2] > 0
    curve = pck(joints, truth, visible, data.size, THRESHOLDS)
    alone = [auc_06_10(joints[:, [k]], truth[:, [k]], visible[:, [k]], data.size) for k in range(joints.shape[1])]
    return {
        "auc_06_10": auc_06_10(joints, truth, visible, data.size),
        "pck": {f"{t:.2f}": float(v) for t, v in zip(THRESHOLDS, curve, strict=True)},
        "joints": {n: v if np.isfinite(v) else None for n, v in zip(QUADRUPED.names, alone, strict=True)},
        "instances": len(data),
    }


def _faces(net: ACSM) -> torch.Tensor:
    return torch.from_numpy(np.array(net.template.faces, np.int64)).to(next(net.parameters()).device)
