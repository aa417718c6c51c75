"""Detectors behind the protocol: batched or one by one the same boxes, real photos, failures, the rules' reasons."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import checkpoint_bytes
from models.device_errors import device_broke, out_of_memory
from models.heatmap import Detector, decode_boxes
from models.photo import decode_photo, letterbox, normalise
from pipelines.careful import Careful
from pipelines.detect_rules import Rules, in_force, sift, wanted_classes
from pipelines.detectors import BATCH, DETECTORS, Found, batches, identity, open_detector
from tables import InputError

GIVEN: dict[str, Any] = {"score": 0.3, "overlap": 0.5, "most": 8, "min_side": 24, "crop_px": 96, "radius": 0}
ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"]


def rules(**over: Any) -> Rules:
    return Rules.read({**GIVEN, **over})


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def same(one: Found, other: Found, pixels: float) -> None:
    np.testing.assert_array_equal(one.classes, other.classes)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=pixels)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


@pytest.fixture
def own(tmp_path: Path) -> str:
    torch.manual_seed(0)
    job = {"category": "quadruped", "settings": {"image_size": 96}}
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint_bytes(Detector(width=8, channels=16), {"job": job}))
    return str(path)


@pytest.fixture
def yolox(shared_data: Path) -> str:
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'wildshape[onnx]'")
    return str(shared_data / "detector" / "yolox_nano.onnx")


def coco(shared_data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The 30 real photos, and the boxes [N,4] of their animals."""
    given = json.loads((shared_data / "coco_animals" / "instances.json").read_text())
    animal = {c["id"] for c in given["categories"] if c["name"] in ANIMALS}
    found = []
    for image in given["images"]:
        photo = decode_photo((shared_data / "coco_animals" / "images" / image["file_name"]).read_bytes())
        assert photo is not None
        mine = [a for a in given["annotations"] if a["image_id"] == image["id"] and a["category_id"] in animal]
        found.append((photo, np.array([a["bbox"] for a in mine]).reshape(-1, 4)))
    return found


def test_own_batched_or_one_by_one_and_as_its_decoder_says(own: str) -> None:
    loose = rules(score=0.0, most=3, min_side=1)
    net = open_detector("own", own, loose, "cpu")
    photos = [noise(60, 90, 0), noise(90, 60, 1), noise(96, 96, 2)]
    assert {net.shape(*p.shape[:2]) for p in photos} == {(96, 96)}
    together = net(photos)
    for photo, found in zip(photos, together, strict=True):
        same(found, net([photo])[0], 1.0)
        image, scale = letterbox(photo, 96)
        with torch.inference_mode():
            output = net.net(normalise(torch.from_numpy(image[None])))  # type: ignore[attr-defined]
        box, score = decode_boxes(output, 0.0, 3, loose.overlap)[0]
        low = np.clip(box[:, :2].double().numpy() / scale, 0, photo.shape[1::-1])
        kept = sift(found, np.array([True]), photo.shape[1::-1], loose, Counter())
        np.testing.assert_allclose(kept.boxes[:, :2], low, atol=1e-3)
        np.testing.assert_allclose(kept.scores, score, atol=1e-5)


def test_yolox_finds_the_animals_of_real_photos(yolox: str, shared_data: Path) -> None:
    net = open_detector("onnx", yolox, rules(), "cpu")
    assert (len(net.names), net.names[0], net.names[-1]) == (80, "person", "toothbrush")
    wanted = wanted_classes(net.names, ANIMALS, "quadruped")
    known = coco(shared_data)
    matched = boxes = kept = 0
    for (photo, truth), found in zip(known, net([p for p, _ in known]), strict=True):
        mine = sift(found, wanted, photo.shape[1::-1], rules(), Counter()).boxes
        close = [[float(iou(a, b)) >= 0.5 for b in mine] for a in truth]
        matched += sum(map(any, close))
        boxes, kept = boxes + len(truth), kept + len(mine)
    assert boxes == 55
    assert matched >= 43
    assert kept <= 51


def test_yolox_batched_is_yolox_one_by_one(yolox: str, shared_data: Path, tmp_path: Path) -> None:
    """As exported, of batch size 1, and the same graph with a free one."""
    onnx = pytest.importorskip("onnx", reason="the test edits a graph with the package onnx")
    graph = onnx.load(yolox)
    for given in (*graph.graph.input, *graph.graph.output):
        given.type.tensor_type.shape.dim[0].dim_param = "batch"
    constants = {c.name: c for c in graph.graph.initializer}
    for name in (n.input[1] for n in graph.graph.node if n.op_type == "Reshape"):
        shape = onnx.numpy_helper.to_array(constants[name]).copy()
        shape[0] = 0  # as it comes
        constants[name].CopyFrom(onnx.numpy_helper.from_array(shape, name))
    del graph.graph.value_info[:]
    onnx.save(graph, tmp_path / "free.onnx")
    fixed, free = (open_detector("onnx", str(p), rules(), "cpu") for p in (yolox, tmp_path / "free.onnx"))
    photos = [photo for photo, _ in coco(shared_data)[:7]]
    for photo, one, other in zip(photos, fixed(photos), free(photos), strict=True):
        same(one, fixed([photo])[0], 1.0)
        same(one, other, 1.0)


