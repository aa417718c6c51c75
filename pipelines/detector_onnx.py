"""YOLOX as exported by its own tool, through onnxruntime: a file, and beside it `<name>.txt` with a class a line.

Without the text a network of 80 classes knows COCO's. Input: BGR 0-255, at the top left of a grey square. Output
[B,A,5+C]: a box's middle and log side relative to its cell and stride, objectness, class probabilities (Ge et al.
2021, "YOLOX").
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from pipelines.detect_rules import Rules
from pipelines.detectors import Found, need, read_model
from tables import InputError

COCO = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
]  # fmt: skip
STRIDES = (8, 16, 32)
GREY = 114


def identity(model: str) -> dict[str, Any]:
    content = hashlib.sha256(read_model(model))
    content.update("\n".join(_names_beside(model) or ()).encode())
    return {"onnx": content.hexdigest()[:16]}


def load(model: str, rules: Rules, device: str) -> Yolox:
    return Yolox(model, rules, device)


class Yolox:
    def __init__(self, model: str, rules: Rules, device: str) -> None:
        runtime = need("onnxruntime", "onnx", "pip install 'wildshape[onnx]', or onnxruntime-gpu for CUDA")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = [f"{device.upper()}ExecutionProvider", "CPUExecutionProvider"]
        known = [p for p in dict.fromkeys(providers) if p in runtime.get_available_providers()]
        data = read_model(model)
        try:
            self.session = runtime.InferenceSession(data, options, providers=known)
            (given,), (made,) = self.session.get_inputs(), self.session.get_outputs()
            self.batch, _, self.height, self.width = given.shape
            self.grid, self.stride = _cells(self.height, self.width)
            anchors, columns = made.shape[1:]
        except Exception as error:  # onnxruntime's own have no common base
            raise InputError("model", model, f"not a YOLOX export ({str(error).splitlines()[0]})") from error
        self.input, self.score = given.name, rules.score
        if anchors != len(self.grid):
            raise InputError("model", model, f"not a YOLOX export: {anchors} boxes instead of {len(self.grid)}")
        self.names = _names_beside(model) or (COCO if columns == 85 else [])
        if len(self.names) != columns - 5:
            fix = f"needs the names of its {columns - 5} classes, one a line, in {os.path.splitext(model)[0]}.txt"
            raise InputError("model", model, fix)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return self.height, self.width

    def __call__(self, photos: Sequence[np.ndarray]) -> list[Found]:
        boxed = [self._letterbox(photo) for photo in photos]
        images = np.stack([b[0] for b in boxed]).transpose(0, 3, 1, 2).astype(np.float32)
        # An export without `--dynamic` has a batch size of its own, mostly 1.
        size = self.batch if isinstance(self.batch, int) else len(images)
        outputs = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            full = np.concatenate([part, np.zeros_like(images[:1]).repeat(size - len(part), 0)])
            outputs.append(self.session.run(None, {self.input: full})[0][: len(part)])
        return [self._boxes(o, scale) for o, (_, scale) in zip(np.concatenate(outputs), boxed, strict=True)]

    def _letterbox(self, photo: np.ndarray) -> tuple[np.ndarray, float]:
        """BGR [h,w,3]; bilinear without smoothing, as the network was trained on."""
        scale = min(self.height / photo.shape[0], self.width / photo.shape[1])
        h, w = (max(1, int(side * scale)) for side in photo.shape[:2])
        out = np.full((self.height, self.width, 3), GREY, np.uint8)
        out[:h, :w] = cv2.resize(photo, (w, h), interpolation=cv2.INTER_LINEAR)[..., ::-1]
        return out, scale

    def _boxes(self, output: np.ndarray, scale: float) -> Found:
        classes = output[:, 5:].argmax(1)
        scores = output[:, 4] * output[np.arange(len(output)), 5 + classes]
        good = scores >= self.score
        stride = self.stride[good]
        middle = (output[good, :2] + self.grid[good]) * stride
        side = np.exp(output[good, 2:4].clip(max=20)) * stride
        boxes = np.concatenate([middle - side / 2, side], 1, dtype=np.float64)
        return Found(boxes / scale, scores[good], classes[good])


def _cells(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row [A,2] of each output's cell, and its stride [A,1]."""
    grids, strides = [], []
    for stride in STRIDES:
        rows, columns = np.indices((height // stride, width // stride))
        grids.append(np.stack([columns, rows], -1).reshape(-1, 2))
        strides.append(np.full((grids[-1].shape[0], 1), stride))
    return np.concatenate(grids), np.concatenate(strides)


def _names_beside(model: str) -> list[str] | None:
    try:
        return read_model(os.path.splitext(model)[0] + ".txt").decode().strip().splitlines()
    except InputError:
        return None
