"""Whose photos they are: the licence as a name and a link, and the two attribution files of an export."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

COLUMNS = ("file", "key", "photo_id", "author", "license", "license_url", "page_url", "url")
NO_LICENSE, NO_AUTHOR = "licence not stated", "author not stated"
_URL = re.compile(r"https?://\S+$", re.IGNORECASE)
_COMMONS = re.compile(
    r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(?:/([\d.]+))?(?:/([a-z]{2,3})(?=/|$))?", re.IGNORECASE
)
# What a formula begins with, the full-width forms that some spreadsheets read alike included.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_PUBLIC_DOMAIN = {"zero": "CC0", "mark": "Public Domain Mark"}


def licence_of(text: str | None) -> tuple[str, str]:
    """Name and URL of a licence as `photos` keeps it: its name, then its URL, either of which may be missing.

    A Creative Commons licence is named as its makers ask (`CC BY-NC 2.0`), whatever the source called it.
    """
    text = (text or "").strip()
    found = _URL.search(text)
    url = found[0] if found else ""
    name = text[: len(text) - len(url)].strip()
    if commons := _COMMONS.search(url):
        kind, code, version, country = (part or "" for part in commons.groups())
        short = f"CC {code.upper()}" if kind.lower() == "licenses" else _PUBLIC_DOMAIN.get(code.lower(), name or code)
        name = " ".join(part for part in (short, version, country.upper()) if part)
    return name, url


def web_link(url: str | None) -> str:
    """The URL if a page may link to it (http or https), else empty: a metadata file could say `javascript:`."""
    return url if url and re.match(r"https?://", url, re.IGNORECASE) else ""


class Attribution:
    """Writes `ATTRIBUTION.csv` photo by photo, and `ATTRIBUTION.md`, the same for people, at the end.

    A cell that a spreadsheet would take for a formula begins with an apostrophe in the CSV; the shards keep the text
    as it was. Memory stays flat in the number of photos.
    """

    def __init__(self, folder: str, title: str) -> None:
        self._csv, self._md = (os.path.join(folder, f"ATTRIBUTION.{end}") for end in ("csv", "md"))
        self._folder, self._title, self.licences = folder, title, Counter[tuple[str, str]]()

    def __enter__(self) -> Attribution:
        with ExitStack() as held:
            file = held.enter_context(open(self._csv, "w", encoding="utf-8", newline=""))
            # The lines of the Markdown file, which come after the totals that only the end knows.
            self._lines = held.enter_context(TemporaryFile("w+", encoding="utf-8", newline="", dir=self._folder))
            self._rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            self._rows.writeheader()
            self._held = held.pop_all()
        return self

    def add(self, file: str, key: str, photo: Mapping[str, Any]) -> None:
        """A photo of the export: the shard it lies in, its key there, and its `license, license_url, author, ...`."""
        row = {"file": file, "key": key, **photo}
        self._rows.writerow({name: inert(row[name]) for name in COLUMNS})
        self.licences[photo["license"], photo["license_url"]] += 1
        link = _link(photo["photo_id"], photo["page_url"] or photo["url"] or "")
        licence = _link(photo["license"] or NO_LICENSE, photo["license_url"])
        self._lines.write(f"- {link} by {_plain(photo['author'] or NO_AUTHOR)}, {licence}, in `{file}`\n")

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        with self._held:
            if kind is None:
                self._write_md()

    def _write_md(self) -> None:
        total = sum(self.licences.values())
        with open(self._md, "w", encoding="utf-8", newline="") as md:
            md.write(f"# {_plain(self._title)}\n\n{total:,} photos. Whoever shows or passes on one of them names its ")
            md.write("author and its licence, links to both, and says so if the picture was changed.\n\n")
            md.write("| licence | photos |\n|---|---:|\n")
            for (name, url), n in sorted(self.licences.items(), key=lambda item: (-item[1], item[0])):
                md.write(f"| {_link(name or NO_LICENSE, url)} | {n:,} |\n")
            md.write("\n## Photos\n\n")
            self._lines.seek(0)
            shutil.copyfileobj(self._lines, md)


def inert(cell: str | None) -> str:
    """A cell that no spreadsheet takes for a formula (OWASP, "CSV Injection"): an apostrophe before one that might."""
    return f"'{cell}" if cell and cell.startswith(_FORMULA) else cell or ""


def _link(text: str, url: str) -> str:
    """A Markdown link, or the text alone where there is nothing to link to."""
    if not web_link(url):
        return _plain(text)
    target = re.sub(r"[\s<>|\\]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), url)
    return f"[{_plain(text)}](<{target}>)"


def _plain(text: str) -> str:
    """Text on one line that Markdown takes as it stands."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))
