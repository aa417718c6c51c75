"""The report is one file with everything in it; it says what is missing and is refused only for an unknown run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from tiny import CATEGORY, TOP_N, shared_lake

from models.template import Template
from pipelines.report import write_report
from pipelines.report_mesh import shade, turntable
from pipelines.run_record import open_run
from tables import InputError, Lake


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Fewer frames than a person would like."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.report_sources.FRAMES", 2)
        yield


@pytest.fixture(scope="module")
def lake() -> Lake:
    return shared_lake()


@pytest.fixture(scope="module")
def html(lake: Lake) -> str:
    return html_of(lake)


@pytest.fixture
def copy(lake: Lake, tmp_path: Path) -> Lake:
    shutil.copytree(lake.uri, tmp_path / "lake", ignore=shutil.ignore_patterns("sandbox", "report.html"))
    return Lake(str(tmp_path / "lake"))


def html_of(lake: Lake, **kwargs: int) -> str:
    return Path(write_report(lake, CATEGORY, "default", **kwargs)).read_text(encoding="utf-8")


def sections(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_one_file_with_everything_inside(html: str) -> None:
    assert sections(html) == [
        "AUC by round", "What the crawl gave", "Kept and rejected", "Shapes over photos", "The template", "Lineage",
    ]  # fmt: skip
    references = re.findall(r'(?:src|href|srcset|url)\s*[=(]\s*"?([^")\s>]+)', html)
    # Fragments are matplotlib's own markers within the same SVG.
    assert not [r for r in references if not r.startswith(("data:image/", "#", "url(#"))]
    assert "<script" not in html
    assert "<link" not in html
    assert len(html) < 6_000_000


def test_numbers_come_from_the_run(lake: Lake, html: str) -> None:
    record = open_run(lake, "default")
    for n in record.numbers:
        assert f"{record.metric(n, 'test')['auc_06_10']:.2f}" in html  # type: ignore[index]
    assert record.best == 2
    assert f"{record.round(0)['items']}</b><span>labelled animals" in html
    assert f"{TOP_N}</b><span>pseudo-labels" in html


def test_crops_carry_the_reason_and_both_poses(lake: Lake, html: str) -> None:
    kept, lost = html.count('<span class="tag">kept'), html.count('<span class="tag">rejected')
    assert (kept, lost) == (2 * TOP_N, 2 * 2 * 6)  # two rounds; the rejected in two rows of six
    assert "rank 1 of" in html
    assert html.count('<g class="three">') > kept + lost  # labelled photos come on top
    assert html_of(lake, crops=1).count('<span class="tag">') == 8


def test_shapes_stand_at_fixed_places_of_the_errors(html: str) -> None:
    ranks = [int(r) for r in re.findall(r"<b>(\d+)</b> of \d+ by error", html)]
    assert ranks == sorted(ranks)
    assert len(ranks) >= 7


def test_the_same_run_gives_the_same_page(lake: Lake, html: str) -> None:
    assert html_of(lake) == html


def test_a_run_that_is_not_there_is_named(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run=nobody: .*has the runs default"):
        write_report(lake, CATEGORY, "nobody")
    with pytest.raises(InputError, match=r"run=default: .*no runs"):
        write_report(Lake(str(tmp_path)), CATEGORY, "default")


def test_what_the_lake_lost_stops_nothing(copy: Lake) -> None:
    for gone in (("models/acsm",), ("photos", "selections"), ("pseudo_labels", "instances", "labels")):
        for table in gone:
            shutil.rmtree(f"{copy.uri}/{table}")
        assert len(sections(html_of(copy))) == 6, gone


def test_a_run_that_only_began(copy: Lake) -> None:
    for name in ("metrics.json", "rounds.json", "run.json"):
        Path(copy.uri, "runs/default", name).unlink()
    assert "no round is finished yet" in html_of(copy)


def test_a_run_without_rounds_test_split_masks_or_cameras(copy: Lake) -> None:
    folder = "runs/default"
    rows = [m for m in copy.files.read_json(f"{folder}/metrics.json") if m["round"] == 0 and m["split"] == "val"]
    rows[0] |= {"camera_error_deg": None, "miou": None}
    copy.files.write_json(f"{folder}/metrics.json", rows)
    copy.files.write_json(f"{folder}/rounds.json", copy.files.read_json(f"{folder}/rounds.json")[:1])
    Path(copy.uri, folder, "run.json").unlink()
    html = html_of(copy)
    assert "on the validation split" in html
    assert "No round has selected pseudo-labels yet" in html


def test_the_template_turns_as_a_whole_within_the_picture(lake: Lake) -> None:
    frames = turntable(Template.load(f"{lake.uri}/sandbox/tiny/animal.template"), 4, 64)
    assert frames.shape == (4, 64, 64, 4)
    assert (frames[..., 3].mean((1, 2)) / 255 > 0.08).all()
    edge = np.concatenate([frames[:, [0, -1]].reshape(-1, 4), frames[:, :, [0, -1]].reshape(-1, 4)])
    assert not edge[:, 3].any()


def test_light_comes_from_the_upper_left_and_the_viewers_side() -> None:
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.9)
    grey: Any = SimpleNamespace(faces=ball.faces, weights=np.ones((len(ball.vertices), 1)), parts=("ball",))
    image = shade(np.asarray(ball.vertices)[None], grey, 64)[0].astype(np.float64)
    assert image[32, 32, 3] == 255
    assert image[0, 0, 3] == 0
    upper, middle, lower = (image[i, i, :3].mean() for i in (18, 32, 46))
    assert upper > middle > lower > 40
