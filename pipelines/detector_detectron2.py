"""detectron2, the paper's detector: a model-zoo file by name, or weights of the paper's Faster R-CNN X101-FPN 3x.

It does what `DefaultPredictor` does, for a batch: docs/new-species.md says how it was built and last executed. A `.pkl`
of weights is a pickle, which can run code: load those of the model zoo or your own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipelines.detect_rules import Rules
from pipelines.detectors import Found, need
from tables import InputError, file_digest

PAPER = "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml"


def identity(model: str) -> dict[str, Any]:
    return {"detectron2": file_digest(model) if os.path.exists(model) else model}


def load(model: str, rules: Rules, device: str) -> Detectron2:
    return Detectron2(model, rules, device)


class Detectron2:
    def __init__(self, model: str, rules: Rules, device: str) -> None:
        install = (
            "build it by its guide: pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"
        )
        zoo = need("detectron2.model_zoo", "detectron2", install)
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import get_cfg
        from detectron2.data import MetadataCatalog
        from detectron2.data.transforms import ResizeShortestEdge
        from detectron2.modeling import build_model

        cfg = get_cfg()
        named = model.endswith(".yaml")
        try:
            cfg.merge_from_file(zoo.get_config_file(model if named else PAPER))
            cfg.MODEL.WEIGHTS = zoo.get_checkpoint_url(model) if named else model
        except RuntimeError as error:
            raise InputError("model", model, f"is not in the model zoo: the paper's is {PAPER}") from error
        if not named and not os.path.exists(model):
            raise InputError("model", model, f"no such weights; from the model zoo: {PAPER}")
        cfg.MODEL.DEVICE = device
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = rules.score
        self.net = build_model(cfg).eval()
        for weight in self.net.parameters():  # what a file does not fill stays as it was drawn, with a line in the log
            torch.nn.init.constant_(weight, torch.nan)
        DetectionCheckpointer(self.net).load(cfg.MODEL.WEIGHTS)
        if any(weight.isnan().any() for weight in self.net.parameters()):
            raise InputError("model", model, f"holds no weights of {model if named else PAPER}")
        self.names = list(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)
        self.resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.reverse = cfg.INPUT.FORMAT == "BGR"

    def shape(self, height: int, width: int) -> tuple[int, int]:
        sides = self.resize.get_output_shape(height, width, self.resize.short_edge_length[0], self.resize.max_size)
        multiple = max(self.net.backbone.size_divisibility, 1)  # to which the network pads
        return tuple(-(-side // multiple) * multiple for side in sides)

    @torch.inference_mode()
    def __call__(self, photos: Sequence[np.ndarray]) -> list[Found]:
        inputs = []
        for photo in photos:
            coloured = photo[..., ::-1] if self.reverse else photo
            image = self.resize.get_transform(coloured).apply_image(coloured)
            pixels = torch.as_tensor(image.astype(np.float32).transpose(2, 0, 1))
            inputs.append({"image": pixels, "height": photo.shape[0], "width": photo.shape[1]})
        found = []
        for answer in self.net(inputs):
            animals = answer["instances"].to("cpu")
            boxes = animals.pred_boxes.tensor.double().numpy()
            boxes[:, 2:] -= boxes[:, :2]
            found.append(Found(boxes, animals.scores.numpy(), animals.pred_classes.numpy()))
        return found
