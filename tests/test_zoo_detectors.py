"""torchvision's and detectron2's detectors on real photos, where they are installed: as their own libraries answer.

Their weights are drawn here and laid where the libraries keep what they have fetched, so that they load as real ones.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
from test_detectors import coco, noise, rules, same

from pipelines.detectors import Found, PhotoDetector, open_detector
from tables import InputError


def awake(net: torch.nn.Module, look: Callable[[], Any]) -> None:
    """Random features die out in a deep network: norm each layer by what it sees, and let a second stage choose."""

    def fit(layer: Any, given: tuple[torch.Tensor]) -> None:
        layer.running_mean.copy_(given[0].mean((0, 2, 3)))
        layer.running_var.copy_(given[0].var((0, 2, 3), correction=0))

    hooks = [m.register_forward_pre_hook(fit) for m in net.modules() if hasattr(m, "running_var")]
    with torch.no_grad():
        look()
        if hasattr(net, "roi_heads"):
            net.roi_heads.box_predictor.cls_score.weight.mul_(30)
    for hook in hooks:
        hook.remove()


def one_by_one(net: PhotoDetector, photos: list[np.ndarray]) -> list[Found]:
    """What is found in each photo alone, which batches of one shape find as well."""
    alone = [net([photo])[0] for photo in photos]
    shapes = [net.shape(*photo.shape[:2]) for photo in photos]
    assert len(set(shapes)) < len(photos)
    for shape in set(shapes):
        mine = [i for i, s in enumerate(shapes) if s == shape]
        for i, found in zip(mine, net([photos[i] for i in mine]), strict=True):
            assert len(found.scores)
            same(found, alone[i], 1.0)
    return alone


def corners(found: Found) -> np.ndarray:
    return np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], 1)


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_torchvision(name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = pytest.importorskip("torchvision.models", reason="torchvision is not installed (needs a torch of its build)")
    photos = [photo for photo, _ in coco(shared_data)[:5]]
    images = [torch.from_numpy(photo).permute(2, 0, 1) / 255 for photo in photos]
    torch.manual_seed(0)
    net = zoo.get_model(name, weights=None, weights_backbone=None).eval()
    awake(net, lambda: net(images))
    weights = zoo.get_model_weights(name).DEFAULT
    kept = tmp_path / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[1]
    kept.parent.mkdir(parents=True)
    torch.save(net.state_dict(), kept)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    detector = open_detector("torchvision", name, rules(score=0.1), "cpu")
    assert detector.names[1] == "person"
    for photo, found in zip(photos, one_by_one(detector, photos), strict=True):
        with torch.inference_mode():
            (theirs,) = net([weights.transforms()(torch.from_numpy(photo).permute(2, 0, 1))])
        good = theirs["scores"] > 0.1
        np.testing.assert_allclose(corners(found), theirs["boxes"][good], atol=1e-2)
        np.testing.assert_array_equal(found.classes, theirs["labels"][good])
    with pytest.raises(InputError, match=r"use one of .*ssdlite320"):
        open_detector("torchvision", "some-model", rules(), "cpu")


@pytest.mark.filterwarnings("ignore")  # it is older than the torch, NumPy and setuptools beside it
def test_detectron2(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = pytest.importorskip("detectron2.model_zoo", reason="detectron2 is not installed (it has no wheels)")
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor
    from detectron2.modeling import build_model

    name = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    cfg = get_cfg()
    cfg.merge_from_file(zoo.get_config_file(name))
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    net = build_model(cfg).eval()
    seen = torch.from_numpy(noise(256, 256, 0)).permute(2, 0, 1).float()
    awake(net, lambda: net([{"image": seen}]))
    kept = tmp_path / urlparse(zoo.get_checkpoint_url(name)).path.lstrip("/")
    kept.parent.mkdir(parents=True)
    drawn = {"model": {k: v.numpy() for k, v in net.state_dict().items()}, "__author__": "drawn"}
    kept.write_bytes(pickle.dumps(drawn))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    detector = open_detector("detectron2", name, rules(score=0.3), "cpu")
    assert (len(detector.names), detector.names[0]) == (80, "person")
    photos = [photo for photo, _ in coco(shared_data)[:3:2]]
    cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = str(kept), 0.3
    theirs = DefaultPredictor(cfg)(photos[0][..., ::-1])["instances"]
    found = one_by_one(detector, photos)[0]
    np.testing.assert_allclose(corners(found), theirs.pred_boxes.tensor, atol=1e-2)
    np.testing.assert_array_equal(found.classes, theirs.pred_classes)
    with pytest.raises(InputError, match="not in the model zoo"):
        open_detector("detectron2", "COCO-Detection/some.yaml", rules(), "cpu")
    with pytest.raises(InputError, match=r"holds no weights of .*X_101"):  # a file is taken for the paper's
        open_detector("detectron2", str(kept), rules(), "cpu")
