"""Trained networks as one safe file each: weights, configuration, template and metrics (safetensors)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from models import vitpose
from models.acsm import ACSM
from models.heatmap import Detector, PoseNet
from models.reference_checkpoint import from_reference, is_pth
from models.template import Template
from tables import InputError, read_file

KINDS: dict[str, Any] = {"pose": PoseNet, "detector": Detector, "acsm": ACSM}
_ARRAYS = ("vertices", "faces", "weights", "pivots", "keypoints")


def checkpoint_bytes(model: nn.Module, notes: Mapping[str, Any] | None = None) -> bytes:
    """A network's file content; `notes` (metrics, lineage) must be plain JSON."""
    kind = next(k for k, cls in KINDS.items() if type(model) is cls)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    described: dict[str, Any] = {"kind": kind, "config": model.config, "notes": dict(notes or {})}
    if isinstance(model, ACSM):
        t = model.template
        described["template"] = {
            "parents": t.parents, "parts": t.parts, "keypoint_names": t.keypoint_names, "part_mirror": t.part_mirror,
        }  # fmt: skip
        for name in _ARRAYS:
            tensors[f"template.{name}"] = torch.from_numpy(np.ascontiguousarray(getattr(t, name)))
    return save_tensors(tensors, {"wildshape": json.dumps(described)})


def weights_digest(path: str) -> str:
    """16 hex digits of a checkpoint's weights alone: the same for the same weights, whatever was noted beside them.

    Of a network of transformers (`hf:...`) see `vitpose.digest`.

    Raises:
        InputError: no such file.
    """
    if path.startswith(vitpose.PREFIX):
        return vitpose.digest(path)
    data = read_file("checkpoint", str(path))
    header = 0 if is_pth(data) else 8 + int.from_bytes(data[:8], "little")
    return hashlib.sha256(data[header:]).hexdigest()[:16]


def load_checkpoint(path: str, animals3d: str | None = None) -> nn.Module:
    """Read a network written by `checkpoint_bytes`, or a `.pth` of animals3d, in evaluation mode on the CPU.

    `hf:` and a folder or a name on the hub is a ViTPose of transformers (`models/vitpose.py`).

    Attributes of the result: `notes`, what was noted at saving.

    Args:
        animals3d: folder `3D_models/<category>` of animals3d, where the file is its ACSM, which comes without a
            template. (To have it in one file, write `checkpoint_bytes` of the result.)

    Raises:
        InputError: there is no such file, or it is neither.
    """
    if path.startswith(vitpose.PREFIX):
        return vitpose.load(path)
    data = read_file("checkpoint", str(path))
    if is_pth(data):
        return from_reference(path, data, animals3d)
    try:
        tensors = load_tensors(data)
        size = int.from_bytes(data[:8], "little")
        described = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["wildshape"])
        if described["kind"] == "acsm":
            arrays: dict[str, Any] = {n: tensors.pop(f"template.{n}").numpy() for n in _ARRAYS}
            lists: dict[str, Any] = {k: tuple(v) for k, v in described["template"].items()}
            model: nn.Module = ACSM(Template(**arrays, **lists), **described["config"])
        else:
            model = KINDS[described["kind"]](**described["config"])
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        # torch lists every key that does not fit, a line each: the first line says enough.
        reason = str(error).split("\n", 1)[0]
        raise InputError("checkpoint", path, f"not a readable wildshape checkpoint ({reason})") from error
    model.notes = described["notes"]
    return model.eval()


def image_size_of(net: Any) -> int:
    """Pixels of the square that a network that `load_checkpoint` gave looks at."""
    return int(net.notes["job"]["settings"]["image_size"])
