"""The report in a browser: from disk, by keyboard alone, light and dark, wide and narrow, and nobody is asked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
from browser import Browser, chromium, needs_chromium
from tiny import TOP_N

from models.template import Template
from pipelines.report_mesh import part_colors
from pipelines.report_shapes import spread_of_shapes
from pipelines.run_record import open_run
from tables import Lake

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Browser]:
    """The report, opened anew and drawn; afterwards nothing may have gone wrong or been asked for."""
    browser.errors.clear()
    browser.requests.clear()
    browser.open(report)
    browser.wait("document.querySelector('#view').dataset.drawn")
    yield browser
    browser.settle()
    assert browser.errors == []
    assert set(browser.requests) == {report.resolve().as_uri()}


def texts(page: Browser, selector: str) -> list[str]:
    return page.js(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)")


def choose(page: Browser, name: str, value: object) -> None:
    """Set a filter as its user does."""
    page.js(
        f"(e => {{ e.value = {str(value)!r}; e.dispatchEvent(new Event('input')) }})(document.getElementById({name!r}))"
    )


def test_it_fits_wide_and_narrow_and_follows_light_and_dark(page: Browser, report: Path) -> None:
    seen = {}
    for width in (420, 1280):
        for dark in (False, True):
            page.open(report, width=width, dark=dark)
            page.wait("document.querySelector('#view').dataset.drawn")
            assert page.js("document.documentElement.scrollWidth") == width, "nothing sticks out to the right"
            seen[width, dark] = page.shot(0, 0, width, 600)
    for width in (420, 1280):
        light, dark = (np.median(seen[width, d]) for d in (False, True))
        assert light > 230
        assert dark < 60


def test_no_two_elements_share_a_name(page: Browser) -> None:
    names = page.js("[...document.querySelectorAll('[id]')].filter(e => !e.closest('.chart')).map(e => e.id)")
    assert len(names) == len(set(names)) > 20


def test_the_filters_choose_what_they_say(page: Browser, lake: Lake) -> None:
    rows = open_run(lake, "default").dataset("selections", 2).read().sort_by("rank").to_pylist()  # type: ignore[union-attr]
    found = "document.getElementById('found').value"
    tags = "#crops .tag"
    assert page.js(found).endswith(f" of {len(rows)} animals")
    assert (
        page.js("[...document.querySelectorAll('#crops button')].map(b => b.title)")
        == [r["instance_id"] for r in rows][:24]
    )
    choose(page, "kept", 1)
    assert texts(page, tags) == ["kept"] * TOP_N
    choose(page, "kept", 0)
    assert set(texts(page, tags)) == {"rejected"}
    choose(page, "kept", "")
    reasons = texts(page, "#reason option")
    assert reasons == ["any", f"rank \u2264 top_n {TOP_N}", f"rank > top_n {TOP_N}"]
    choose(page, "reason", 0)
    assert texts(page, tags) == ["kept"] * TOP_N
    choose(page, "reason", "")
    scores = sorted(r["score"] for r in rows)
    choose(page, "low", (scores[1] + scores[2]) / 2)
    choose(page, "high", (scores[4] + scores[5]) / 2)
    assert page.js(found) == "1\u20133 of 3 animals"
    choose(page, "order", "worst")
    assert page.js("document.querySelector('#crops button').title") == rows[4]["instance_id"]
    choose(page, "order", "cut")
    choose(page, "low", "")
    choose(page, "high", "")
    shown = texts(page, "#crops .said")[:2]
    assert all(f"rank {n} of" in " ".join(shown) for n in (TOP_N, TOP_N + 1))
    assert "cf_mt" in texts(page, "#criterion option")
    choose(page, "criterion", texts(page, "#criterion option").index("kp_conf"))
    choose(page, "order", "best")
    sums = [float(t) for t in texts(page, "#crops b")]
    assert sums == sorted(sums, reverse=True), "a high sum of confidences is best"
    choose(page, "round", 0)
    assert page.js("document.getElementById('criterion').selectedOptions[0].text") == "cf_cm2 (chose this round)"
    page.js("document.querySelector('#browser [type=reset]').click()")
    page.wait("document.getElementById('round').value === '1'")


def test_keypoints_2d_and_3d_lie_over_the_crops_and_can_be_taken_off(page: Browser) -> None:
    both = page.pixels("#crops .crop")
    for name in ("two", "three"):
        page.js(f"document.getElementById({name!r}).click()")
        without = page.pixels("#crops .crop")
        assert (np.abs(without - both).max(-1) > 40).sum() > 5, name
        page.js(f"document.getElementById({name!r}).click()")
    assert not (np.abs(page.pixels("#crops .crop") - both).max(-1) > 40).any()


def test_a_crop_is_seen_closer_by_keyboard_alone(page: Browser) -> None:
    page.js("document.getElementById('after').focus()")
    page.press("Tab")
    assert page.js("document.activeElement === document.querySelector('#crops button')")
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    page.wait("document.getElementById('closer').open")
    said = texts(page, "#details td")
    assert said[said.index("animal") + 1] == page.js("document.querySelector('#crops button').title")
    assert "by A. Nyone, Attribution License" in texts(page, "#credit")[0]
    page.press("ArrowRight")
    page.wait(
        "document.querySelector('#details td + td').textContent === document.querySelectorAll('#crops button')[1].title"
    )
    page.press("Escape")
    page.wait("document.activeElement === document.querySelectorAll('#crops button')[1]")


def test_every_control_can_be_reached_and_shows_that_it_is(page: Browser) -> None:
    page.js("document.body.focus()")
    reached: list[str] = []
    wanted = page.js(
        "[...document.querySelectorAll('select, input:not([type=radio]), canvas, #browser button:enabled, "
        ".stage button')].map(e => e.id || e.type)"
    )
    for _ in range(200):
        page.press("Tab")
        name, ringed = page.js(
            "(e => [e.id || e.type || e.tagName, !e.closest('section') || getComputedStyle(e).outlineStyle !== 'none'"
            " || e.matches('.choice input')])(document.activeElement)"
        )
        assert ringed, f"{name} has the focus and does not show it"
        reached.append(name)
        if name == "reset" and "obj" in reached:
            break
    assert set(wanted) <= set(reached)


def test_the_view_draws_the_shape_on_its_photo_and_arrows_turn_it(page: Browser, lake: Lake) -> None:
    over, picture = page.pixels("#view"), page.pixels("#photo .crop")
    page.js("document.getElementById('behind').click(); document.getElementById('view').focus()")
    page.press("0")  # a key, so that the focus shows from here on
    alone = page.pixels("#view")
    ground = alone[12, 12]  # within the ring that shows the focus
    shape = np.abs(alone - ground).max(-1) > 12
    shape[:12], shape[-12:], shape[:, :12], shape[:, -12:] = False, False, False, False
    assert 0.02 < shape.mean() < 0.7
    # The parts' colours are on it, by hue: light changes how bright they are.
    colors = part_colors(Template.load(f"{lake.uri}/sandbox/tiny/animal.template")).astype(float)
    seen = alone[shape].astype(float)
    seen = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    near = seen @ (colors / np.linalg.norm(colors, axis=1, keepdims=True)).T > 0.995
    assert (near.any(0)).sum() >= 3
    # Where the shape is not, the photo is the one beside it.
    side = min(len(over), len(picture))
    page.js("for (const id of ['label', 'joints']) document.getElementById(id).click()")
    bare = page.pixels("#photo .crop")
    assert (np.abs(bare - picture).max(-1) > 40).sum() > 50, "the joints lay over it"
    page.js("document.getElementById('view').focus()")
    inside = ~shape[:side, :side]
    inside[:12], inside[-12:], inside[:, :12], inside[:, -12:] = False, False, False, False  # rounded corners
    assert np.median(np.abs(over[:side, :side] - bare[:side, :side])[inside]) <= 6

    page.press("ArrowRight", 4)
    turned = page.pixels("#view")
    assert (np.abs(turned - alone).max(-1) > 12).mean() > 0.01
    page.press("ArrowLeft", 4)
    assert (np.abs(page.pixels("#view") - alone).max(-1) > 12).mean() < 0.002
    page.press("ArrowUp", 3)
    page.press("+", 3)
    assert (np.abs(page.pixels("#view") - alone).max(-1) > 12).mean() > 0.01
    page.press("0")
    assert (np.abs(page.pixels("#view") - alone).max(-1) > 12).mean() < 0.002


def test_the_mouse_turns_the_shape_too_and_the_wheel_is_the_pages(page: Browser) -> None:
    before = page.pixels("#view")
    x, y = page.js(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('#view').getBoundingClientRect())"
    )
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-40)
    page.settle()
    same = (np.abs(page.pixels("#view") - before).max(-1) > 12).mean() < 0.002
    assert same, "not chosen: the wheel does not zoom"
    x, y = page.js(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('#view').getBoundingClientRect())"
    )
    for kind, at in (("mousePressed", 0), ("mouseMoved", 60), ("mouseMoved", 120), ("mouseReleased", 120)):
        page.call("Input.dispatchMouseEvent", type=kind, x=x + at, y=y, button="left", buttons=1, clickCount=1)
    assert (np.abs(page.pixels("#view") - before).max(-1) > 12).mean() > 0.01


def test_another_animal_and_its_files(page: Browser, lake: Lake) -> None:
    record = open_run(lake, "default")
    shapes = spread_of_shapes(lake, record.category, str(record.model_path(record.best)), "test")
    assert shapes is not None
    template = shapes.template
    first, second, *_ = [s for found in shapes.groups.values() for s in found]
    before = page.pixels("#view")
    page.js("document.querySelector('.choice input:checked').focus()")
    page.press("ArrowRight")
    page.wait(f"document.getElementById('view').dataset.drawn === {second.name!r}")
    assert first.name != second.name
    assert second.name in texts(page, "#facts")[0]
    assert (np.abs(page.pixels("#view") - before).max(-1) > 12).mean() > 0.05
    assert page.js("document.getElementById('view').getAttribute('aria-label')").endswith(f"{second.name} in 3D")

    (mesh,) = trimesh.load_scene(io.BytesIO(page.download("#glb")), file_type="glb", process=False).geometry.values()
    np.testing.assert_allclose(mesh.vertices, second.vertices, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, template.faces)
    colors = template.weights @ part_colors(template)
    np.testing.assert_allclose(mesh.visual.vertex_attributes["color"] ** (1 / 2.2) * 255, colors, atol=1)
    mesh = trimesh.load(io.BytesIO(page.download("#obj")), file_type="obj", process=False, maintain_order=True)
    np.testing.assert_allclose(mesh.vertices, second.vertices, atol=1e-5)
    np.testing.assert_array_equal(mesh.faces, template.faces)
