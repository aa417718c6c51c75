"""Weights of others by name: animals3d's two networks against its own formulas, and ImageNet's for a trunk."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from safetensors.torch import save_file
from test_animals3d import PARTS, Evil, reference_folder, stored
from torch import Tensor, hub, nn

from models.acsm import ACSM
from models.checkpoint import checkpoint_bytes, load_checkpoint, weights_digest
from models.heatmap import PoseNet
from models.imagenet import load_imagenet
from models.resnet import ResNet
from tables import InputError

WIDTH, FEATURES = 8, 24
STEM = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """Networks begin with PyTorch's own random weights: the same whatever ran before."""
    torch.manual_seed(0)


def spread(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """A network's tensors with random numbers, the statistics of its normalisations too."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, t in net.state_dict().items():
        noise = torch.randn(t.shape, generator=g)
        positive = name.endswith("running_var")
        out[name] = (1 + 0.2 * noise.abs() if positive else t + 0.05 * noise) if t.is_floating_point() else t
    return out


# -- pose -----------------------------------------------------------------------------------------------------------


def pose_file(path: Path, depth: int, prefix: str = "") -> PoseNet:
    """The reference's file of a pose network (animals3d pose/model/pose_resnet.py), and the same network as ours."""
    net = PoseNet(16, depth, WIDTH, 12)
    net.load_state_dict(spread(net, depth))
    state = {}
    for name, t in net.state_dict().items():
        part, rest = name.split(".", 1)
        if part == "backbone":
            first, rest = rest.split(".", 1)
            state[f"{prefix}backbone.{STEM[first]}.{rest}"] = t
        else:
            state[f"{prefix}head.layers.{'3.' if part == 'head' else ''}{rest}"] = t
    torch.save(state, path)
    return net.eval()


@pytest.mark.parametrize(("depth", "prefix"), [(18, ""), (50, "module."), (34, "")])
def test_pose_networks(tmp_path: Path, depth: int, prefix: str) -> None:
    path = tmp_path / "best_model.pth"
    net = pose_file(path, depth, prefix)
    found = load_checkpoint(str(path))
    assert isinstance(found, PoseNet)
    assert not found.training
    assert found.notes["job"]["settings"]["image_size"] == 256
    assert found.config == {"keypoints": 16, "depth": depth, "width": WIDTH, "channels": 12}
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(found(images), net(images), rtol=0, atol=0)
    ours = tmp_path / "ours.safetensors"
    ours.write_bytes(checkpoint_bytes(found))
    for name, tensor in load_checkpoint(str(ours)).state_dict().items():
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=0, atol=0)


def test_files_from_before_torch_1_6(tmp_path: Path) -> None:
    path = tmp_path / "horse.pth"
    net = pose_file(path, 18)
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(load_checkpoint(str(path)).head.weight, net.head.weight)
    whole = path.read_bytes()
    for size in (2, 40, len(whole) // 2, len(whole) - 3):  # a download that broke off
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"horse\.pth"):
            load_checkpoint(str(path))


def test_digests_of_two_files_differ(tmp_path: Path) -> None:
    pose_file(tmp_path / "a.pth", 18)
    pose_file(tmp_path / "b.pth", 34)
    assert weights_digest(str(tmp_path / "a.pth")) != weights_digest(str(tmp_path / "b.pth"))


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "evil.pth"
    for zipped in (True, False):
        torch.save({"a": Evil(os.system, f"touch {trace}")}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="not a readable network of animals3d"):
            load_checkpoint(str(path))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"conv1.weight": torch.zeros(2)}, "holds no pose network and no ACSM"),
        ({"head.layers.3.weight": torch.zeros(16, 12, 1, 1)}, "not a readable network of animals3d"),
        ([torch.zeros(2)], "no state dict"),
        ({"img_encoder.enc_conv1.0.weight": torch.zeros(2)}, "without its template; call load_checkpoint"),
    ],
)
def test_other_files_of_torch_are_refused(tmp_path: Path, state: Any, message: str) -> None:
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(str(tmp_path / "x.pth"))
    assert "\n" not in str(caught.value)


# -- ACSM -----------------------------------------------------------------------------------------------------------


