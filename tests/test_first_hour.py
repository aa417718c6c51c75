"""docs/first-hour.md, below the run itself: a photo out of the lake, and what the run's networks say of it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from documented import call, ours, pieces
from tiny import CATEGORY, shared_lake

from models.checkpoint import checkpoint_bytes
from models.heatmap import Detector

# A detector of random weights, as the tiny run has none: it finds something everywhere, and is sure of nothing.
LOOSE = ["detector_model=detector.safetensors", "detect.score=0", "detect.most=1", "detect.min_side=8"]


def test_predict_on_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(shared_lake().uri, tmp_path / "lake")
    torch.manual_seed(0)
    job = {"category": CATEGORY, "settings": {"image_size": 96}}
    (tmp_path / "detector.safetensors").write_bytes(checkpoint_bytes(Detector(width=8, channels=16), {"job": job}))
    monkeypatch.chdir(tmp_path)
    code, predict, visualize = pieces("docs/first-hour.md", "Predict on a photo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a reader sees a warning, and goes on
        exec(compile(code.text, str(code), "exec"), {})
        for piece, more in ((predict, LOOSE), (visualize, ["frames=2"])):
            ((name, *words),) = ours(piece.text)
            try:
                call([name, *words, *more])
            except SystemExit as end:
                if end.code:
                    raise
    assert json.loads(Path("predictions/photo.json").read_text())["animals"]
    for made in ("predictions/photo.png", "predictions/photo-1.glb", "visualization/index.html"):
        assert Path(made).exists()
