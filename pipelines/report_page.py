"""The report's page: one HTML file with its style inside, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from pipelines.report_style import CSS


def page(title: str, body: str, style: str = "") -> str:
    """The whole document; needs nothing from anywhere else."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def section(title: str, *parts: str, lead: str = "") -> str:
    """A chapter: its heading, a sentence that says what one sees, and its parts (HTML)."""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{title}</h2>{intro}{''.join(parts)}</section>\n"


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
