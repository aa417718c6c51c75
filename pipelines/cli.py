"""The console script: `wildshape <command> key=value` is `python -m pipelines.<command> key=value`.

A command is a file `conf/<command>.yaml` with a module of that name in `pipelines` or `trainers`; its one-line
description is the first line of the file. So there is no list to keep.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from importlib import resources

ROOMS = ("pipelines", "trainers")


def commands() -> dict[str, str]:
    """Commands by name, each with its one-line description."""
    files = sorted(f.name for f in resources.files("conf").iterdir() if f.name.endswith(".yaml"))
    names = [f.removesuffix(".yaml") for f in files]
    return {name: summary(name) for name in names if module_of(name)}


def module_of(command: str) -> str | None:
    """The module that runs a command, or None if there is no such command."""
    for room in ROOMS:
        if importlib.util.find_spec(f"{room}.{command}"):
            return f"{room}.{command}"
    return None


def summary(command: str) -> str:
    """First line of a command's config, without the comment sign."""
    first = (resources.files("conf") / f"{command}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip()


def main() -> None:
    """Run the command named by the first argument; the others are Hydra's."""
    known = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_usage(known))
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        sys.stderr.write(f"error: command={name}: there is no such command; {hint}\n")
        sys.exit(2)
    sys.argv = [f"wildshape {name}", *sys.argv[2:]]
    importlib.import_module(str(module_of(name))).main()


def _usage(known: dict[str, str]) -> str:
    width = max(map(len, known), default=0)
    rows = "".join(f"  {name:<{width}}  {text}\n" for name, text in known.items())
    return (
        "wildshape: articulated 3D animal shape from web photos and about 150 labelled images\n\n"
        "usage: wildshape <command> [key=value ...]\n\n"
        f"{rows}\n"
        "wildshape <command> --cfg job   print the command's configuration\n"
        "wildshape <command> --help      its keys and Hydra's own options\n"
    )


if __name__ == "__main__":
    main()
