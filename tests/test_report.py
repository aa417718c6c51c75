"""The report is one file with everything in it; it says what is missing and is refused only for an unknown run."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import trimesh
import yaml
from tiny import CATEGORY, TOP_N

from models.template import Template
from pipelines.report import write_report
from pipelines.report_browser import EDGE, browser_html, embedded, reason_kind, spread
from pipelines.report_mesh import shade, turntable
from pipelines.report_page import data
from pipelines.report_runs import recipes, runs_html
from pipelines.report_shapes import shapes_html
from pipelines.report_three import sliced, three_js
from pipelines.run_record import open_run
from selection import score
from tables import InputError, Lake


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Fewer frames than a person would like."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.report_sources.FRAMES", 2)
        yield


@pytest.fixture(scope="module")
def html(report: Path) -> str:
    return report.read_text(encoding="utf-8")


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
        "AUC by round", "Runs of this lake", "What the crawl gave", "Kept and rejected", "Selection browser",
        "Shapes in 3D", "The template", "Lineage",
    ]  # fmt: skip
    assert set(re.findall(r'<a href="#(.*?)"', html)) == set(re.findall(r'<section id="(.*?)"', html))
    markup = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    references = re.findall(r'(?:src|href|srcset|url)\s*[=(]\s*"?([^")\s>]+)', markup)
    # Fragments are matplotlib's own markers within the same SVG, and the jumps.
    assert not [r for r in references if not r.startswith(("data:", "#", "url(#"))]
    assert html.count("default-src 'none'") == 1, "the browser holds it to that"
    assert len(html) < 2_000_000


def test_numbers_come_from_the_run(lake: Lake, html: str) -> None:
    record = open_run(lake, "default")
    for n in record.numbers:
        assert f"{record.metric(n, 'test')['auc_06_10']:.2f}" in html  # type: ignore[index]
    assert record.best == 2
    assert f"{record.round(0)['items']}</b><span>labelled animals" in html
    assert f"{TOP_N}</b><span>pseudo-labels" in html


def embedded_data(html: str, name: str) -> dict[str, Any]:
    return json.loads(re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.S)[0])


def test_the_browser_holds_scores_reasons_joints_and_credits(lake: Lake, html: str) -> None:
    held = embedded_data(html, "browser-data")
    record = open_run(lake, "default")
    assert [r["round"] for r in held["rounds"]] == [1, 2]
    made = held["rounds"][1]
    chosen, pseudo = (record.dataset(t, 2) for t in ("selections", "pseudo_labels"))
    rows = {r["instance_id"]: r for r in chosen.read().to_pylist()}  # type: ignore[union-attr]
    assert (made["of"], made["kept"], made["own"]) == (len(rows), TOP_N, "cf_cm2")
    names = [c["name"] for c in made["criteria"]]
    assert names[0] == "cf_cm2"
    assert {"kp_conf", "cf_mt", "cf_cm", "pck_cm2"} < set(names)
    assert {"random", "oracle", "rank_fusion"}.isdisjoint(names)
    said = pseudo.read()  # type: ignore[union-attr]
    sums = dict(zip(said["instance_id"].to_pylist(), score("kp_conf", said), strict=True))
    for row in made["rows"]:
        animal = held["animals"][row["animal"]]
        truth = rows[animal["id"]]
        assert (row["rank"], row["kept"], row["reason"]) == (truth["rank"], truth["selected"], truth["reason"])
        assert row["scores"][0] == pytest.approx(truth["score"], rel=1e-4)
        assert row["scores"][names.index("kp_conf")] == pytest.approx(sums[animal["id"]], rel=1e-4)
        assert (len(row["two"]), len(row["three"])) == (48, 32)
        assert animal["author"] == "A. Nyone"
        assert animal["image"].startswith("data:image/webp;base64,")
    assert f"All {len(rows)} animals are in this page" in html


def test_what_is_left_out_is_said(lake: Lake) -> None:
    html = browser_html(open_run(lake, "default"), 5)
    held = embedded_data(html, "browser-data")
    assert len(held["animals"]) == 5
    assert all(len(r["rows"]) == 5 for r in held["rounds"])
    every = held["rounds"][0]["of"]
    assert f"5 of {every} animals are in this page" in html
    assert f"crops={every}</code>" in html


def test_what_a_photographer_calls_himself_stays_text() -> None:
    evil = {"author": "</script><script>alert(1)</script><!-- "}
    assert "<" not in data("x", evil).removeprefix('<script type="application/json" id="x">').removesuffix(
        "</script>\n"
    )
    assert embedded_data(data("x", evil), "x") == evil


def test_a_bounded_selection_keeps_its_ends_and_its_cut_and_spreads_the_rest() -> None:
    selected = np.arange(5000) < 700
    order = list(spread(selected))
    assert sorted(order) == list(range(5000))
    telling = set(range(EDGE)) | set(range(700 - EDGE, 700 + EDGE)) | set(range(5000 - EDGE, 5000))
    assert set(order[: 4 * EDGE]) == telling
    gaps = np.diff(np.sort(order[:300]))
    assert gaps.max() < 60
    for kept in (0, 3):
        assert sorted(spread(np.arange(3) < kept)) == [0, 1, 2]
    assert list(spread(np.zeros(0, bool))) == []
    ids = [pa.chunked_array([[f"{r}{i}" for i in range(40)]]) for r in "ab"]
    taken = embedded([pa.chunked_array([np.arange(40) < 5])] * 2, ids, 10)
    assert sorted(t[0] for t in taken) == ["a"] * 5 + ["b"] * 5


def test_reasons_are_told_apart_without_what_is_the_animals_own() -> None:
    assert reason_kind("rank 45 of 208 <= top_n 60") == reason_kind("rank 1 of 9 <= top_n 60") == "rank \u2264 top_n 60"
    assert reason_kind("rank 45 of 208, 3 by quota > top_n 60") == "rank > top_n 60"
    assert reason_kind("rank 4 of 9, enough of its view rank better") == "rank, enough of its view rank better"
    assert reason_kind("leak: looks like the evaluation photo coco:12") == "leak: looks like the evaluation photo"
    assert reason_kind("box has no area") == "box has no area"


def test_runs_of_one_recipe_are_one_line_with_its_spread(copy: Lake) -> None:
    rows = copy.files.read_json("runs/default/metrics.json")
    for run, seed, criterion, more in (("second", 1, "cf_cm2", 2.0), ("chance", 0, "random", -3.0)):
        shutil.copytree(f"{copy.uri}/runs/default", f"{copy.uri}/runs/{run}")
        config = yaml.safe_load(copy.files.read("runs/default/config.yaml") or b"")
        config |= {"run": run, "seed": seed, "criterion": criterion, "source": {"mirror": f"http://127.0.0.1:{seed}"}}
        copy.files.write(f"runs/{run}/config.yaml", yaml.safe_dump(config).encode())
        changed = [{**r, "auc_06_10": r["auc_06_10"] + more} for r in rows]
        copy.files.write(f"runs/{run}/metrics.json", json.dumps(changed).encode())
    own, other = recipes(open_run(copy, "default"))
    assert [r.name for r in own.runs] == ["default", "second"]
    assert (own.label, other.label) == ("", "criterion=random")
    shutil.copytree(f"{copy.uri}/runs/chance", f"{copy.uri}/runs/chance2")
    config |= {"run": "chance2", "seed": 5, "criterion": "random", "log": "json"}
    copy.files.write("runs/chance2/config.yaml", yaml.safe_dump(config).encode())
    assert [r.name for r in recipes(open_run(copy, "default"))[1].runs] == ["chance", "chance2"]
    for damage in ([{**r, "auc_06_10": None} for r in rows], {"rows": rows}, [1]):  # what is no run of ours is no line
        copy.files.write_json("runs/chance2/metrics.json", damage)
        assert [r.name for r in recipes(open_run(copy, "default"))[1].runs] == ["chance"]
    copy.files.write_json("runs/chance2/metrics.json", [r for r in rows if r["split"] != "val"])
    assert len(recipes(open_run(copy, "default"))) == 2
    first = next(r["auc_06_10"] for r in rows if (r["round"], r["split"]) == (0, "test"))
    np.testing.assert_allclose(own.aucs("test")[0], [first, first + 2])
    html = runs_html(open_run(copy, "default"), "test")
    assert f"{first + 1:.2f} <small>&plusmn; {math.sqrt(2):.2f}</small>" in html
    assert "default&nbsp;(0), second&nbsp;(1)" in html


def test_without_three_js_one_line_stands_where_the_view_was(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with the trimesh that is installed, it is there."""
    script = str(three_js())
    assert "Three.js Authors" in script[:200]
    assert "GLTFLoader" not in script
    for broken in ("", "<html></html>", f"<script>{script[:-9]}", f"<script>let a;{script[400:]}"):
        assert sliced(broken) is None
    monkeypatch.setattr("pipelines.report_shapes.three_js", lambda: None)
    record = open_run(lake, "default")
    html = shapes_html(lake, CATEGORY, record.model_path(2), "test")
    assert "does not carry three.js in the form" in html
    assert "<canvas" not in html
    assert embedded_data(html, "shapes-data")["shapes"]


def test_shapes_stand_at_fixed_places_of_the_errors(html: str) -> None:
    ranks = [int(r) for r in re.findall(r"&lt;b&gt;(\d+)&lt;/b&gt; of \d+ by error", html)]
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
        assert len(sections(html_of(copy))) == 8, gone


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
