"""Weights of animals3d, taken over by parameter name: its pose networks and its ACSM. Nothing is unpickled.

The files are state dicts of torch (animals3d pose/model/pose_resnet.py, acsm/acsm/model/network.py);
`torch.load(weights_only=True)` reads tensors and refuses the rest. Two habits of the reference are not in its weights:
a pose network has seen boxes without padding on black, ours look at 5 % more on each side; and its heatmaps peak up to
a cell up and left of the joint (`models.heatmap.decode`).
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.acsm import ACSM
from models.animals3d import AXES, read_animals3d
from models.animals3d_heads import FROM_OURS
from models.camera import quat_multiply
from models.heatmap import PoseNet
from models.resnet import BLOCKS
from tables import InputError

IMAGE_SIZE = 256  # pixels that the reference's pose networks look at
_STEM = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_CLASSIFIER = "img_encoder.resnet_conv.resnet.fc."
_PLAIN = {
    "img_encoder.resnet_conv.resnet.": "backbone.",
    "img_encoder.enc_conv1.": "squeeze.",
    "img_encoder.enc_fc.0.0.": "encode.0.",
    "img_encoder.enc_fc.1.0.": "encode.2.",
}
# Our grouped layers by the reference's separate ones, a `{camera}` (`{turns}`) being one of them in a multiplex. What
# it never uses (part scales and shifts, a multiplex' first layer of probabilities) is left behind.
_HEADS = "cam_predictor"
_PART = "{turns}.part_transforms_pred.{part}"
_GROUPED = {
    "fc.0": "fc.0.0",
    "fc.2": "fc.1.0",
    "camera_fc.0": "{camera}.fc_layer.0.0",
    "camera_fc.2": "{camera}.fc_layer.1.0",
    "rotation": "{camera}.quat_predictor.pred_layer",
    "prob": "{camera}.prob_predictor",
    "scale": "{camera}.scale_predictor.pred_layer",
    "shift": "{camera}.trans_predictor.pred_layer",
    "parts_fc.0": "{turns}.fc.0.0",
    "parts_fc.2": "{turns}.fc.1.0",
    "part_fc.0": f"{_PART}.fc_layer.0.0",
    "part_fc.2": f"{_PART}.fc_layer.1.0",
    "angle": f"{_PART}.quat_predictor.pred_layer",
}


def is_pth(data: bytes) -> bool:
    """Whether a file is of torch.save: a zip archive, or a pickle as before torch 1.6."""
    return data[:2] == b"PK" or data[:2] == b"\x80\x02"


def read_pth(data: bytes) -> dict[str, Tensor]:
    """The tensors of a state dict by name, without the prefix of data-parallel training.

    Raises:
        ValueError: it is no state dict, or holds more than tensors.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"no file of tensors alone: {reason}") from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError("no state dict")
    return {str(name).removeprefix("module."): t for name, t in state.items()}


