"""The configuration reference: a page made of the YAML files of `conf/` and their comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import yaml

KEY = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>.*)")
PAGE = re.compile(r"\bdocs/([a-z-]+)\.md\b")
CHOICE = re.compile(r"[\w., ]+: ")  # a line of a comment that begins with the value it explains
INTRO = """# Configuration

Every key of every command, with its default and what it means; `dotted.keys` are set on the command line as they stand
here, `key=value`. This page is made of the comments in [`conf/`](../conf), where the same can be read as it is
composed. `python -m pipelines.<command> --cfg job` prints what a command would run with and starts nothing.

A command takes its own keys, those of the groups it names, and the [shared keys](#base). Of a group another file is
chosen by name, say `train=full`. `${...}` stands for another key's value.
"""


class Key(NamedTuple):
    """A key of a file, or a title between keys.

    Attributes:
        path: dotted; empty for a title.
        value: as the file has it; empty for a section of keys.
        text: lines of its comment.
    """

    path: str
    value: str
    text: list[str]


def header_of(source: str) -> list[str]:
    """The comment that a file begins with, line by line."""
    lines = []
    for line in source.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return [line for line in lines if not line.startswith("@package")]


def keys_of(source: str) -> list[Key]:
    """The keys of a file in its order, but for Hydra's `defaults`."""
    found: list[Key] = []
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    body = source.splitlines()[len(re.match(r"(?:#.*\n)*", source)[0].splitlines()) :]  # type: ignore[index]
    for line in body:
        text = line.strip()
        match = KEY.fullmatch(line)
        if match is None:
            if text.startswith("# --"):
                found.append(Key("", "", [text.strip("# -")]))
            elif line.startswith("#"):
                above.append(text.lstrip("# "))
            elif text.startswith("#") and found:
                found[-1].text.append(text.removeprefix("#"))
            continue
        indent = len(match["indent"])
        parents = [p for p in parents if p[0] < indent]
        value, comment = (*re.split(r"(?:^|\s)#", match["value"].strip(), maxsplit=1), "")[:2]
        path = ".".join([*(name for _, name in parents), match["key"]])
        parents.append((indent, match["key"]))
        if path.split(".")[0] != "defaults":
            found.append(Key(path, value.strip(), [*above, *([comment] if comment else [])]))
        above = []
    return found


def defaults_of(source: str) -> list[tuple[str, str]]:
    """The groups that a file chooses from, and the option; of another file the name and an empty option."""
    chosen: list[tuple[str, str]] = []
    for item in (yaml.safe_load(source) or {}).get("defaults", []):
        chosen += [(str(g), str(o)) for g, o in item.items()] if isinstance(item, dict) else [(str(item), "")]
    return [(group, option) for group, option in chosen if group != "_self_"]


def page(conf: Path) -> str:
    """The whole page in Markdown."""
    parts = [INTRO]
    files = sorted(conf.glob("*.yaml"), key=lambda f: (f.stem != "base", f.stem))
    for file in files:
        source = file.read_text(encoding="utf-8")
        table = _table([source], file.stem)
        parts.append(f"## {file.stem}\n\n{_prose(header_of(source))}\n\n{_takes(source)}{table}")
    for folder in sorted(p for p in conf.iterdir() if any(p.glob("*.yaml"))):
        options = sorted(folder.glob("*.yaml"), key=lambda f: (f.stem not in ("default", "small"), f.stem))
        sources = [f.read_text(encoding="utf-8") for f in options]
        prose = "\n\n".join(
            (f"**`{folder.name}={file.stem}`** " if len(options) > 1 else "") + _prose(header_of(source))
            for file, source in zip(options, sources, strict=True)
        )
        title = f"## Group {folder.name} {{ #group-{folder.name} }}"
        names = [file.stem for file in options]
        table = _table(sources, f"group-{folder.name}", names, _package(sources[0], folder.name))
        parts.append(f"{title}\n\n{prose}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _takes(source: str) -> str:
    links = [f"[`{g}={o}`](#group-{g})" if o else f"[{g}](#{g})" for g, o in defaults_of(source)]
    return f"Takes the keys of {', '.join(links)}.\n\n" if links else ""


def _package(source: str, group: str) -> str:
    """What keys of a group begin with on the command line."""
    return "" if "# @package _global_" in source else f"{group}."


def _table(sources: list[str], name: str, options: list[str] | None = None, package: str = "") -> str:
    """Keys, values (a column for each source) and what explains them: once where the sources say the same."""
    columns = [{k.path: k for k in keys_of(source) if k.path} for source in sources]
    everything = [k for source in sources[:1] for k in keys_of(source)]
    everything += [k for column in columns[1:] for k in column.values() if k.path not in columns[0]]
    rows, done = [], set()
    for key in everything:
        if not key.path:
            rows.append(f'<tr><th colspan="{2 + len(sources)}">{escape(key.text[0])}</th></tr>')
        elif key.path not in done:
            done.add(key.path)
            there = [c.get(key.path, Key(key.path, "", [])) for c in columns]
            said = {
                "\n".join(k.text): name for k, name in reversed([*zip(there, options or [""], strict=True)]) if k.text
            }
            meaning = "<br>".join(
                (f"<em>{option}</em>: " if len(said) > 1 else "") + _explained(text.split("\n"))
                for text, option in reversed(said.items())
            )
            values = "".join(f"<td>{_code(k.value)}</td>" for k in there)
            short = f'<code id="{name}.{key.path}">{escape(package + key.path)}</code>'
            depth = key.path.count(".")
            rows.append(f'<tr class="depth-{depth}"><td>{short}</td>{values}<td>{meaning}</td></tr>')
    if not rows:
        return ""
    heads = ["key", *(options if options and len(options) > 1 else ["default"]), "meaning"]
    head = "".join(f"<th>{h}</th>" for h in heads)
    body = "\n".join(rows)
    table = f'<table class="conf"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'
    return f'<div class="conf">{table}</div>'


def _code(value: str) -> str:
    return f"<code>{escape(value)}</code>" if value else ""


def _explained(lines: list[str]) -> str:
    """A comment in HTML: its lines run on, but for those that explain a choice."""
    out = ""
    for line in lines:
        text = line.strip()
        breaks = bool(out) and (line.startswith("   ") or bool(CHOICE.match(text)))
        out += ("<br>" if breaks else " " if out else "") + escape(text)
    out = re.sub(r"`([^`]+)`", r"<code>\1</code>", out)
    return PAGE.sub(r'<a href="\1.html">\1</a>', out)


def _prose(lines: list[str]) -> str:
    """A header in Markdown: indented lines are commands."""
    return "\n\n".join(_blocks(lines))


def _blocks(lines: list[str]) -> Iterator[str]:
    text: list[str] = []
    code: list[str] = []
    for line in [*lines, ""]:
        if line.startswith("  ") and line.strip().startswith(("python", "wildshape", "export")):
            if text:
                yield _escaped(" ".join(text))
                text = []
            code.append(line.strip())
            continue
        if code:
            yield "```sh\n" + "\n".join(code) + "\n```"
            code = []
        if line.strip():
            text.append(line.strip())
        elif text:
            yield _escaped(" ".join(text))
            text = []


def _escaped(text: str) -> str:
    """Text outside of `code` as it stands: no Markdown, no HTML."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        plain = re.sub(r"([*_\[\]|])", r"\\\1", escape(parts[i], quote=False))
        parts[i] = PAGE.sub(r"[\1](\1.md)", plain)
    return "`".join(parts)
