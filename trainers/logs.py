"""One way to log: stdlib `logging`, each line with the run, the stage and the unit it belongs to. Needs no Ray.

A module logs as ever, `logging.getLogger(__name__).warning(...)`, or with fields of its own through `event`. The key
`log` says where lines go. In an actor they are kept until the unit they belong to is done, and travel to the driver
with its row, so that one log has all of them on any cluster; what an actor that died had said lies in Ray's session
folder, in `worker-*.err`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from tables import Files, InputError

FORMS = ("text", "json", "file")
_OURS = ("models", "pipelines", "sandbox", "selection", "tables", "trainers")
_KEPT = 1000  # lines that an actor holds for its next row

_run: dict[str, str] = {}  # of this process: `run`, `command`, `start`
_here: ContextVar[Mapping[str, str]] = ContextVar("here", default={})  # noqa: B039 - never changed in place


def event(logger: logging.Logger, message: str, level: int = logging.INFO, /, **fields: Any) -> None:
    """Log a message with fields, which stand in a JSON line under their names and in text behind the message."""
    logger.log(level, "%s", message, extra={"fields": fields})


def ids() -> dict[str, str]:
    """What the lines of this place carry: `run`, `command`, `start`, and `stage` and `unit` where there is one."""
    return {**_run, **_here.get()}


@contextmanager
def within(**names: str) -> Iterator[None]:
    """Lines of this thread carry a `stage` or `unit` for the while."""
    before = _here.get()
    _here.set({**before, **names})
    try:
        yield
    finally:
        _here.set(before)  # no `reset`: a generator may be closed in another context


def check_log(form: Any) -> None:
    """Raise InputError for a value that the key `log` does not have."""
    if form not in FORMS:
        raise InputError("log", form, f"use one of {', '.join(FORMS)}")


@contextmanager
def logging_to(form: str, command: str, run: str | None, folder: str | None) -> Iterator[None]:
    """Send the lines of a command where `log` says.

    Args:
        form: `text` (warnings and errors, on the error stream), `json` (JSON lines, there), or `file` (as text, and
            all of it as JSON lines in `folder`).
        run: name of the run; None: the command has none, and its name stands for it.
        folder: a local folder for the file; None: there is none.

    Raises:
        InputError: `file` without a folder.
    """
    if form == "file" and folder is None:
        raise InputError("log", form, "this command writes to no local lake: use json, on the error stream")
    handlers: list[logging.Handler] = [_ErrorStream()]
    handlers[0].setFormatter(_Json() if form == "json" else _Text())
    handlers[0].setLevel(logging.INFO if form == "json" else logging.WARNING)
    if form == "file":
        handlers.append(_File(os.path.join(str(folder), "log.jsonl"), encoding="utf-8", delay=True))
        handlers[1].setFormatter(_Json())
    root, before = logging.getLogger(), logging.getLogger().level
    _run.update(run=str(run or command), command=command, start=uuid.uuid4().hex[:8])
    for handler in handlers:
        handler.addFilter(_wanted)
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(before)
        _run.clear()
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def log_folder(command: str, run: str | None, lake: str) -> str | None:
    """Where `log=file` writes: the run's folder for the loop, one beside it for other commands; None: not on a disk."""
    files = Files(str(lake))
    if not files.is_local:
        return None
    path = files.uri
    if command == "selftrain" and re.fullmatch(r"[\w-][\w.-]*", str(run)):
        return os.path.join(path, "runs", str(run))
    return os.path.join(path, "logs", command)


class Gathered(logging.Handler):
    """In an actor: holds lines until a row takes them along.

    Args:
        names: what the driver's lines carry, so that those in the worker's own file do too.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.lines: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        _run.update(names)
        own = _ErrorStream()
        own.setFormatter(_Json())
        for handler in (self, own):
            handler.addFilter(_wanted)
            logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        traceback = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # another library's message does not fit its arguments: no unit is lost for it
            return self.handleError(record)
        self.lines.append({
            "name": record.name, "levelno": record.levelno, "levelname": record.levelname, "created": record.created,
            "msg": text, "fields": getattr(record, "fields", {}), "exc_text": traceback, "ids": ids(),
        })  # fmt: skip

    def take(self) -> str:
        """The lines since the last time, for `replay`."""
        self.acquire()
        try:
            lines, self.lines = self.lines, deque(maxlen=_KEPT)
        finally:
            self.release()
        return json.dumps(list(lines), default=str)


def replay(lines: str) -> None:
    """Log what an actor said, as its own."""
    for line in json.loads(lines):
        record = logging.makeLogRecord(line)
        logging.getLogger(record.name).handle(record)


def joined(lines: Iterable[str]) -> str:
    """Several `Gathered.take` as one."""
    return json.dumps([line for some in lines for line in json.loads(some)])


def _wanted(record: logging.LogRecord) -> bool:
    """Our own lines, and other libraries' warnings."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OURS


def _names(record: logging.LogRecord) -> dict[str, str]:
    return getattr(record, "ids", None) or ids()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        names = _names(record)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **{name: names.get(name) for name in ("run", "command", "start", "stage", "unit")},
            "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        fields = getattr(record, "fields", {})
        line |= {k: None if v != v or v in (math.inf, -math.inf) else v for k, v in fields.items() if k not in line}
        if text := record.exc_text or (self.formatException(record.exc_info) if record.exc_info else None):
            line["traceback"] = text
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        names = _names(record)
        place = " ".join(names[name] for name in ("stage", "unit") if name in names)
        fields = {k: v for k, v in getattr(record, "fields", {}).items() if k != "traceback"}
        text = " ".join([record.getMessage(), *(f"{name}={value}" for name, value in fields.items())])
        return f"{record.levelname.lower()}: {place + ': ' if place else ''}{text}"


class _ErrorStream(logging.Handler):
    """Writes to what `sys.stderr` is at that moment: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except (OSError, TypeError, ValueError):  # a closed pipe, or a message that does not fit its arguments
            self.handleError(record)


class _File(logging.FileHandler):
    """Opened at the first line; one write a line, so that two commands may share a file."""

    def _open(self) -> Any:
        os.makedirs(os.path.dirname(self.baseFilename), exist_ok=True)
        return super()._open()
