"""What a trained network is worth on labelled instances. Needs no Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

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


def evaluate_acsm(net: ACSM, data: Instances) -> dict[str, Any]:
    """Reprojection AUC and PCK curve, camera error, silhouette IoU and keypoint transfer on labelled instances.

    Returns:
        `auc_06_10`, `pck` (threshold -> percent of visible joints within it), `joints` (joint -> its `auc_06_10`, None
        where it is nowhere visible), `camera_error_deg` and `miou` (None where no label has a camera or a mask),
        `transfer_pck_10` (see `_transfer`), `instances`.
    """
    joints, cameras, overlaps, maps = [], [], [], []
    for start in range(0, len(data), BATCH):
        part = data.take(np.arange(start, min(start + BATCH, len(data))))
        masked = [i for i, m in enumerate(part.masks) if m]
        out = predict_acsm(net, part.crops, mesh=True)
        joints.append(in_photo(out.keypoints[:, 0], part.windows))
        cameras.append(out.camera[:, 0, 3:].cpu().numpy())
        maps.append(surface_maps(net, out))
        if masked:
            size = net.config["image_size"]
            drawn = rasterize(out.vertices[masked, 0], _faces(net), size).mask.cpu().numpy()
            truth = np.stack([mask_in_window(part.masks[i] or b"", part.windows[i], size) for i in masked])
            overlaps.append(miou(drawn, truth) * len(masked))
    result = _reprojection(np.concatenate(joints), data)
    known = np.isfinite(data.cameras).all(1)
    error = camera_error_deg(np.concatenate(cameras), np.nan_to_num(data.cameras), known)
    result["camera_error_deg"] = error if np.isfinite(error) else None
    count = sum(m is not None for m in data.masks)
    result["miou"] = float(sum(overlaps) / count) if count else None
    result["transfer_pck_10"] = _transfer(SurfaceMaps(*(torch.cat(x) for x in zip(*maps, strict=True))), data)
    return result


def _transfer(maps: SurfaceMaps, data: Instances) -> float | None:
    """Percent of keypoints, visible in both photos of a pair, that land within a tenth of the target's box side.

    (METHOD 7: the ancestor's keypoint transfer.) None where no pair shares a keypoint.
    """
    keypoints, pairs = torch.from_numpy(data.keypoints).to(maps.points.device), image_pairs(len(data))
    found = [
        transfer(keypoints[source, :, :2], maps, source, torch.from_numpy(pairs[pairs[:, 0] == source, 1])).cpu()
        for source in np.unique(pairs[:, 0])
    ]
    if not found:
        return None
    source, target = pairs.T
    visible = (data.keypoints[source, :, 2] > 0) & (data.keypoints[target, :, 2] > 0)
    truth = to_photo(data.keypoints[target, :, :2].astype(np.float64), data.windows[target])
    predicted = in_photo(torch.cat(found), data.windows[target])
    share = float(pck(predicted, truth, visible, data.size[target], [0.1])[0])
    return share if np.isfinite(share) else None


def evaluate_pose(net: PoseNet, data: Instances, image_size: int) -> dict[str, Any]:
    """PCK curve of the 2D network, and the same AUC as for the 3D one for comparison."""
    joints = [
        in_photo(predict_pose(net, data.crops[s : s + BATCH], image_size), data.windows[s : s + BATCH])
        for s in range(0, len(data), BATCH)
    ]
    return _reprojection(np.concatenate(joints)[..., :2], data)


def evaluate_detector(net: Detector, photos: np.ndarray, boxes: list[np.ndarray], score: float = 0.3) -> dict[str, Any]:
    """Recall and precision at IoU 0.5 of the boxes above a score, and the mean IoU of the boxes found.

    Args:
        photos: uint8 [N,S,S,3] letterboxed; boxes: N arrays [n,4] of [x,y,w,h] in those pixels.
    """
    device = next(net.parameters()).device
    found, hits, overlaps = 0, 0, []
    for start in range(0, len(photos), BATCH):
        images = normalise(torch.from_numpy(photos[start : start + BATCH]).to(device))
        with torch.inference_mode():
            output = net(images).float().cpu()
        for (predicted, _), truth in zip(decode_boxes(output, score, 100), boxes[start : start + BATCH], strict=True):
            found += len(predicted)
            if len(predicted):
                best = box_iou(torch.from_numpy(truth).float(), predicted).amax(1)
                hits += int((best > 0.5).sum())
                overlaps += best[best > 0.5].tolist()
    total = sum(len(b) for b in boxes)
    return {
        "recall_50": 100 * hits / max(1, total), "precision_50": 100 * hits / max(1, found),
        "iou_of_hits": float(np.mean(overlaps)) if overlaps else 0.0, "instances": total,
    }  # fmt: skip


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