def acsm_state(image_size: int, seed: int = 0, parts: int = len(PARTS), cameras: int = 1) -> dict[str, Tensor]:
    """A state dict with the names of animals3d's network.py and random numbers, of a narrow network; of the multiplex
    above 1."""
    g = torch.Generator().manual_seed(seed)
    state = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, generator=g) / inputs**0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=g)

    def stack(name: str, inputs: int) -> None:
        linear(f"{name}.0.0", inputs, FEATURES)
        linear(f"{name}.1.0", FEATURES, FEATURES)

    trunk = spread(ResNet(18, WIDTH), seed)
    state.update({f"img_encoder.resnet_conv.resnet.{k}": v for k, v in trunk.items()})
    linear("img_encoder.resnet_conv.resnet.fc", 8 * WIDTH, 10)
    conv = nn.Sequential(nn.Conv2d(8 * WIDTH, 4 * WIDTH, 4, 2, 1), nn.BatchNorm2d(4 * WIDTH))
    state.update({f"img_encoder.enc_conv1.{k}": v for k, v in spread(conv, seed).items()})
    stack("img_encoder.enc_fc", 4 * WIDTH * (image_size // 64) ** 2)
    stack("cam_predictor.fc", FEATURES)
    for one, both in heads_of(cameras):
        stack(f"{one}.fc_layer", FEATURES)
        turn = 4 if cameras == 1 else 3
        for name, outputs in (("quat_predictor.pred_layer", turn), ("prob_predictor", 1),
                              ("scale_predictor.pred_layer", 1), ("trans_predictor.pred_layer", 2)):  # fmt: skip
            linear(f"{one}.{name}", FEATURES, outputs)
        stack(f"{both}.fc", FEATURES)
        for k in range(parts):
            each = f"{both}.part_transforms_pred.{k}"
            stack(f"{each}.fc_layer", FEATURES)
            linear(f"{each}.quat_predictor.pred_layer", FEATURES, 2)
            state[f"{each}.quat_predictor.axis"] = nn.functional.normalize(torch.randn(3, generator=g), dim=0)
            for name, outputs in (("prob_predictor", 1), ("scale_predictor.pred_layer", 1),
                                  ("trans_predictor.pred_layer", 3)):  # fmt: skip
                linear(f"{each}.{name}", FEATURES, outputs)
    if cameras > 1:
        linear("cam_predictor.prob_predictor", FEATURES, cameras)
    state["part_membership.membership"] = torch.zeros(40, parts)
    return state


def heads_of(cameras: int) -> list[tuple[str, str]]:
    """Names of the camera and of the part predictor of each camera (animals3d camera.py)."""
    if cameras == 1:
        return [("cam_predictor.camera_predictor", "cam_predictor.transform_predictor")]
    each = [("camera_predictor", "transform_predictors")] * cameras
    return [(f"cam_predictor.{one}.{h}", f"cam_predictor.{both}.{h}") for h, (one, both) in enumerate(each)]


def turned(points: np.ndarray, w: float, xyz: np.ndarray) -> np.ndarray:
    """q (0, X) q* by the two cross products."""
    cross = np.cross(xyz, points) + w * points
    return points + 2 * np.cross(xyz, cross)


def by_the_reference(
    state: dict[str, Tensor], image: Tensor, folder: Path, still: tuple[int, ...] = (), camera: int = 0, of: int = 1
) -> tuple[np.ndarray, float]:
    """Vertices [V,3] in the image of one image by a camera, as animals3d has them (network.py, camera.py and
    geom_utils.py:223-236, 259-307), part by part in its own axes, and the logit of the camera's probability."""
    trunk = ResNet(18, WIDTH).eval()
    head = "img_encoder.resnet_conv.resnet."
    inside = {k.removeprefix(head): v for k, v in state.items() if k.startswith(head) and ".fc." not in k}
    trunk.load_state_dict(inside)
    conv = nn.Sequential(nn.Conv2d(8 * WIDTH, 4 * WIDTH, 4, 2, 1), nn.BatchNorm2d(4 * WIDTH), nn.LeakyReLU(0.2)).eval()
    conv.load_state_dict({k.removeprefix("img_encoder.enc_conv1."): v for k, v in state.items() if "enc_conv1" in k})
    f = {k: v.double().numpy() for k, v in state.items()}
    with torch.inference_mode():
        flat = conv(trunk(image[None]))[0].flatten().double().numpy()

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return f[f"{name}.weight"] @ x + f[f"{name}.bias"]

    def stack(name: str, x: np.ndarray) -> np.ndarray:
        for layer in (f"{name}.0.0", f"{name}.1.0"):
            x = linear(layer, x)
            x = np.where(x > 0, x, 0.1 * x)
        return x

    features = stack("cam_predictor.fc", stack("img_encoder.enc_fc", flat))
    eye, limbs = heads_of(of)[camera]
    one = stack(f"{eye}.fc_layer", features)
    quaternion = linear(f"{eye}.quat_predictor.pred_layer", one)
    quaternion = quaternion / np.linalg.norm(quaternion) if of == 1 else oracle.multiplex(one, camera)
    scale = 0.05 * linear(f"{eye}.scale_predictor.pred_layer", one) + 1
    shift = linear(f"{eye}.trans_predictor.pred_layer", one)
    logit = linear(f"{eye}.prob_predictor", one)[0]
    both = stack(f"{limbs}.fc", features)
    moves = []
    for k in range(len(PARTS)):
        each = f"{limbs}.part_transforms_pred.{k}"
        c, s = linear(f"{each}.quat_predictor.pred_layer", stack(f"{each}.fc_layer", both))
        half = 0.0 if k in still else np.arctan2(s, c) / 2
        pivot = np.zeros(3) if k == 0 else np.array(PARTS[k][2], float)
        moves.append((np.cos(half), np.sin(half) * f[f"{each}.quat_predictor.axis"], pivot))

    def move(points: np.ndarray, k: int) -> np.ndarray:
        w, xyz, pivot = moves[k]
        return turned(points - pivot, w, xyz) + pivot

    verts = stored(folder)
    diameter = max(np.linalg.norm(verts[:, None] - verts, axis=-1).ravel())
    verts = verts * 2 / diameter - (verts * 2 / diameter).mean(0)
    chains = {0: [], 2: [0], 3: [0], 4: [0], 1: [0, 2]}  # ancestors, the root first
    alpha = np.repeat(np.eye(len(PARTS)), 8, 0)
    alpha[9] = [0, 0.25, 0.75, 0, 0]
    posed = np.zeros_like(verts)
    for k, ancestors in chains.items():
        own = move(verts, k)
        for above in ancestors:
            own = move(own, above)
        posed += alpha[:, k : k + 1] * own
    seen = scale * turned(posed, quaternion[0], quaternion[1:])
    return seen + np.array([*shift, 0]), logit


@pytest.mark.parametrize("inactive", [(), ("neck",), ("body",)])
@pytest.mark.parametrize("size", [64, 128])
def test_acsm(tmp_path: Path, size: int, inactive: tuple[str, ...]) -> None:
    folder = reference_folder(tmp_path, active=dict.fromkeys(inactive, "False"))
    state, path = acsm_state(size), tmp_path / "horse.pth"
    torch.save({f"module.{k}": v for k, v in state.items()}, path)
    net: Any = load_checkpoint(str(path), animals3d=str(folder))
    assert isinstance(net, ACSM)
    assert net.config["image_size"] == net.notes["job"]["settings"]["image_size"] == size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out = net(images)
    assert out.vertices.shape == (2, 1, 40, 3)
    still = tuple(i for i, (name, *_) in enumerate(PARTS) if name in inactive)
    for i, image in enumerate(images):
        expected, _ = by_the_reference(state, image, folder, still)
        np.testing.assert_allclose(out.vertices[i, 0].numpy(), expected, atol=1e-4)
        np.testing.assert_allclose(out.keypoints[i, 0].numpy(), expected[:32:2, :2], atol=1e-4)
    assert out.prob.tolist() == [[1], [1]]

    ours = tmp_path / "horse.safetensors"
    ours.write_bytes(checkpoint_bytes(net))
    with torch.inference_mode():
        again = load_checkpoint(str(ours))(images)
    torch.testing.assert_close(again.vertices, out.vertices, rtol=0, atol=0)


@pytest.mark.parametrize("inactive", [(), ("body",)])
def test_the_multiplex(tmp_path: Path, inactive: tuple[str, ...]) -> None:
    cameras = 3
    folder = reference_folder(tmp_path, active=dict.fromkeys(inactive, "False"))
    state, path = acsm_state(64, cameras=cameras), tmp_path / "horse.pth"
    torch.save(state, path)
    net: Any = load_checkpoint(str(path), animals3d=str(folder))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out = net(image)
    still = tuple(i for i, (name, *_) in enumerate(PARTS) if name in inactive)
    logits = []
    for h in range(cameras):
        expected, logit = by_the_reference(state, image[0], folder, still, h, cameras)
        np.testing.assert_allclose(out.vertices[0, h].numpy(), expected, atol=1e-4)
        logits.append(logit)
    np.testing.assert_allclose(out.prob[0].numpy(), np.exp(logits) / np.exp(logits).sum(), atol=1e-5)
    ours = tmp_path / "horse.safetensors"
    ours.write_bytes(checkpoint_bytes(net))
    with torch.inference_mode():
        assert torch.equal(load_checkpoint(str(ours))(image).vertices, out.vertices)


def test_acsm_of_another_template_is_refused(tmp_path: Path) -> None:
    folder, path = reference_folder(tmp_path), tmp_path / "cow.pth"
    torch.save(acsm_state(64, parts=3), path)
    with pytest.raises(InputError, match=r"not a readable network.*part_transforms_pred\.3"):
        load_checkpoint(str(path), animals3d=str(folder))
    with pytest.raises(InputError, match=r"folder=.*no such file"):
        load_checkpoint(str(path), animals3d=str(tmp_path))
    torch.save(acsm_state(64) | {"cam_predictor.prob_predictor.weight": torch.zeros(8, 4)}, path)
    with pytest.raises(InputError, match=r"not a readable network.*camera_predictor\.0"):
        load_checkpoint(str(path), animals3d=str(folder))


# -- ImageNet -------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the URL it is served at; torch's cache lies in a folder of its own."""
    monkeypatch.setattr(hub, "get_dir", lambda: str(tmp_path / "cache"))
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def imagenet(depth: int = 18) -> dict[str, Tensor]:
    torch.manual_seed(depth)
    fc = {"fc.weight": torch.zeros(10, 8 * WIDTH), "fc.bias": torch.zeros(10)}
    return spread(ResNet(depth, WIDTH), depth) | fc


def test_weights_from_a_file(tmp_path: Path) -> None:
    state = imagenet()
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.pth")
    for name in ("a.pth", "a.safetensors", "old.pth"):
        trunk = ResNet(18, WIDTH)
        load_imagenet(trunk, str(tmp_path / name))
        for key, tensor in trunk.state_dict().items():
            torch.testing.assert_close(tensor, state[key], rtol=0, atol=0)


def test_weights_from_a_url_are_fetched_once_and_checked(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = site
    state = imagenet()
    torch.save(state, folder / "plain.pth")
    digest = hashlib.sha256((folder / "plain.pth").read_bytes()).hexdigest()[:8]
    good, bad = f"resnet18-{digest}.pth", "resnet18-0123abcd.pth"
    for name in (good, bad):
        (folder / name).write_bytes((folder / "plain.pth").read_bytes())
    trunk = ResNet(18, WIDTH)
    load_imagenet(trunk, f"{url}/{good}")
    (folder / good).unlink()
    load_imagenet(trunk, f"{url}/{good}?again=1")
    torch.testing.assert_close(trunk.conv1.weight.data, state["conv1.weight"])
    for name, message in ((bad, "invalid hash"), ("gone.pth", "404")):
        with pytest.raises(InputError, match=message):
            load_imagenet(trunk, f"{url}/{name}")
    assert os.listdir(tmp_path / "cache" / "checkpoints") == [good]


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    trunk = ResNet(18, WIDTH)
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    torch.save(imagenet(34), tmp_path / "34.pth")
    torch.save(imagenet(50), tmp_path / "50.pth")
    torch.save({"conv1.weight": torch.zeros(WIDTH, 3, 7, 7)}, tmp_path / "part.pth")
    torch.save({"a": Evil(os.system, f"touch {tmp_path / 'ran'}")}, tmp_path / "evil.pth")
    (tmp_path / "a.safetensors").write_bytes(b"none")
    for name, message in (
        ("34.pth", "layer1.2"), ("50.pth", "layer1.0.conv1"), ("part.pth", "bn1.weight does not fit"),
        ("evil.pth", "no file of tensors alone"), ("a.safetensors", "cannot be read"), ("none.pth", "No such file"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            load_imagenet(trunk, str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
    for key, tensor in trunk.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=0, atol=0)