def from_reference(path: str, data: bytes, animals3d: str | None) -> nn.Module:
    """The network of a `.pth` file of animals3d, in evaluation mode, with an attribute `notes` as all networks read.

    Args:
        path: of the file, for messages.
        data: its content.
        animals3d: folder of the animal's template, which an ACSM needs and its file does not hold.

    Raises:
        InputError: not a network of animals3d, or an ACSM without its template.
    """
    try:
        state = read_pth(data)
        if "head.layers.3.weight" in state:
            net: nn.Module = pose_from_reference(state)
        elif "img_encoder.enc_conv1.0.weight" not in state:
            raise InputError("checkpoint", path, "holds no pose network and no ACSM of animals3d")
        elif animals3d is None:
            fix = "load_checkpoint(path, animals3d='3D_models/<category>')"
            raise InputError("checkpoint", path, f"is an ACSM of animals3d without its template; call {fix}")
        else:
            net = acsm_from_reference(state, animals3d)
    except (KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        # torch says in the first line that keys are wrong, and then which, a line each: two lines say enough.
        reason = " ".join(str(error).split("\n")[:2])
        raise InputError("checkpoint", path, f"not a readable network of animals3d ({reason})") from error
    size = net.config["image_size"] if isinstance(net, ACSM) else IMAGE_SIZE
    net.notes = {"from": "animals3d", "job": {"settings": {"image_size": size}}}  # type: ignore[assignment]
    return net.eval()


def pose_from_reference(state: Mapping[str, Tensor]) -> PoseNet:
    """A pose network with the tensors of the reference's; KeyError, ValueError or RuntimeError if they do not fit."""
    ours = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part == "backbone":
            number, _, rest = rest.partition(".")
            ours[f"backbone.{_STEM[number]}.{rest}"] = tensor
        else:
            number, _, rest = rest.removeprefix("layers.").partition(".")
            ours[f"head.{rest}" if number == "3" else f"up.{number}.{rest}"] = tensor
    keypoints, channels = ours["head.weight"].shape[:2]
    width = len(ours["backbone.conv1.weight"])
    net = PoseNet(keypoints, depth_of(ours, "backbone."), width, channels)
    net.load_state_dict(ours)
    return net


def depth_of(state: Mapping[str, Any], prefix: str = "") -> int:
    """Depth of the ResNet whose parameter names (torchvision's) these are; ValueError if it is none of ours."""
    counts = tuple(
        len({name.split(".")[1 + prefix.count(".")] for name in state if name.startswith(f"{prefix}layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    bottleneck = f"{prefix}layer1.0.conv3.weight" in state
    for depth, blocks in BLOCKS.items():
        if blocks == counts and bottleneck == (depth >= 50):
            return depth
    raise ValueError(f"a ResNet of {counts} blocks: use one of depth {sorted(BLOCKS)}")


def acsm_from_reference(state: Mapping[str, Tensor], folder: str) -> ACSM:
    """An ACSM with the tensors of the reference's network, of a single camera or a multiplex, in our axes.

    The template is turned by `AXES`, so a camera's rotation R becomes R AXES^-1: one fixed quaternion from the right,
    which is linear and goes into the weights of a single camera; the cameras of a multiplex start in our axes. Part
    axes turn along. Pivots and the order of rotations stay the reference's (`compat: animals3d`).

    Raises:
        InputError: the template cannot be read.
        ValueError, KeyError, RuntimeError: the tensors are not those of the reference, or of another template.
    """
    cameras = len(state.get(f"{_HEADS}.prob_predictor.weight", [None]))
    template, order, rigid_root = read_animals3d(folder, compat="animals3d")
    squeezed, _, _, _ = state["img_encoder.enc_conv1.0.weight"].shape
    features, flat = state["img_encoder.enc_fc.0.0.weight"].shape
    width = len(state["img_encoder.resnet_conv.resnet.conv1.weight"])
    size = 64 * math.isqrt(flat // squeezed)
    net = ACSM(template, cameras, width=width, image_size=size, features=features, compat="animals3d")
    one = [{"camera": "camera_predictor", "turns": "transform_predictor"}]
    many = [{"camera": f"camera_predictor.{h}", "turns": f"transform_predictors.{h}"} for h in range(cameras)]
    heads = one if cameras == 1 else many

    def layers(pattern: str) -> list[str]:
        """The reference's layers that one of ours holds: of every camera, and of its parts in our order."""
        names = [pattern.format(**h, part=part) for h in heads for part in order]
        return [f"{_HEADS}.{name}" for name in dict.fromkeys(names)]

    ours = {}
    for name, tensor in state.items():
        for theirs, here in _PLAIN.items():
            if name.startswith(theirs) and not name.startswith(_CLASSIFIER):
                ours[here + name.removeprefix(theirs)] = tensor
    for here, theirs in _GROUPED.items():
        for kind in ("weight", "bias"):
            ours[f"heads.{here}.{kind}"] = torch.stack([state[f"{layer}.{kind}"] for layer in layers(theirs)])
    if cameras == 1:
        weight, bias = ours["heads.rotation.weight"], ours["heads.rotation.bias"]  # [1,4,F], [1,4]
        turned = quat_multiply(weight.transpose(1, 2), FROM_OURS.expand(1, features, 4))
        ours["heads.rotation.weight"] = turned.transpose(1, 2)
        ours["heads.rotation.bias"] = quat_multiply(bias, FROM_OURS.expand(1, 4))
    axes = torch.stack([state[layer] for layer in layers(f"{_PART}.quat_predictor.axis")])
    if rigid_root:
        axes[:: len(order)] = 0  # a turn about no axis is none
    ours["axes"] = (axes @ torch.from_numpy(AXES.T).float()).view_as(net.axes)
    net.load_state_dict(ours)
    return net
