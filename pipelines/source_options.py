"""`conf/source`, checked: which file, which of its rows, and where their bytes come from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import urlsplit

from tables import InputError

FORMATS = ("auto", "yfcc_v1", "yfcc_v2", "sqlite", "jsonl", "parquet", "csv", "urls")
# The codes in creativecommons.org/licenses/<code>/ and /publicdomain/<code>/.
LICENSES = ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd", "zero", "mark")
ORIGINS = ("url", "flickr", "commons")
# Longest side 75, 150, 100, 240, 320, 400, 640, 800, 1024 px, and the original; larger ones have secrets of their own.
SIZES = ("s", "q", "t", "m", "n", "w", "z", "c", "b", "o")


@dataclass(frozen=True)
class Autotags:
    """A file of `photoid TAB tag:score,...` and what in it speaks for a photo."""

    path: str
    words: tuple[str, ...]
    threshold: float


@dataclass(frozen=True)
class SourceOptions:
    """Hashable and plain, so it travels to Ray tasks. The keys are explained in `conf/source/default.yaml`.

    Attributes:
        words: whole words of which a row must have one; synonyms are in it already.
        license: allowed codes; None is any.
        extensions: allowed file extensions, lower case; rows that tell none pass.
        per_user: at most so many photos of one user; 0 is no limit.
        taken: first and last date, each a beginning of `2012-02-16 09:56:37`, or None.
        box: west, south, east, north in degrees; west > east crosses the date line.
        mirror: prefix that takes the place of scheme and host, without a slash at its end.
        range_mb: a bigger file that can be entered in its middle is read in ranges of this size.
    """

    path: str
    format: str
    url_column: str | None
    words: tuple[str, ...]
    autotags: Autotags | None
    license: tuple[str, ...] | None
    extensions: tuple[str, ...]
    per_user: int
    taken: tuple[str | None, str | None] | None
    box: tuple[float, ...] | None
    origin: str
    size: str | None
    mirror: str | None
    range_mb: float

    @classmethod
    def from_config(cls, source: Mapping[str, Any], category: str) -> SourceOptions:
        """Check the section `source` of the config; keys left out take their default.

        Raises:
            InputError: a key is missing, unknown or has a value it cannot have.
        """
        given = dict(source)
        known = {f.name for f in fields(cls)} | {"synonyms", "boxes"}
        for key in given:
            if key not in known:
                raise InputError(f"source.{key}", given[key], f"no such key; known are {', '.join(sorted(known))}")
        path = given.get("path")
        if not isinstance(path, str) or not path:
            raise InputError("source.path", path, "give a metadata file: YFCC rows, a table or a list of URLs")
        synonyms = _synonyms(given.get("synonyms"))
        words = _words("source.words", given.get("words"), synonyms, (category,))
        return cls(
            path=path,
            format=_choice("format", given.get("format", "auto"), FORMATS),
            url_column=_text("url_column", given.get("url_column"), "null or the name of a column"),
            words=words,
            autotags=_autotags(given.get("autotags"), synonyms, words),
            license=_license(given.get("license", "any")),
            extensions=tuple(e.lower().lstrip(".") for e in _list("extensions", given.get("extensions"))),
            per_user=int(_number("source.per_user", given.get("per_user", 0), 0, math.inf, whole=True)),
            taken=_taken(given.get("taken")),
            box=_box(given.get("box"), given.get("boxes")),
            origin=_choice("origin", given.get("origin", "url"), ORIGINS),
            size=None if given.get("size") is None else _choice("size", given["size"], SIZES),
            mirror=_mirror(given.get("mirror")),
            range_mb=_number("source.range_mb", given.get("range_mb", 256), 1e-6, 1e9),
        )

    def with_format(self, name: str) -> SourceOptions:
        return replace(self, format=name)

    def identity(self) -> dict[str, Any]:
        """What the selection and its bytes depend on; not the file, its content, its format or a mirror."""
        tags = self.autotags and {"words": sorted(self.autotags.words), "threshold": self.autotags.threshold}
        found = {
            "words": sorted(self.words), "license": "any" if self.license is None else sorted(self.license),
            "extensions": sorted(self.extensions), "autotags": tags, "per_user": self.per_user, "taken": self.taken,
            "box": self.box, "size": self.size if self.origin == "flickr" else None,
        }  # fmt: skip
        return {k: v for k, v in found.items() if v or k in ("words", "license", "extensions")}

    def plan_identity(self) -> dict[str, Any]:
        """What the rows of a plan depend on, the file apart; how it is cut into ranges changes nothing."""
        return {k: v for k, v in asdict(self).items() if k not in ("path", "mirror", "range_mb")}


def _choice(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"source.{key}", value, f"one of {', '.join(allowed)}")
    return value


def _text(key: str, value: Any, fix: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise InputError(f"source.{key}", value, fix)
    return value


def _number(argument: str, value: Any, least: float, most: float, whole: bool = False) -> float:
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        limit = f"between {least:g} and {most:g}" if most < math.inf else f"of at least {least:g}"
        raise InputError(argument, value, f"a {'whole ' if whole else ''}number {limit}")
    return value


def _list(key: str, value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise InputError(f"source.{key}", value, "a list of words")
    return list(values)


def _synonyms(value: Any) -> dict[str, list[str]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(w, str) for w in value):
        raise InputError("source.synonyms", value, "word -> list of words that mean it too")
    return {word: _list(f"synonyms.{word}", others) for word, others in value.items()}


def _words(argument: str, value: Any, synonyms: Mapping[str, list[str]], default: tuple[str, ...]) -> tuple[str, ...]:
    """The words and their synonyms, each once."""
    base = default if value is None else _list(argument.removeprefix("source."), value)
    out = tuple(dict.fromkeys(w for word in base for w in (word, *synonyms.get(word, ()))))
    if not out or not all(re.sub(r"[\s_-]", "", w) for w in out):
        raise InputError(argument, value, "a list of words, or null for the category itself")
    return out


def _autotags(value: Any, synonyms: Mapping[str, list[str]], words: tuple[str, ...]) -> Autotags | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not set(value) <= {"path", "words", "threshold"}:
        raise InputError("source.autotags", value, "the keys are path, words and threshold")
    path = _text("autotags.path", value.get("path"), "null or a file of `photoid TAB tag:score,...`")
    chosen = _words("source.autotags.words", value.get("words"), synonyms, words)
    threshold = _number("source.autotags.threshold", value.get("threshold", 0.8), 0, 1)
    return Autotags(path, chosen, float(threshold)) if path else None


def _license(value: Any) -> tuple[str, ...] | None:
    if value in (None, "any"):
        return None
    if value == "commercial":
        return tuple(c for c in LICENSES if "nc" not in c)
    codes = _list("license", value)
    if not codes or not set(codes) <= set(LICENSES):
        raise InputError("source.license", value, f"any, commercial, or a list of {', '.join(LICENSES)}")
    return tuple(codes)


def _taken(value: Any) -> tuple[str | None, str | None] | None:
    if value is None:
        return None
    fix = "null or [first, last], each null or a date like 2009, 2009-05 or 2009-05-31"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError("source.taken", value, fix)
    first, last = (None if v is None else str(v) for v in value)
    if not all(v is None or re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?", v) for v in (first, last)):
        raise InputError("source.taken", value, fix)
    return (first, last) if first or last else None


def _box(value: Any, boxes: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    named = boxes if isinstance(boxes, Mapping) else {}
    box = named.get(value) if isinstance(value, str) else value
    fix = (
        f"null, [west, south, east, north] in degrees, or one of source.boxes ({', '.join(map(str, named)) or 'none'})"
    )
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise InputError("source.box", value, fix)
    west, south, east, north = (_number("source.box", v, -180, 180) for v in box)
    if not -90 <= south <= north <= 90:
        raise InputError("source.box", value, "south and north lie between -90 and 90, south first")
    return float(west), float(south), float(east), float(north)


def _mirror(value: Any) -> str | None:
    if value is None:
        return None
    fix = "null, http(s)://host:port or file:///folder; its path goes before each URL's own"
    try:
        parts = urlsplit(str(value))
    except ValueError as error:
        raise InputError("source.mirror", value, fix) from error
    place = parts.path.strip("/") if parts.scheme == "file" and not parts.netloc else parts.netloc
    if not isinstance(value, str) or parts.scheme not in ("http", "https", "file") or not place or parts.query:
        raise InputError("source.mirror", value, fix)
    return value.rstrip("/")
