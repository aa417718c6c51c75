"""docs/prepare-data.md as its reader goes through it, on files of the data sets' forms, laid out as it says.

One line of each format goes through the stage, and so do the evaluations; the other lines are read as the stage reads.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documented import ROOT, call, ours, pieces
from omegaconf import OmegaConf
from PIL import Image
from test_animals3d import reference_folder
from test_annotations import PASCAL_NAMES, pascal
from test_reference_checkpoint import acsm_state, pose_file

from pipelines.ingest import READERS
from tables import QUADRUPED, Lake
from tables.skeleton import _SAME_NAMES
from trainers.data import label_table

PIECES = pieces("docs/prepare-data.md")
CONF = OmegaConf.load(ROOT / "conf" / "ingest.yaml")
AP10K = [name or f"other_{i}" for i, name in enumerate(_SAME_NAMES["AP-10K"])]
ANIMAL_POSE = list(_SAME_NAMES["Animal Pose"])
BOX = [6, 5, 40, 30]


def photo(path: Path) -> str:
    """A photo with content of its own, since animals are known by their photo's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(abs(hash(str(path))) % 2**32).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path.name


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def coco(names: list[str], files: list[str]) -> dict[str, Any]:
    """COCO keypoint JSON of a horse in each photo, with a mask."""
    joints = [n for i in range(len(names)) for n in (8.0 + i, 7.0 + i, 2)]
    polygon = [[6, 5, 46, 5, 46, 35, 6, 35]]
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(files)],
        "categories": [{"id": 1, "name": "horse", "keypoints": names}, {"id": 2, "name": "zebra", "keypoints": names}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": BOX, "keypoints": joints, "segmentation": polygon}
            for i in range(len(files))
        ],
    }


def animals3d(*named: tuple[str, str]) -> list[dict[str, Any]]:
    joints = [[8.0 + i, 7.0 + i, 1] for i in range(16)]
    return [{"img_id": name, "img_path": file, "img_bbox": BOX, "joints": joints} for name, file in named]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all the downloads: of each a photo that is wanted, and one that is not."""
    root = tmp_path_factory.mktemp("prepare")
    for split in ("train", "val", "test"):
        name = photo(root / "ap10k" / "data" / f"{split}.jpg")
        write(root / "ap10k" / "annotations" / f"ap10k-{split}-split1.json", coco(AP10K, [name]))

    files = {"1": "2007_000063.jpg", "2": "ho105.jpeg"}
    category = {"id": 4, "name": "horse", "keypoints": ANIMAL_POSE}
    corners = [BOX[0], BOX[1], BOX[0] + BOX[2], BOX[1] + BOX[3]]
    rows = [
        {"image_id": i, "bbox": corners, "category_id": 4, "keypoints": [[8 + k, 9, 1] for k in range(16)]}
        for i in (1, 2)
    ]
    write(root / "animalpose" / "keypoints.json", {"images": files, "categories": [category], "annotations": rows})
    photo(root / "animalpose" / "images" / files["2"])

    photo(root / "VOC2012" / "JPEGImages" / "2007_1.jpg")
    write(root / "PASCAL2011_animal_annotation" / "horse" / "2007_1_1.xml", pascal(PASCAL_NAMES, "2007_1", "horse"))

    name = photo(root / "coco" / "train2017" / "000000000001.jpg")
    write(root / "coco" / "horse_keypoints.json", coco(list(QUADRUPED.names), [name]))

    data = root / "cachedir" / "data"
    for source, file, ids in (
        ("pascal", "horse_all", "horse_train"), ("coco", "horse", "horse_train"), ("pascal", "horse", "horse_val"),
        ("animal_pose", "horse", "horse_val"),
    ):  # fmt: skip
        stem = f"train2017/{file}_{ids}.jpg"
        photo(root / "data" / source / "images" / stem)
        # The other element is in no list of the split, and its photo need not be there.
        write(data / source / "annotations" / f"{file}.json", animals3d((f"{file}1", stem), ("other", "gone.jpg")))
        write(data / source / "filelists" / f"{ids}.txt", f"{file}1")
    reference_folder(root)
    (root / "cachedir" / "checkpoints").mkdir()
    torch.save(acsm_state(64), root / "cachedir" / "checkpoints" / "horse.pth")
    (root / "results" / "checkpoints").mkdir(parents=True)
    pose_file(root / "results" / "checkpoints" / "horse.pth", 18)
    return root


@pytest.mark.ray
def test_every_line_of_the_page(work: Path, ray_local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    staged: set[str] = set()
    animals = {"train": 0, "val": 0, "test": 0}
    commands = [words for piece in PIECES if piece.language == "sh" for words in ours(piece.text)]
    assert [words[0] for words in commands] == ["ingest"] * 10 + ["evaluate"] * 2
    for piece in PIECES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a reader sees a warning, and goes on
            if piece.language == "python":
                exec(compile(piece.text, str(piece), "exec"), {})
                continue
            for words in ours(piece.text):
                settings = OmegaConf.merge(CONF, OmegaConf.from_dotlist(words[1:])) if words[0] == "ingest" else None
                if settings is None or settings.source.format not in staged:
                    call(words)
                if settings is not None:
                    staged.add(settings.source.format)
                    animals[settings.split] += count(settings)
    assert staged == {"coco", "animal_pose", "pascal", "animals3d"}
    assert animals == {"train": 5, "val": 1, "test": 4}
    assert (work / "animalpose" / "own.txt").read_text() == "2"

    rows = label_table(Lake("lake"), "horse", ["instance_id", "split", "mask"])
    assert sorted(split == "test" for split in rows["split"].to_pylist()) == [False, False, False, True]
    assert rows["mask"].null_count == 3  # all but AP-10K's
    evaluated = [r for d in Lake("lake").datasets("metrics", "horse") for r in d.read().to_pylist()]
    assert [(r["split"], r["instances"]) for r in evaluated] == [("test", 1)] * 2


def count(settings: Any) -> int:
    """Animals that `ingest` would take, all with their joints, their box and their photo."""
    source = settings.source
    ids = frozenset(Path(source.ids).read_text().split()) if source.ids else None
    photos = READERS[source.format](source.path, source.images, settings.category, ids)
    found = [animal for p in photos for animal in p["animals"]]
    for animal in found:
        assert list(map(float, animal["bbox"])) == (
            [5.0, 6.0, 30.0, 40.0] if source.format == "pascal" else list(map(float, BOX))
        )
        assert sum(v > 0 for v in animal["keypoints"][2::3]) >= 12
    return len(found)
