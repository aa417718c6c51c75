"""Which metadata rows are wanted: photo not video, extension, words, licence, date, place. Every drop has a reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipelines.source_autotags import is_tagged, tagged_ids
from pipelines.source_options import SourceOptions
from pipelines.source_words import word_pattern

if TYPE_CHECKING:
    from pipelines.source_rows import PhotoRow


class RowFilter:
    """Call it with a row: the reason to drop it, or "".

    The order is fixed, so that each dropped row counts once: video, extension, words, license, taken, box.
    """

    def __init__(self, options: SourceOptions) -> None:
        self.words = word_pattern(options.words)
        self.license = None if options.license is None else set(options.license)
        self.extensions = set(options.extensions)
        self.taken, self.box = options.taken, options.box
        self.tagged = None if options.autotags is None else tagged_ids(options.autotags)

    def __call__(self, row: PhotoRow) -> str:
        if row.video:
            return "video"
        extension = row.extension or _suffix(row.url)
        if self.extensions and extension and extension not in self.extensions:
            return "extension"
        if not self._speaks(row):
            return "words"
        if self.license is not None and license_code(row.license_url) not in self.license:
            return "license"
        if self.taken is not None and not _between(row.taken, *self.taken):
            return "taken"
        if self.box is not None and not _inside(row.longitude, row.latitude, self.box):
            return "box"
        return ""

    def _speaks(self, row: PhotoRow) -> bool:
        """By its text or by an autotag."""
        text = "\n".join((row.title, row.description, *row.tags))
        # A list of URLs tells nothing in words: it was made for the category by whoever made it.
        silent = not text.strip() and not row.photo_id.startswith("yfcc:")
        if silent or self.words.search(text.replace("_", " ")):
            return True
        return self.tagged is not None and is_tagged(row.photo_id, self.tagged)


def license_code(text: str) -> str:
    """`by-nc-sa` of `http://creativecommons.org/licenses/by-nc-sa/2.0/` or `CC BY-NC-SA 2.0`; "" of anything else."""
    found = re.search(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)", text, re.IGNORECASE)
    if found:
        return found[1].lower()
    name = re.fullmatch(r"(?:cc[ -]?)?(by(?:[ -](?:nc|sa|nd))*|0|zero|pdm|mark)(?:[ -][\d.]+)?", text.strip().lower())
    return {"0": "zero", "pdm": "mark"}.get(name[1], name[1].replace(" ", "-")) if name else ""


def _between(taken: str, first: str | None, last: str | None) -> bool:
    """ISO dates sort as text; a limit like `2009-05` means the whole month. A row without a date is outside."""
    if not re.match(r"\d{4}-\d\d-\d\d", taken):
        return False
    return (first is None or taken >= first) and (last is None or taken[: len(last)] <= last)


def _inside(longitude: str, latitude: str, box: Sequence[float]) -> bool:
    """A row without a place is outside."""
    west, south, east, north = box
    try:
        x, y = float(longitude), float(latitude)
    except ValueError:
        return False
    across = west <= x <= east if west <= east else (x >= west or x <= east)
    return across and south <= y <= north


def _suffix(url: str) -> str:
    name = urlsplit(url).path.rpartition("/")[2] if "[" not in url and "]" not in url else ""
    return name.rpartition(".")[2].lower() if "." in name else ""
