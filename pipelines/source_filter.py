"""Which metadata rows are wanted: words, licence, extension, photo not video. Every drop has a reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tables import InputError

if TYPE_CHECKING:
    from pipelines.sources import PhotoRow

FORMATS = ("auto", "yfcc_v1", "yfcc_v2", "urls")
# The codes in creativecommons.org/licenses/<code>/ and /publicdomain/<code>/.
LICENSES = ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd", "zero", "mark")


@dataclass(frozen=True)
class SourceOptions:
    """`conf/source`, checked. Hashable and plain, so it travels to Ray tasks.

    Attributes:
        words: whole words of which a row must have one; synonyms are in it already.
        license: allowed codes; None is any.
        extensions: allowed file extensions, lower case; rows that tell none pass.
        mirror: scheme and host to fetch from instead of the URL's own, or None.
        range_mb: a bigger plain file is read in ranges of this size by Ray.
    """

    path: str
    format: str
    words: tuple[str, ...]
    license: tuple[str, ...] | None
    extensions: tuple[str, ...]
    mirror: str | None
    range_mb: float

    @classmethod
    def from_config(cls, source: Any, category: str) -> SourceOptions:
        """Check the section `source` of the config (any mapping).

        Raises:
            InputError: a key is missing, unknown or has a value it cannot have.
        """
        given = dict(source)
        known = {f.name for f in fields(cls)} | {"synonyms"}
        if unknown := sorted(set(given) - known):
            raise InputError(f"source.{unknown[0]}", given[unknown[0]], f"no such key; known are {sorted(known)}")
        path = given.get("path")
        if not path:
            raise InputError("source.path", path, "give a metadata file: YFCC rows or a list of URLs")
        kind = given.get("format", "auto")
        if kind not in FORMATS:
            raise InputError("source.format", kind, f"one of {', '.join(FORMATS)}")
        range_mb = float(given.get("range_mb", 256))
        if range_mb <= 0:
            raise InputError("source.range_mb", range_mb, "a size above 0")
        return cls(
            path=str(path),
            format=kind,
            words=_words(given.get("words"), given.get("synonyms") or {}, category),
            license=_license(given.get("license", "any")),
            extensions=tuple(str(e).lower().lstrip(".") for e in given.get("extensions") or ()),
            mirror=_mirror(given.get("mirror")),
            range_mb=range_mb,
        )

    def with_format(self, name: str) -> SourceOptions:
        return replace(self, format=name)

    def in_ranges(self, size: int) -> bool:
        """Whether a file of `size` bytes is read in ranges: only a plain file can be entered in its middle."""
        return size > self.range_mb * 2**20 and not self.path.endswith((".gz", ".bz2", ".zst", ".lz4"))

    def identity(self) -> dict[str, Any]:
        """What the selection depends on; not the file, its content, its format or where bytes come from."""
        allowed = sorted(self.license) if self.license is not None else "any"
        return {"words": sorted(self.words), "license": allowed, "extensions": sorted(self.extensions)}


class RowFilter:
    """Call it with a row: (True, "") or (False, the reason)."""

    def __init__(self, options: SourceOptions) -> None:
        self.words = word_pattern(options.words)
        self.license = None if options.license is None else set(options.license)
        self.extensions = set(options.extensions)

    def __call__(self, row: PhotoRow) -> tuple[bool, str]:
        if row.video:
            return False, "video"
        extension = row.extension or _suffix(row.url)
        if self.extensions and extension and extension not in self.extensions:
            return False, "extension"
        text = "\n".join((row.title, row.description, *row.tags))
        # A list of URLs tells nothing in words: it was made for the category by whoever made it.
        telling = bool(text.strip()) or row.photo_id.startswith("yfcc:")
        if telling and not self.words.search(text.replace("_", " ")):
            return False, "words"
        if self.license is not None and license_code(row.license_url) not in self.license:
            return False, "license"
        return True, ""


def word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the words as a whole word, any case, singular or regular English plural.

    `polar bear` also matches `polar-bear` and the tag `polarbear`. Irregular plurals are synonyms.
    """
    forms = []
    for word in words:
        parts = [re.escape(p) for p in re.split(r"[\s_-]+", word.strip()) if p]
        *head, last = parts
        endings = [last + "(?:s|es)?"]
        if re.search(r"[^aeiou]y$", last):
            endings.append(last[:-1] + "ies")
        if last.endswith(("f", "fe")):
            endings.append(re.sub("fe?$", "", last) + "ves")
        forms.append(r"[\s-]*".join([*head, f"(?:{'|'.join(endings)})"]))
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)", re.IGNORECASE)


def license_code(url: str) -> str:
    """`by-nc-sa` of `http://creativecommons.org/licenses/by-nc-sa/2.0/`; empty if it is no Creative Commons URL."""
    found = re.search(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)", url, re.IGNORECASE)
    return found[1].lower() if found else ""


def _words(words: Any, synonyms: Mapping[str, Sequence[str]], category: str) -> tuple[str, ...]:
    if isinstance(words, str):
        words = [words]
    base = [category] if words is None else [str(w) for w in words]
    out = [w for word in base for w in (word, *map(str, synonyms.get(word) or ()))]
    if not out or not all(re.sub(r"[\s_-]", "", w) for w in out):
        raise InputError("source.words", words, "a list of words, or null for the category itself")
    return tuple(dict.fromkeys(out))


def _license(value: Any) -> tuple[str, ...] | None:
    if value in (None, "any"):
        return None
    if value == "commercial":
        return tuple(c for c in LICENSES if "nc" not in c)
    codes = [value] if isinstance(value, str) else [str(c) for c in value]
    if not codes or not set(codes) <= set(LICENSES):
        raise InputError("source.license", value, f"any, commercial, or a list of {', '.join(LICENSES)}")
    return tuple(codes)


def _mirror(value: Any) -> str | None:
    if value is None:
        return None
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError("source.mirror", value, "null or http://host:port")
    return f"{parts.scheme}://{parts.netloc}"


def _suffix(url: str) -> str:
    name = urlsplit(url).path.rpartition("/")[2] if "[" not in url else ""
    return name.rpartition(".")[2].lower() if "." in name else ""
