"""Content ids and fingerprints: a rerun gives the same ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def fingerprint(identity: Mapping[str, Any]) -> str:
    """16 hex digits that stand for a plain-JSON description of what was computed."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def photo_id(url: str, source: str | None = None, key: str | None = None) -> str:
    """`<source>:<key>` where the source names its photos, else a hash of the URL."""
    if source and key:
        return f"{source}:{key}"
    return "url:" + hashlib.sha256(url.encode()).hexdigest()[:20]


def instance_id(photo_sha256: str, bbox: Any, detector: str) -> str:
    """Hash of the photo's bytes, its box in whole pixels and the detector's fingerprint.

    Args:
        bbox: [x, y, w, h] in pixels, taken as float32 and rounded half to even.
        detector: fingerprint of the detector, or `label` for labelled boxes.
    """
    box = ",".join(str(int(v)) for v in np.rint(np.asarray(bbox, np.float32)))
    return hashlib.sha256(f"{photo_sha256}|{box}|{detector}".encode()).hexdigest()[:20]


def file_digest(path: str | Path) -> str:
    """16 hex digits of a local file's sha256."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]
