"""ViTPose through transformers as a 2D network: joints by name, its maps in our cells, a stage that takes it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from tiny import CATEGORY, _train_settings, shared_lake
from torch.nn.functional import grid_sample

from models.checkpoint import load_checkpoint, weights_digest
from models.heatmap import PoseNet, decode
from models.predict import predict_all
from models.predictor import Predictor
from models.vitpose import AP10K, cells_in_maps
from pipelines.keypoint_worker import KeypointWorker
from pipelines.keypoints import plan_infer
from pipelines.model_files import check_model, pick_model
from tables import QUADRUPED, InputError, Lake, to_numpy
from trainers.data import load_labelled
from trainers.evaluate import evaluate_pose
from trainers.start import check_trunk

LIBRARY = "needs the extra: pip install 'wildshape[hf]'"
AP_10K = (
    "L_Eye", "R_Eye", "Nose", "Neck", "Root of tail", "L_Shoulder", "L_Elbow", "L_F_Paw", "R_Shoulder", "R_Elbow",
    "R_F_Paw", "L_Hip", "L_Knee", "L_B_Paw", "R_Hip", "R_Knee", "R_B_Paw",
)  # fmt: skip
UNKNOWN = [QUADRUPED.names.index(n) for n in ("L_ear", "R_ear", "Throat", "Withers")]


def test_a_gaussian_in_unbiased_maps_comes_back_where_it_was() -> None:
    height, width, side = 256, 192, 192
    at = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 150 + 20  # in pixels of the square
    x = at[:, 0] * 47 / 191  # the first cell's middle is the first pixel's, the last one's the last one's
    y = (at[:, 1] + 32) * 63 / 255
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(48), indexing="ij")
    maps = torch.exp(-((columns - x[:, None, None]) ** 2 + (rows - y[:, None, None]) ** 2) / 8)[:, None]
    grid = cells_in_maps(side, height, width).expand(len(maps), -1, -1, -1)
    found = decode(grid_sample(maps, grid, mode="bicubic", align_corners=True))[:, 0]
    cells = (found[:, :2] - ((at + 0.5) / side * 2 - 1)).abs() * (side / 4) / 2
    assert cells.max() < 0.05
    assert found[:, 2].min() > 0.9


def vitposes(folder: Path) -> dict[str, str]:
    """`hf:` paths of small ViTPoses of random weights: with experts, without, and one of a person."""
    transformers = pytest.importorskip("transformers", reason=LIBRARY)
    made = {}
    people = [f"joint_{i}" for i in range(17)]
    for name, joints, experts in (("plus", AP_10K, 6), ("plain", QUADRUPED.names, 1), ("person", people, 1)):
        trunk = transformers.VitPoseBackboneConfig(
            image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            mlp_ratio=2, num_experts=experts, part_features=8, out_indices=[2],
        )  # fmt: skip
        config = transformers.VitPoseConfig(
            backbone_config=trunk, use_simple_decoder=name == "plain", id2label=dict(enumerate(joints))
        )
        torch.manual_seed(1)
        net = transformers.VitPoseForPoseEstimation(config)
        torch.nn.init.normal_(net.head.conv.weight, std=0.5)  # maps that differ from place to place
        net.save_pretrained(folder / name)
        made[name] = f"hf:{folder / name}"
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return vitposes(tmp_path_factory.mktemp("vitposes"))


def test_the_3d_network_cannot_start_from_its_trunk(folders: dict[str, str]) -> None:
    train = _train_settings() | {"acsm": {**_train_settings()["acsm"], "start": "pose"}}
    check_trunk(PoseNet(width=8, channels=16), train)
    with pytest.raises(InputError, match=r"^train\.acsm\.start=pose: the 2D network has not the trunk"):
        check_trunk(PoseNet(width=16, channels=16), train)
    with pytest.raises(InputError, match="use imagenet or null"):
        check_trunk(load_checkpoint(folders["plain"]), train)
    train["acsm"]["start"] = None
    check_trunk(load_checkpoint(folders["plain"]), train)


def test_joints_by_name_and_those_it_does_not_know(folders: dict[str, str]) -> None:
    net: Any = load_checkpoint(folders["plus"])
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = net(images)
        padded = torch.nn.functional.pad(images, (0, 0, 8, 8))
        theirs = net.net(pixel_values=padded, dataset_index=torch.full((3,), AP10K)).heatmaps
        other = net.net(pixel_values=padded, dataset_index=torch.zeros(3, dtype=torch.int64)).heatmaps
    assert maps.shape == (3, 16, 12, 12)
    assert theirs.shape == (3, 17, 16, 12)
    assert not torch.allclose(theirs, other)  # the experts differ
    ours = grid_sample(theirs, cells_in_maps(48, 64, 48).expand(3, -1, -1, -1), mode="bicubic", align_corners=True)
    for mine, his in (("Nose", "Nose"), ("Tail", "Root of tail"), ("L_F_elbow", "L_Shoulder"), ("R_B_paw", "R_B_Paw")):
        torch.testing.assert_close(maps[:, QUADRUPED.names.index(mine)], ours[:, AP_10K.index(his)])
    joints = decode(maps)
    assert (joints[:, UNKNOWN, 2] == 0).all()
    assert joints[:, UNKNOWN, :2].abs().max() < 2 / 12  # in the middle, to a cell
    known = [i for i in range(16) if i not in UNKNOWN]
    assert (joints[:, known, 2] > 0).any()


def test_other_networks_are_refused_in_one_line(folders: dict[str, str], tmp_path: Path) -> None:
    for name, weights in (("headless", None), ("torn", b"no tensors")):
        folder = shutil.copytree(folders["plain"].removeprefix("hf:"), tmp_path / name)
        kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("head.")}
        (folder / "model.safetensors").write_bytes(weights or save(kept, {"format": "pt"}))
    for path, why in (
        (f"hf:{tmp_path / 'headless'}", "lacks weights: head"), (f"hf:{tmp_path / 'torn'}", "can load"),
        (folders["person"], "lacks the joints L_eye"), (f"hf:{tmp_path}", "cannot|can load"),
        (f"hf:{tmp_path / 'nowhere'}", "can load"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why) as caught:
            check_model(path, "pose", "pose")
        assert caught.value.argument == "pose"
        assert "\n" not in str(caught.value)
    with pytest.MonkeyPatch.context() as patch:  # a relative folder is told whole: actors have another place
        patch.chdir(os.path.dirname(folders["plus"].removeprefix("hf:")))
        given = f"hf:{os.path.basename(folders['plus'])}"
        assert pick_model(Lake(str(tmp_path)), "pose", "x", given, "pose") == folders["plus"]
    with pytest.raises(InputError, match="holds a ViTPose, not a ACSM"):
        check_model(folders["plus"], "acsm", "acsm")


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'wildshape\[hf\]'"):
        check_model("hf:usyd-community/vitpose-plus-small", "pose", "pose")


@pytest.mark.parametrize("name", ["plus", "plain"])
def test_it_looks_through_the_views_like_any_2d_network(folders: dict[str, str], name: str) -> None:
    net: Any = load_checkpoint(folders[name])
    crops = np.random.default_rng(0).integers(0, 255, (3, 96, 96, 3), np.uint8)
    found = Predictor({"pose": net}, net.config["image_size"], "cpu")(crops)["keypoints_mt"]
    assert found.shape == (3, 7, 16, 3)
    assert np.isfinite(found).all()
    alone = predict_all({"pose": net}, torch.from_numpy(crops[1:2]), net.config["image_size"])
    np.testing.assert_allclose(found[1:2], alone["keypoints_mt"].numpy(), atol=1e-4)
    if name == "plus":
        assert (found[:, :, UNKNOWN, 2] == 0).all()
        assert np.abs(found[:, :, UNKNOWN, :2]).max() < 0.3  # the middle stays in the middle, whatever the view


def test_pseudo_labels_by_it(folders: dict[str, str], tmp_path: Path) -> None:
    import shutil

    from tables import Lake

    shutil.copytree(shared_lake().uri, tmp_path / "lake")
    lake = Lake(str(tmp_path / "lake"))
    run = lake.files.read_json("runs/default/run.json")
    models = {"pose": folders["plus"], "aux": run["networks"]["pose"], "acsm": run["rounds"][0]["model"]}
    instances = lake.latest("instances", CATEGORY)
    pseudo, args = plan_infer(lake, CATEGORY, instances, models, 1)
    assert (args["image_size"], args["aux_size"]) == (48, 64)
    assert pseudo.identity["models"]["pose"] == weights_digest(folders["plus"]) != weights_digest(folders["plain"])
    said = KeypointWorker(**args)("all", None)
    rows = pseudo.read()
    assert said == {"instances": len(rows)}
    joints = to_numpy(rows["keypoints"], 16, 3)
    assert np.isfinite(joints).all()
    assert (joints[:, UNKNOWN, 2] == 0).all()
    assert set(rows["model_pose"].to_pylist()) == {weights_digest(folders["plus"])}
    assert np.isfinite(to_numpy(rows["heatmap_3d"], 16)).all()
    net: Any = load_checkpoint(folders["plus"])
    worth = evaluate_pose(net, load_labelled(lake, CATEGORY, "test", 48), 48)
    assert 0 <= worth["auc_06_10"] <= 100
