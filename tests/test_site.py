"""The documentation site: it builds without a complaint, no page asks the network, and every key is explained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest
import yaml
from browser import chromium
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny import shared_lake

pytest.importorskip("mkdocs", reason="mkdocs is not installed")

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
DOCUMENTS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
MISSING = object()
LINK = re.compile(r"\]\((?P<path>[^)\s#:]*)(?:#(?P<anchor>[^)\s]*))?\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a link that leads nowhere, a page that no menu has or a docstring that lies fails here."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loads(HTMLParser):
    """What a browser fetches to show a page, without being asked."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        names = ["src", "srcset", "data", "poster", *(["href"] if tag == "link" else [])]
        self.found += [value for name in names if (value := named.get(name))]


def test_no_page_asks_the_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    loaded = {url for page in pages for url in Loads(page).found}
    assert any(url.endswith(".js") for url in loaded)
    assert any(url.endswith(".css") for url in loaded)
    assert not [url for url in loaded if re.match(r"(?:\w+:)?//", url)]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder on this machine: a search needs a server, the pages alone would open from disk."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_pages_in_a_browser(site: Path, tmp_path: Path) -> None:
    """Wide and narrow, light and dark: nothing goes wrong, nobody else is asked, nothing sticks out."""
    blank = tmp_path / "blank.html"
    blank.write_text("<title>blank</title>")
    with chromium(tmp_path) as browser, served(site) as address:
        for name, width, dark in (
            ("index.html", 1280, False), ("concepts.html", 420, True), ("configuration.html", 420, False),
            ("method.html", 420, False), ("api.html", 1280, True),
        ):  # fmt: skip
            browser.open(blank, width, 900, dark)  # sizes and colours are the browser's, whatever it shows
            browser.call("Page.navigate", url=f"{address}/{name}")
            browser.wait("document.title != 'blank' && document.readyState == 'complete'")
            browser.wait("[...document.images].every(i => i.complete)")
            browser.settle()
            assert browser.js("document.documentElement.scrollWidth - innerWidth") <= 0, name
            assert browser.js("[...document.images].every(i => i.naturalWidth > 0)"), name
            scheme = browser.js("document.body.getAttribute('data-md-color-scheme')")
            assert scheme == ("slate" if dark else "default"), name
        assert browser.errors == []
        assert not [url for url in browser.requests if not url.startswith((address, blank.as_uri()))]


def generator() -> ModuleType:
    spec = spec_from_file_location("site_configuration", ROOT / "docs" / "site" / "configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(tree: object, path: str = "") -> dict[str, object]:
    """The values of a YAML document by their dotted path."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in leaves(value, f"{path}.{key}" if path else key).items()}


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda f: f.relative_to(CONF).as_posix())
def test_the_reference_has_every_key_with_its_value(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    keys = {key.path: key.value for key in generator().keys_of(source) if key.path}
    assert len(keys) == sum(bool(key.path) for key in generator().keys_of(source)), "a key is there twice"
    read = {k: v for path, text in keys.items() if text for k, v in leaves(yaml.safe_load(text), path).items()}
    there = {k: v for k, v in leaves(yaml.safe_load(source) or {}).items() if k.split(".")[0] != "defaults"}
    assert read == there


def test_the_reference_is_on_the_site(site: Path) -> None:
    text = (site / "configuration.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'id="([^"]+)"', text))
    assert {
        "selftrain.rounds",
        "base.resources.train.workers",
        "group-fetch.per_host",
        "group-train.acsm.plan.lr",
    } <= ids
    assert "requests at once at one host, all actors together" in text
    shown = set(re.findall(r'<code id="group-[^"]+">([^<]+)</code>', text))  # as they are typed
    with initialize_config_module(config_module="conf", version_base="1.3"):
        cfg = compose("selftrain")
    assert {"fetch.per_host", "train.acsm.plan.lr", "top_n", "sandbox.web.shares.dead", "detect.score"} <= shown
    lost = [key for key in shown if OmegaConf.select(cfg, key, default=MISSING) is MISSING]
    assert not [key for key in lost if not key.startswith("hydra")]
    for file in CONF.glob("*.yaml"):
        assert file.stem in ids


@pytest.mark.slow
def test_the_pictures_of_the_concepts_are_drawn_from_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "docs.site.pictures", shared_lake().uri, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    drawn = {p.name for p in tmp_path.iterdir()}
    assert drawn == {p.name for p in (ROOT / "docs" / "images").glob("concept_*")}
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert drawn == set(re.findall(r"\(images/(.*?)\)", text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_in_the_repository_too(document: Path) -> None:
    """On a code host, without the site; mkdocs itself judges the links as the site has them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in LINK.finditer(text):
        target = (document.parent / link["path"]).resolve() if link["path"] else document
        assert target.exists(), f"{document.name}: {link[0]}"
        assert target.is_relative_to(ROOT), f"{document.name}: {link[0]}"
        if link["anchor"] and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert link["anchor"] in slugs, f"{document.name}: {link[0]}"
