"""The crawl's page is one file with everything in it, says what its parts say, and trusts nothing that it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from crawled import SUMMARY, crawled, row
from hydra import compose, initialize_config_module

from pipelines.crawl_figures import duration, pace
from pipelines.crawl_page import RETRY, write_page
from tables import Dataset, schema


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return crawled(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def html(dataset: Dataset) -> str:
    return html_of(dataset)


def html_of(dataset: Dataset, **more: Any) -> str:
    path = Path(write_page(dataset, {**SUMMARY, **more}))
    assert path == Path(dataset.files.uri) / dataset.path / "summary.html"
    return path.read_text(encoding="utf-8")


def test_one_file_with_everything_inside(html: str) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Throughput", "What came of every address", "Hosts", "Left out before asking", "Contact sheet",
        "What to do next",
    ]  # fmt: skip
    loaded = re.findall(r'(?:src|srcset|xlink:href|url)\s*[=(]\s*"?([^")\s>]+)', html)
    assert loaded
    assert all(r.startswith(("data:", "#")) for r in loaded)
    assert "<script" not in html


def test_the_numbers_are_the_summary_and_the_notes(html: str) -> None:
    text = re.sub(r"<[^>]+>", " ", html.replace("<wbr>", ""))
    text = re.sub(r"\s+", " ", text)
    assert "22 photos for horse" in text
    assert "85.7 % of addresses gave one" in text
    assert "28 addresses asked so far: 24 gave a photo, 2 of them a copy of another." in text
    assert "gone the photo is no longer there (404, 410) 2 7.1 %" in text
    assert "timeout the host took too long; may heal 1 3.6 %" in text
    assert "farm0.example.org 10 80.0 %" in text
    assert "none of the words in title, description or tags 900 90.0 %" in text
    assert "The crawl rested once for more than a minute" in text
    assert "1 failure may have healed" in text


def test_the_sheet_shows_each_photo_once_with_whose_it_is(html: str) -> None:
    figures = re.findall(r"<figure><a.*?</figure>", html)
    shown = [re.findall(r'alt="(.*?)"', f)[0] for f in figures]
    assert sorted(shown) == [f"yfcc:{7_000_000 + i}" for i in range(22)]
    for name, figure in zip(shown, figures, strict=True):
        number = int(name[5:]) - 7_000_000
        assert f"<b>Ana {number}</b>" in figure
        assert f"/licenses/{'by-nc' if number % 4 else 'by'}/2.0/" in figure
        assert f'href="http://www.example.org/photos/{7_000_000 + number}/"' in figure


def test_the_same_crawl_gives_the_same_page(dataset: Dataset, html: str) -> None:
    assert html_of(dataset) == html


def test_nothing_that_it_shows_is_trusted(tmp_path: Path) -> None:
    odd = {
        "photo_id": 'x:"><script>', "author": "<script>alert(1)</script>", "page_url": "javascript:alert(1)",
        "license": "<i>mine</i> javascript:alert(2)", "bytes": b"no picture",
    }  # fmt: skip
    counts = {"<script>": 3}
    html = html_of(crawled(tmp_path, **odd), status=counts, dropped=counts, suspects=counts)
    assert "3 times &lt;script&gt;" in html
    assert "<script" not in html
    assert 'href="javascript' not in html
    assert html.count("cannot be decoded") == 1


def test_a_crawl_without_photos_and_notes_has_a_page(tmp_path: Path) -> None:
    dataset = crawled(tmp_path)
    for part in dataset.parts():
        dataset.forget(part)
    dataset.write("aa", pa.Table.from_pylist([row(1, "gone")], schema("photos")), schema("photos"))
    html = html_of(dataset, status={"gone": 1}, photos=0, duplicates=0, rejected=0, dropped={}, wanted=1)
    for text in ("carry no times", "do not say which hosts", "no photo to show", "Every row", "No photo came"):
        assert text in html


def test_pace_keeps_every_photo_and_leaves_pauses_out() -> None:
    notes = [
        {"began": 100.0, "ended": 110.0, "status": {"ok": 30, "gone": 2}, "body_bytes": 5e6},
        {"began": 105.0, "ended": 125.0, "status": {"ok": 50}, "body_bytes": 7e6},
        {"began": 9000.0, "ended": 9005.0, "status": {"timeout": 4}, "body_bytes": 0},
        {"rows": 3},
    ]
    found = pace(notes)
    assert found is not None
    assert found.seconds == pytest.approx(30)
    assert found.pauses == pytest.approx([25])
    step = np.diff(found.edges)
    assert (found.photos @ step, found.megabytes @ step) == (pytest.approx(80), pytest.approx(12))
    assert found.photos[0] == pytest.approx(3)
    assert found.photos[-1] == 0
    assert pace([{"rows": 3}]) is None


def test_durations_read_well() -> None:
    assert [duration(s) for s in (0.25, 48, 119, 210, 7200, 90_000, 864_000)] == [
        "0.2 s", "48 s", "119 s", "3.5 min", "2.0 h", "25.0 h", "10.0 days",
    ]  # fmt: skip


def test_the_page_names_a_key_that_exists() -> None:
    with initialize_config_module(config_module="conf", version_base="1.3"):
        compose("crawl", overrides=[RETRY])
