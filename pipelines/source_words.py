"""Whole words, in plain text and in URL-encoded bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


def word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the words as a whole word, any case, singular or regular English plural.

    `polar bear` also matches `polar-bear` and the tag `polarbear`. Irregular plurals are synonyms.
    """
    forms = "|".join(_forms(word, re.escape, r"[\s-]*") for word in words)
    return re.compile(rf"(?<!\w)(?:{forms})(?!\w)", re.IGNORECASE)


def encoded_pattern(words: Sequence[str]) -> str:
    """RE2 pattern for URL-encoded bytes that matches wherever `word_pattern` matches the decoded text, and seldom else.

    To be searched with Latin-1 semantics (Arrow's binary arrays), each byte a character; a text begins with its
    separator.
    """
    forms = "|".join(_forms(word, _encoded, r"(?:%[0-9a-f]{2}|[^a-z0-9])*") for word in words)
    # An ASCII letter or digit that is no part of an escape is a word character, whatever stands around it.
    return rf"(?is)(?:[^a-z0-9]|%[0-9a-f]{{2}})(?:{forms})(?:[^a-z0-9]|\z)|{_ODD}"


# Escapes of ASCII letters and digits, which no encoder writes, and the other cases of i, k and s: U+0130, U+0131,
# U+212A and U+017F. Texts that have one are matched, so that words need no spelling but their plain one.
_ODD = (
    r"%(?:3[0-9]|[46][1-9a-f]|[57][0-9a])|(?:%c4|\xc4)(?:%b[01]|[\xb0\xb1])|(?:%e2|\xe2)(?:%84|\x84)(?:%aa|\xaa)"
    r"|(?:%c5|\xc5)(?:%bf|\xbf)"
)


def _forms(word: str, spell: Callable[[str], str], gap: str) -> str:
    """Pattern of one word and its plurals: letters go through `spell`, between its parts stands `gap`."""
    *head, last = [p for p in re.split(r"[\s_-]+", word) if p]
    endings = [last, f"{last}s", f"{last}es"]
    if re.search(r"[^aeiou]y$", last):
        endings.append(last[:-1] + "ies")
    if last.endswith(("f", "fe")):
        endings.append(re.sub("fe?$", "", last) + "ves")
    return gap.join([*map(spell, head), f"(?:{'|'.join(map(spell, endings))})"])


def _encoded(text: str) -> str:
    """Bytes that may decode to the text in any case, if none of them is odd."""
    return "".join(map(_encoded_character, text))


def _encoded_character(c: str) -> str:
    if not c.isascii():
        return r"(?:%[0-9a-f]{2}|.){1,4}"  # up to four bytes in UTF-8; what its other case is does not matter here
    return c if c.isalnum() else rf"(?:{re.escape(c)}|%{ord(c):02x})"
