"""The report's page: one HTML file with its style inside, light and dark, wide and narrow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import Any

# Held by the browser: such a page asks nobody for anything.
_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@cache
def asset(name: str) -> str:
    """The text of a style sheet or script of ours."""
    return resources.files("pipelines").joinpath(name).read_text("utf-8")


def page(title: str, body: str, style: str = "", scripts: Sequence[str] = ()) -> str:
    """The whole document; needs nothing from anywhere else. With scripts, all pictures must be data URIs."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">' if scripts else ""
    code = "".join(f"<script>{s}</script>\n" for s in scripts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{policy}'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{asset('page.css')}{style}</style></head>\n"
        f"<body><main>\n{body}\n</main>\n{code}</body></html>\n"
    )


def data(name: str, value: Any) -> str:
    """Plain data for the page's scripts, found by the element's id."""
    # Of all HTML only "<" could end the element; in JSON it stands within strings alone.
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def section(title: str, *parts: str, lead: str = "", name: str = "") -> str:
    """A chapter: its heading, a sentence that says what one sees, and its parts (HTML); `name` is its anchor."""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    anchor = f' id="{name}"' if name else ""
    return f"<section{anchor}><h2>{title}</h2>{intro}{''.join(parts)}</section>\n"


def note(text: str) -> str:
    """A sentence that stands where something is missing; `text` is escaped."""
    return f'<p class="note">{escape(text)}</p>'


def table(head: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]], left: Iterable[int] = ()) -> str:
    """A table of HTML cells; a row marked True is the best. Columns in `left` hold text that may wrap."""
    wide = set(left)
    top = "".join(f'<th class="l">{h}</th>' if i in wide else f"<th>{h}</th>" for i, h in enumerate(head))
    body = ""
    for cells, best in rows:
        filled = "".join(f'<td class="l wrap">{c}</td>' if i in wide else f"<td>{c}</td>" for i, c in enumerate(cells))
        body += f'<tr class="best">{filled}</tr>' if best else f"<tr>{filled}</tr>"
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def numbers(items: Iterable[tuple[str, str]]) -> str:
    """A strip of (number, what it counts)."""
    return (
        '<div class="numbers">' + "".join(f"<div><b>{n}</b><span>{escape(t)}</span></div>" for n, t in items) + "</div>"
    )


def chart(title: str, subtitle: str, svg: str) -> str:
    """A titled chart."""
    return f"<figure><figcaption>{escape(title)}<small>{escape(subtitle)}</small></figcaption>{svg}</figure>"
