"""What an actor does with photos: decode, detect, cut crops, commit. Needs no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from models.checkpoint import load_checkpoint
from models.heatmap import decode_boxes
from models.photo import decode_photo, letterbox, normalise
from pipelines.label_worker import crop_fields, rows_to_table
from pipelines.photo_resize import dhash
from tables import Dataset, instance_id, schema

BATCH = 16


class DetectWorker:
    """Finds the animals in one part of `photos` and commits one part of `instances`.

    Args:
        rules: the `detect` section of the config.
        detector: the detector's fingerprint, part of every instance id.
    """

    def __init__(
        self, photos: Dataset, instances: Dataset, model: str, detector: str, category: str, rules: Mapping[str, Any]
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = load_checkpoint(model).to(self.device)
        self.size = int(self.net.notes["job"]["settings"]["image_size"])  # type: ignore[index]
        self.photos, self.instances, self.detector = photos, instances, detector
        self.category, self.rules = category, rules

    def __call__(self, part: str, payload: Any) -> dict[str, int]:
        rows = self.photos.read(["photo_id", "status", "duplicate_of", "sha256", "bytes"], [part]).to_pylist()
        counts: Counter[str] = Counter()
        found: list[dict[str, Any]] = []
        ready: list[tuple[dict[str, Any], np.ndarray]] = []
        for row in rows:
            if row["status"] != "ok" or row["duplicate_of"]:
                continue
            image = decode_photo(row["bytes"])
            counts["photos" if image is not None else "undecodable"] += 1
            if image is not None:
                ready.append((row, image))
        for start in range(0, len(ready), BATCH):
            found += self._detect(ready[start : start + BATCH], counts)
        self.instances.write(part, rows_to_table(found, "instances"), schema("instances"))
        counts["instances"] = len(found)
        return dict(counts)

    @torch.inference_mode()
    def _detect(self, batch: list[tuple[dict[str, Any], np.ndarray]], counts: Counter[str]) -> list[dict[str, Any]]:
        boxed = [letterbox(image, self.size) for _, image in batch]
        images = normalise(torch.from_numpy(np.stack([b[0] for b in boxed])).to(self.device))
        output = self.net(images).float().cpu()
        rules = self.rules
        found = []
        boxes = decode_boxes(output, float(rules["score"]), int(rules["most"]), float(rules["overlap"]))
        for (row, image), (_, scale), (box, score) in zip(batch, boxed, boxes, strict=True):
            height, width = image.shape[:2]
            bits = dhash(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
            for b, s in zip(box.double().numpy() / scale, score.tolist(), strict=True):
                lo = np.clip(b[:2], 0, (width, height))
                hi = np.clip(b[:2] + b[2:], 0, (width, height))
                bbox = np.concatenate([lo, hi - lo]).astype(np.float32)
                if bbox[2:].min() < float(rules["min_side"]):
                    counts["too_small"] += 1
                    continue
                found.append({
                    "instance_id": instance_id(row["sha256"], bbox, self.detector), "photo_id": row["photo_id"],
                    "category": self.category, "score": s, "detector": self.detector, "dhash": bits,
                    **crop_fields(image, bbox, int(rules["crop_px"])),
                })  # fmt: skip
        return found
