"""docs/operations.md says what is: its tables of codes, fields, metrics and messages are held against the code."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from trainers import logs
from trainers.app import Exit
from trainers.meters import METRICS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def cells(heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, without its head."""
    part = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return rows[2:]


def test_exit_codes() -> None:
    assert [int(row[0]) for row in cells("Exit codes")] == [int(code) for code in Exit]


def test_fields_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.logging_to("json", "crawl", None, None):
        logging.getLogger("pipelines").info("x")
    told = {name for row in cells("Logs") for name in re.findall(r"`(\w+)`", row[0])}
    assert told == set(json.loads(capsys.readouterr().err))


def test_metrics() -> None:
    rows = cells("Metrics")
    names = {n + "_total" * (kind == "Counter"): set(tags) for n, (kind, tags, _) in METRICS.items()}
    assert {row[0].strip("`").removeprefix("ray_"): set(re.findall(r"\w+", row[1])) for row in rows} == names


def test_what_failures_say_is_said_somewhere() -> None:
    rooms = ("models", "pipelines", "selection", "tables", "trainers")
    code = "\n".join(p.read_text(encoding="utf-8") for room in rooms for p in (ROOT / room).glob("*.py"))
    said = [text for row in cells("What each failure looks like") for text in re.findall(r"`([^`]+)`", row[0])]
    assert len(said) > 15
    assert not [text for text in said if text not in code]
