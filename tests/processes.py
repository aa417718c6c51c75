"""Processes of a command under test: who descends from whom, and a kill that Ray's own processes must survive."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


def families() -> dict[int, int]:
    """Process id -> parent's id of everything that runs, zombies aside."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state != "Z":
                found[int(entry.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    parents = families()
    below: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {p for p, parent in parents.items() if parent in fresh} - below
        below |= fresh
    return below


def is_agent(pid: int) -> bool:
    """Whether this is one of a node's two agents, which write logs alone and take minutes to miss their node."""
    try:
        return b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_alone(driver: subprocess.Popen, patience_s: float = 120) -> None:
    """kill -9 the driver and nothing else, then wait for what it had started to go."""
    children = descendants(driver.pid)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    deadline = time.monotonic() + patience_s
    while left := children & families().keys():
        if all(is_agent(pid) for pid in left):
            break
        assert time.monotonic() < deadline, "Ray outlives its killed driver"
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
