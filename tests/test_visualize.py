"""`visualize`: pictures of a split and a page of them that opens from disk."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_one_photo import readme_commands

from models.photo import decode_photo
from pipelines import visualize
from pipelines.turning import gif, turn
from tables import Lake


@pytest.fixture
def call(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process and in an empty folder; the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["visualize", f"lake={lake.uri}", *arguments])
        try:
            visualize.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def test_the_readme_command_makes_a_page_and_its_pictures(call: Any, tmp_path: Path) -> None:
    _, _, module, *arguments = readme_commands()[-1].split()
    assert module == "pipelines.visualize"
    arguments = [a for a in arguments if not a.startswith(("run=", "lake="))]
    assert call(*arguments, "n=3", "frames=4") == 0
    out = tmp_path / "visualization"
    names = sorted(p.name for p in out.iterdir())
    ids = sorted({n.removesuffix(".jpg") for n in names if n.endswith(".jpg")})
    assert len(ids) == 3
    assert names == sorted([*(i + end for i in ids for end in (".jpg", ".gif", "_shape.png")), "index.html"])
    html = (out / "index.html").read_text(encoding="utf-8")
    references = set(re.findall(r'(?:src|href)="([^"]*)"', html))
    assert references == set(names) - {"index.html"}, "the page shows every picture, and nothing from elsewhere"
    assert "pseudo-labels of quadruped in run default" in html
    assert html.count("joints within 10 %") == 3
    for name in ids:
        with Image.open(out / f"{name}.gif") as turning:
            assert (turning.n_frames, turning.size, turning.info["loop"]) == (4, (256, 256), 0)  # type: ignore[attr-defined]
        shape = Image.open(out / f"{name}_shape.png")
        assert (shape.mode, shape.size) == ("RGBA", (256, 256))
        assert decode_photo((out / f"{name}.jpg").read_bytes()).shape == (256, 256, 3)  # type: ignore[union-attr]
        assert np.asarray(shape)[..., 3].any()


def test_the_same_animals_every_time_and_no_more_than_there_are(call: Any, tmp_path: Path) -> None:
    assert call("n=1", "frames=2", "out=a") == 0
    assert call("n=99", "frames=2", "split=val", "out=b") == 0
    assert len(list((tmp_path / "a").glob("*.gif"))) == 1
    assert len(list((tmp_path / "b").glob("*.gif"))) == 4


def test_what_is_wrong_is_one_line(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "split=dev: use one of train": ["split=dev"],
        "n=0: must be a whole number": ["n=0"],
        "frames=1: must be a whole number": ["frames=1"],
        "out=null: name a local folder": ["out=null"],
        "run=nobody: ": ["run=nobody"],
    }
    for said, arguments in wrong.items():
        assert call(*arguments) == 2, said
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: {said}"), errors
        assert errors.count("\n") == 1


def test_a_turn_begins_as_given_and_stands_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    pose = rng.normal(size=(50, 3)) * (1, 2, 3) + (4, 5, 6)
    views = turn(pose, 6)
    assert np.abs(views[..., :2]).max() == pytest.approx(0.94)
    centred = pose - (pose.min(0) + pose.max(0)) / 2
    np.testing.assert_allclose(views[0] / views[0, 0, 1] * centred[0, 1], centred, atol=1e-9)
    np.testing.assert_allclose(views[..., 1], views[:1, :, 1].repeat(6, 0), atol=1e-12)  # heights stay
    np.testing.assert_allclose(views[3][:, ::2], -views[0][:, ::2], atol=1e-12)  # half a turn


def test_a_gif_keeps_its_colours_on_white(tmp_path: Path) -> None:
    frames = np.zeros((2, 8, 8, 4), np.uint8)
    frames[0, 2:6, 2:6] = (200, 40, 20, 255)
    frames[1, 2:6, 2:6] = (20, 40, 200, 255)
    (tmp_path / "x.gif").write_bytes(gif(frames))
    with Image.open(tmp_path / "x.gif") as picture:
        for n, color in enumerate(((200, 40, 20), (20, 40, 200))):
            picture.seek(n)
            shown = np.asarray(picture.convert("RGB")).astype(int)
            assert shown[0, 0].tolist() == [255, 255, 255]
            assert np.abs(shown[4, 4] - color).max() < 8
