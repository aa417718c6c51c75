"""What the site is made of beside `docs/`: the root's documents, the configuration reference, and linked sources.

Documents link to each other as they lie in the repository, so that a code host shows them right. Here these links are
turned to where things lie on the site; whatever else of the repository they name comes along under `source/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from configuration import page as configuration
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
REFERENCE = "configuration.md"
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
MOST = 300_000  # bytes of a linked file that comes along


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and every file of the repository that a document links to."""
    for source, target in ROOT_PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, REFERENCE, content=configuration(ROOT / "conf")))
    linked: dict[str, str] = {}
    for file in files.documentation_pages():
        _turned(file.content_string, file.src_uri, linked)
    for path, target in linked.items():
        there = ROOT / path
        hidden = InclusionLevel.NOT_IN_NAV
        if target.endswith(".md"):
            files.append(File.generated(config, target, content=_shown(path), inclusion=hidden))
        else:
            files.append(File.generated(config, target, abs_src_path=str(there), inclusion=hidden))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    return _turned(markdown, page.file.src_uri, {})


def _turned(markdown: str, page: str, linked: dict[str, str]) -> str:
    """A page's Markdown with its links as the site has them; files outside `docs/` are added to `linked`."""
    if page.startswith("source/"):
        return markdown
    home = next((root for root, target in ROOT_PAGES.items() if target == page), f"docs/{page}")

    def turn(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), match["path"]))
        target, anchor = _target(path), match["anchor"] or ""
        if target is None:
            return match[0]
        if target == REFERENCE and path.endswith(".yaml"):
            parts = path.removeprefix("conf/").removesuffix(".yaml").split("/")
            anchor = f"#{parts[0]}" if len(parts) == 1 else f"#group-{parts[0]}"
        if target.startswith("source/"):
            linked[path] = target
        return posixpath.relpath(target, posixpath.dirname(page) or ".") + anchor

    return LINK.sub(turn, markdown)


def _target(path: str) -> str | None:
    """Where a path of the repository is on the site; None for what is no file of it, which mkdocs judges itself."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path.startswith("docs/") and not path.startswith("docs/site/"):
        return path.removeprefix("docs/")
    there = ROOT / path
    if path == "conf" or path.startswith("conf/"):
        return REFERENCE if there.exists() else None
    if there.is_dir() or there.suffix == ".py":
        return f"source/{path}.md"
    return f"source/{path}" if there.is_file() and there.stat().st_size < MOST else None


def _shown(path: str) -> str:
    """A Python file, or a folder's list of files, as a page."""
    there = ROOT / path
    head = f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n"
    if there.is_dir():
        names = sorted(f.name + "/" * f.is_dir() for f in there.iterdir() if not f.name.startswith((".", "_")))
        return head + "\n".join(f"- `{name}`" for name in names) + "\n"
    return f"{head}````python\n{there.read_text(encoding='utf-8')}````\n"
