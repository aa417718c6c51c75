"""The shell commands and the Python of README, CONTRIBUTING and docs/, taken from the pages themselves."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
SHELL, PYTHON = ("sh", "bash", "shell", "console"), ("python", "py")
# A command of ours, as people write it: in an active environment or by a path to its Python.
OURS = re.compile(r"(?:\S*python3? -m (?:pipelines|trainers)\.|(?:\S*/)?wildshape )(\w+)(.*)")
INLINE = re.compile(r"`((?:python -m (?:pipelines|trainers)\.|wildshape )\w[^`]*)`")


class Piece(NamedTuple):
    """One shell command, continued lines joined, or one block of Python; where it stands, and below which heading."""

    page: str
    heading: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.heading}): {self.text}"


def pages() -> list[str]:
    """README and all others, by their path in the repository."""
    found = [p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if p.exists()]
    return [p.relative_to(ROOT).as_posix() for p in (*found, *sorted((ROOT / "docs").rglob("*.md")))]


def pieces(page: str, heading: str | None = None, language: str | None = None) -> list[Piece]:
    """What a page, or the part of it below a heading, tells its reader to type; a block without a language is text,
    unless it begins with a command of ours."""
    return [p for p in _all(page) if heading in (None, p.heading) and language in (None, p.language)]


def _all(page: str) -> Iterator[Piece]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        _, language, block = fence.groups()
        block, line = textwrap.dedent(block), text[: fence.start()].count("\n") + 2
        headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", text[: fence.start()]), re.M)
        heading = headings[-1] if headings else ""
        if language in PYTHON:
            yield Piece(page, heading, line, "python", block)
        elif language in SHELL or (not language and OURS.match(block)):
            for at, command in commands(block):
                yield Piece(page, heading, line + at, "sh", command)


def commands(block: str) -> Iterator[tuple[int, str]]:
    """Commands of a shell block with their lines; a block that is a small script of its own is one command."""
    if re.search(r"<<|^\s*(for|while|if|case)\b|\{$", block, re.M):
        yield 0, block.strip()
        return
    console, at = re.search(r"^\$ ", block, re.M), 0
    for command in re.split(r"(?<!\\)\n", block):
        shown = re.sub(r"\s+#.*$", "", command.strip())
        if shown and not shown.startswith("#") and (not console or shown.startswith("$ ")):
            yield at, re.sub(r"\s*\\\n\s*", " ", shown.removeprefix("$ "))
        at += command.count("\n") + 1


def inline(page: str) -> list[tuple[int, str]]:
    """Whole commands of ours that stand in a page's text, with their lines."""
    text = FENCE.sub(lambda f: "\n" * f.group().count("\n"), (ROOT / page).read_text(encoding="utf-8"))
    found = [(text[: m.start()].count("\n") + 1, " ".join(m.group(1).split())) for m in INLINE.finditer(text)]
    return [(line, command) for line, command in found if "..." not in command and "<" not in command]


def ours(command: str) -> list[list[str]]:
    """The commands of ours in a shell command, each as the words after `wildshape`; "..." stands for others."""
    found = filter(None, (OURS.search(" ".join(part)) for part in _simple(command)))
    return [[m.group(1), *(word for word in shlex.split(m.group(2)) if word != "...")] for m in found]


def _simple(command: str) -> Iterator[list[str]]:
    """Simple commands of a line: what stands between `&&`, `|` and `;`, quoted words quoted again."""
    lexer = shlex.shlex(command, posix=False, punctuation_chars="&|;()")
    lexer.whitespace_split, part = True, []
    for word in lexer:
        if set(word) <= set("&|;()"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


def call(words: list[str]) -> None:
    """Run a command of ours in this process, as its console script would; raises SystemExit where that would exit."""
    from pipelines import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["wildshape", *words])
        cli.main()


def compose(words: list[str]) -> None:
    """Print the configuration of a command of ours: each of its keys exists and resolves, at every point of a sweep."""
    name, *rest = words
    if not {"-m", "--multirun"} & set(rest):
        call([*words, "--cfg", "job"])
        return
    given = [w for w in rest if w not in ("-m", "--multirun")]
    for override in OverridesParser.create().parse_overrides(given):
        others = [w for w in given if w != override.input_line]
        for value in override.sweep_string_iterator() if override.is_sweep_override() else ():
            call([name, *others, f"{override.key_or_group}={value}", "--cfg", "job"])


def parse(piece: Piece) -> None:
    """What can be told of a command without running it.

    It is a shell's; commands of ours in it compose; files of the repository that it names are there; a script of
    `benchmarks/` knows the options.
    """
    if piece.language == "python":
        compile(piece.text, str(piece), "exec")
        return
    done = subprocess.run(["bash", "-n", "-c", piece.text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in ours(piece.text):
        compose(words)
    for word in re.findall(r"(?<![\w/.-])(?:deploy|conf|benchmarks|docs|notebooks|tests)/[\w./-]+", piece.text):
        assert (ROOT / word).exists(), f"{word} does not exist"
    for script in re.findall(r"benchmarks[./](\w+)", piece.text):
        source = ROOT / "benchmarks" / f"{script}.py"
        if source.exists():
            text = source.read_text(encoding="utf-8")
            for shared in re.findall(r"from benchmarks\.(\w+) import", text):  # experiments share a parser
                text += (ROOT / "benchmarks" / f"{shared}.py").read_text(encoding="utf-8")
            for option in re.findall(r"(?<=\s)--[a-z][\w-]*", piece.text.split(script, 1)[1]):
                assert f'"{option}"' in text, f"{source.name} has no option {option}"
        else:
            assert script == "results", f"benchmarks has no {script}"
