"""What an actor does with photos: decode, detect, cut crops, commit. Needs no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import torch

from models.photo import decode_photo
from pipelines.careful import Careful
from pipelines.detect_rules import Rules, sift, wanted_classes
from pipelines.detectors import BATCH, PIXELS, Found, batches, open_detector
from pipelines.label_worker import crop_fields, rows_to_table
from pipelines.photo_checks import check_photo
from pipelines.photo_resize import dhash
from tables import Dataset, instance_id, schema


class Shot(NamedTuple):
    """A decoded photo and its place in the part."""

    place: int
    row: dict[str, Any]
    image: np.ndarray


class DetectWorker:
    """Finds the animals in one part of `photos` and commits one part of `instances`.

    A photo that cannot be looked at costs its own rows only. It is counted under its reason (`truncated`, `not_image`,
    `bomb`, `undecodable`, or `poison` where it made something raise), and the part's manifest names it under `lost`.
    Where the device is to blame nothing is committed: RuntimeError.

    Args:
        model: path or name of the detector's model.
        detector: the detector's fingerprint, part of every instance id.
        rules: the `detect` section of the config.
        kind: which detector, of `pipelines.detectors`.
    """

    def __init__(
        self,
        photos: Dataset,
        instances: Dataset,
        model: str,
        detector: str,
        category: str,
        rules: Mapping[str, Any],
        kind: str = "own",
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rules = Rules.read(rules)
        self.net = open_detector(kind, model, self.rules, device)
        self.wanted = wanted_classes(self.net.names, self.rules.classes, category)
        self.find: Careful[np.ndarray, Found] = Careful(self.net, BATCH)
        self.photos, self.instances, self.detector, self.category = photos, instances, detector, category

    def __call__(self, part: str, payload: Any) -> dict[str, int]:
        made_of = self.photos.manifests([part])[part]["digest"]
        rows = self.photos.read(["photo_id", "status", "duplicate_of", "sha256", "bytes"], [part])
        counts: Counter[str] = Counter()
        lost: dict[str, str] = {}
        found: dict[int, list[dict[str, Any]]] = {}
        shots = self._decoded(rows, counts, lost)
        for batch in batches((self.net.shape(*s.image.shape[:2]), s.image[..., 0].size, s) for s in shots):
            for shot, answer in zip(batch, self.find([s.image for s in batch]), strict=True):
                try:
                    found[shot.place] = self._animals(shot, answer, counts)
                except Exception as error:  # noqa: BLE001 - a poison photo is a lost row, the others go on
                    counts["poison"] += 1
                    lost[shot.row["photo_id"]] = f"poison: {type(error).__name__}: {str(error)[:200]}"
        if 1 < counts["photos"] == counts["poison"]:
            raise RuntimeError(f"the detector fails on every photo of {part}: {next(iter(lost.values()))}")
        made = [row for place in sorted(found) for row in found[place]]
        self.instances.write(part, rows_to_table(made, "instances"), schema("instances"), lost=lost, photos=made_of)
        return {**+counts, "instances": len(made)}

    def _decoded(self, rows: pa.Table, counts: Counter[str], lost: dict[str, str]) -> Iterator[Shot]:
        """The photos that are no failure and no duplicate, one after the other: few of them lie in memory at once."""
        seen: set[str] = set()  # in a stream nobody has told equal photos apart yet: of those of a part the first stays
        for place in range(len(rows)):
            row = rows.slice(place, 1).to_pylist()[0]
            if row["status"] != "ok" or row["duplicate_of"] or row["sha256"] in seen:
                continue
            seen.add(row["sha256"])
            verdict = check_photo(row["bytes"] or b"", PIXELS)
            image = decode_photo(row["bytes"]) if verdict.status == "ok" else None
            if image is not None:
                counts["photos"] += 1
                yield Shot(place, {"photo_id": row["photo_id"], "sha256": row["sha256"]}, image)
                continue
            reason = "undecodable" if verdict.status == "ok" else verdict.status
            counts[reason] += 1
            lost[row["photo_id"]] = f"{reason}: {verdict.error}" if verdict.error else reason

    def _animals(self, shot: Shot, answer: Found | Exception, counts: Counter[str]) -> list[dict[str, Any]]:
        if isinstance(answer, Exception):
            raise answer
        height, width = shot.image.shape[:2]
        bits = dhash(cv2.cvtColor(shot.image, cv2.COLOR_RGB2GRAY))
        left = sift(answer, self.wanted, (width, height), self.rules, counts)
        return [
            {
                "instance_id": instance_id(shot.row["sha256"], box, self.detector), "photo_id": shot.row["photo_id"],
                "category": self.category, "score": score, "detector": self.detector, "dhash": bits,
                **crop_fields(shot.image, box, self.rules.crop_px),
            }
            for box, score in zip(left.boxes, left.scores.tolist(), strict=True)
        ]  # fmt: skip
