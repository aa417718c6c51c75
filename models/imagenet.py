"""ImageNet weights for a trunk: torchvision's files, which carry its parameter names, from disk or from a URL."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, hub

from models.reference_checkpoint import read_pth
from models.resnet import ResNet
from tables import InputError

_NO_WEIGHT = "num_batches_tracked"  # files of 2016 lack it, and nothing reads it


def load_imagenet(trunk: ResNet, source: str) -> None:
    """Fill a trunk of the published width (64) with weights by torchvision's names; its classifier `fc` is left out.

    Args:
        source: a state dict of torchvision's resnet18, 34, 50 or 101 as `.pth`, or the same tensors as
            `.safetensors`. A path, or a URL: it is fetched once into torch's cache (`torch.hub.get_dir()`), and
            checked against the hash in its name where it has one, as torchvision's have.

    Raises:
        InputError: it cannot be read, or is of another depth or width; the trunk stays as it was.
    """
    state = {name: t for name, t in _read(source).items() if not name.startswith("fc.")}
    ours = trunk.state_dict()
    odd = [name for name in ours if name not in state and not name.endswith(_NO_WEIGHT)]
    odd += [name for name, t in state.items() if name not in ours or t.shape != ours[name].shape]
    if odd:
        raise InputError("weights", source, f"not of a trunk of this depth and width: {odd[0]} does not fit")
    trunk.load_state_dict(state, strict=False)


def imagenet_file(source: str) -> str:
    """The path of a source as `load_imagenet` takes it; a URL is fetched once.

    Raises:
        InputError: it cannot be fetched.
    """
    try:
        return _fetched(source) if "://" in source else source
    except (OSError, RuntimeError) as error:  # a URL's errors are OSErrors
        raise InputError("weights", source, f"cannot be read ({error})") from error


def _read(source: str) -> Mapping[str, Tensor]:
    path = imagenet_file(source)
    try:
        with open(path, "rb") as f:
            data = f.read()
        return load(data) if path.endswith(".safetensors") else read_pth(data)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError("weights", source, f"cannot be read ({error})") from error


def _fetched(url: str) -> str:
    """The file of a URL in torch's cache."""
    name = os.path.basename(url.partition("?")[0])
    path = os.path.join(hub.get_dir(), "checkpoints", name)
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        sha = re.search(r"-([0-9a-f]{8,})\.", name)
        hub.download_url_to_file(url, path, sha and sha[1], progress=False)
    return path