def test_a_wrong_onnx_file_is_one_line(yolox: str, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    (tmp_path / "few.onnx").write_bytes(Path(yolox).read_bytes())
    before = identity("onnx", str(tmp_path / "few.onnx"))
    (tmp_path / "few.txt").write_text("deer\nelk\n")
    assert identity("onnx", str(tmp_path / "few.onnx")) != before == identity("onnx", yolox)
    (tmp_path / "folder.onnx").mkdir()
    for name, message in (
        ("bad", "not a YOLOX export"), ("few", "names of its 80 classes"), ("gone", "no such file"),
        ("folder", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message) as caught:
            open_detector("onnx", str(tmp_path / f"{name}.onnx"), rules(), "cpu")
        assert "\n" not in str(caught.value)


def test_a_small_rt_detr_of_random_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'wildshape[hf]'")
    trunk = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    sizes = {"encoder_hidden_dim": 32, "d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = transformers.RTDetrV2Config(
        backbone_config=trunk, encoder_in_channels=[8, 16, 16], decoder_in_channels=[32, 32, 32], decoder_layers=2,
        num_queries=30, decoder_attention_heads=4, encoder_attention_heads=4, id2label={0: "deer", 1: "elk"}, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.RTDetrV2ForObjectDetection(config).save_pretrained(tmp_path)
    net = open_detector("hf", str(tmp_path), rules(score=0.0), "cpu")
    assert net.names == ["deer", "elk"]
    assert identity("hf", str(tmp_path)) == identity("hf", str(tmp_path))
    photos = [noise(60, 90, 0), noise(120, 50, 1)]
    for photo, found in zip(photos, net(photos), strict=True):
        assert len(found.scores) == 30
        same(found, net([photo])[0], 1.0)
        middle = found.boxes[:, :2] + found.boxes[:, 2:] / 2
        assert ((middle >= 0) & (middle <= np.array(photo.shape[1::-1]) + 1e-3)).all()
    with pytest.raises(InputError, match="model="):
        open_detector("hf", str(tmp_path / "nowhere"), rules(), "cpu")


@pytest.mark.parametrize(
    ("kind", "package"),
    [("onnx", "onnxruntime"), ("hf", "transformers"), ("torchvision", "torchvision.models"),
     ("detectron2", "detectron2.model_zoo")],
)  # fmt: skip
def test_what_is_not_installed_is_one_line(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package.split(".")[0], None)
    monkeypatch.delitem(sys.modules, package, raising=False) if "." in package else None
    with pytest.raises(InputError, match="install it: ") as caught:
        open_detector(kind, "some-model", rules(), "cpu")
    assert caught.value.argument == "detector"
    assert "\n" not in str(caught.value)
    assert kind in DETECTORS


class Fragile:
    """Finds nothing, and fails on black photos and where it is given more than it can hold."""

    names = ("animal",)

    def __init__(self, holds: int = 99) -> None:
        self.holds, self.sizes = holds, list[int]()

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def __call__(self, photos: Sequence[np.ndarray]) -> list[Found]:
        self.sizes.append(len(photos))
        if len(photos) > self.holds:
            raise torch.OutOfMemoryError("out of memory")
        if not all(p.any() for p in photos):
            raise ArithmeticError("black")
        return [Found(np.zeros((0, 4)), np.full(0, p[0, 0, 0]), np.zeros(0, int)) for p in photos]


def test_out_of_memory_halves_the_batch_for_good() -> None:
    net = Fragile(holds=3)
    find: Careful[np.ndarray, Found] = Careful(net, BATCH)
    photos = [noise(4, 4, i) for i in range(BATCH)]
    assert [type(f) for f in find(photos)] == [Found] * BATCH
    assert net.sizes == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    net.sizes.clear()
    find(photos[:4])
    assert net.sizes == [2, 2]


def test_a_poison_photo_is_alone_with_its_error() -> None:
    net = Fragile()
    photos = [noise(4, 4, i) for i in range(10)]
    photos[6] = np.zeros_like(photos[6])
    answers = Careful(net, BATCH)(photos)
    assert [type(a) for a in answers] == [Found] * 6 + [ArithmeticError] + [Found] * 3
    assert answers[6].__traceback__ is None  # type: ignore[union-attr]
    assert len(net.sizes) <= 8


def test_a_device_that_breaks_is_no_photo_to_blame() -> None:
    net, photos = Fragile(), [noise(4, 4, i) for i in range(4)]
    for error in (RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("from now on")):
        answered: list[int] = []

        def sick(given: Sequence[np.ndarray], error: Exception = error, answered: list[int] = answered) -> list[Found]:
            if answered:
                raise error
            answered.append(len(given))
            return net(given)

        find: Careful[np.ndarray, Found] = Careful(sick, BATCH)
        assert len(find(photos[:2])) == 2
        with pytest.raises(RuntimeError, match=r"the device broke|fails on what it has answered before"):
            find(photos[2:])
        with pytest.raises(RuntimeError, match=r"the device broke|fails on what it has answered before"):
            find(photos[2:3])

    def broken(given: Sequence[np.ndarray]) -> list[Found]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="the device broke"):  # though nothing was answered before
        Careful(broken, BATCH)(photos[:1])


@pytest.mark.parametrize(
    ("error", "memory", "broke"),
    [(MemoryError(), True, False), (torch.OutOfMemoryError(), True, False),
     (RuntimeError("CUDA error: out of memory"), True, False),
     (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True, False),
     (RuntimeError("CUDA error: unspecified launch failure"), False, True), (ValueError("black"), False, False)],
)  # fmt: skip
def test_what_an_error_says_of_the_device(error: Exception, memory: bool, broke: bool) -> None:
    assert (out_of_memory(error), device_broke(error)) == (memory, broke)


def test_batches_are_of_one_shape_and_bounded() -> None:
    items = [((i % 2,), 1, i) for i in range(2 * BATCH + 3)]
    made = list(batches(items))
    assert [len(b) for b in made] == [BATCH, BATCH, 2, 1]
    assert made[0] == list(range(0, 2 * BATCH, 2))
    giants = list(batches([((0,), 1 << 27, i) for i in range(5)]))
    assert giants == [[0, 1], [2, 3], [4]]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.prod(sides.clip(0))
    return shared / (np.prod(a[2:]) + np.prod(b[2:]) - shared)


def test_every_rule_counts_what_it_drops() -> None:
    boxes = {
        "not_finite": [np.nan, 0, 50, 50], "other_class": [0, 0, 50, 50],
        "stays": [100, 100, 60, 60], "overlapping": [102, 100, 60, 60],
        "too_small": [300, 100, 40, 9], "cut_off": [-5, 200, 60, 60], "crowded": [110, 115, 20, 20],
        "too_many": [400, 300, 50, 50],
    }  # fmt: skip
    scores = np.linspace(0.9, 0.4, len(boxes))
    found = Found(np.array(list(boxes.values()), float), scores, np.array([0, 1, 0, 0, 0, 0, 0, 0]))
    counts: Counter[str] = Counter()
    strict = rules(min_side=10, border=2, crowd=0.8, most=4, classes=["deer"])
    kept = sift(found, wanted_classes(["deer", "tree"], strict.classes, "deer"), (640, 480), strict, counts)
    assert kept.boxes.tolist() == [[100, 100, 60, 60]]
    assert kept.boxes.dtype == np.float32
    assert +counts == {reason: 1 for reason in boxes if reason != "stays"}
    loose = sift(found, np.array([True, True]), (640, 480), rules(min_side=1, overlap=1), Counter())
    assert len(loose.boxes) == 7
    assert loose.boxes[4].tolist() == [0, 200, 55, 60]  # clipped to the photo


def test_classes_are_named_or_the_category_or_the_only_one() -> None:
    assert wanted_classes(["animal"], None, "deer").tolist() == [True]
    assert wanted_classes(["cat", "dog"], None, "dog").tolist() == [False, True]
    assert wanted_classes(["cat", "dog"], ["dog", "cat"], "deer").tolist() == [True, True]
    for classes in (None, ["dog", "deer"]):
        with pytest.raises(InputError, match=r"detect\.classes.*does not know deer; it knows cat, dog"):
            wanted_classes(["cat", "dog"], classes, "deer")


def test_a_rule_that_is_off_leaves_the_fingerprint_alone() -> None:
    off = {"classes": None, "border": 0, "crowd": 1.0}
    assert in_force({**GIVEN, **off}) == GIVEN
    assert in_force({**GIVEN, **off, "border": 2}) == {**GIVEN, "border": 2}


@pytest.mark.parametrize(
    ("name", "value"),
    [("score", 1.5), ("overlap", "half"), ("most", 0), ("most", 2.5), ("min_side", 0), ("crop_px", 2), ("border", -1),
     ("crowd", 2), ("classes", "horse"), ("classes", []), ("radius", True), ("scroe", 0.5)],
)  # fmt: skip
def test_a_rule_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"detect\.{name}"):
        rules(**{name: value})
    with pytest.raises(InputError, match=r"detect\.most=null"):
        Rules.read({k: v for k, v in GIVEN.items() if k != "most"})
