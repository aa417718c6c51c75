"""What a round is: how many it keeps, whose judgement it trusts, and what stops the loop. Plain functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tables import InputError

TEACHERS = ("last", "best", "ema")


def sizes(top_n: Any) -> list[Any]:
    """`top_n` as a schedule: a list has an entry for each round, and its last one stays."""
    return list(top_n) if isinstance(top_n, Sequence) and not isinstance(top_n, str) else [top_n]


def size_of(top_n: Any, number: int) -> int:
    """Instances that round `number` (1, 2, ...) may keep."""
    schedule = sizes(top_n)
    return schedule[min(number, len(schedule)) - 1]


def check_rules(cfg: Any) -> None:
    """Refuse what is said of rounds and cannot be done.

    Raises:
        InputError: naming the key, its value and the fix.
    """
    if type(cfg.rounds) is not int or cfg.rounds < 0:
        raise InputError("rounds", cfg.rounds, "must be a whole number, 0 or more")
    if cfg.teacher not in TEACHERS:
        raise InputError("teacher", cfg.teacher, f"use one of {', '.join(TEACHERS)}")
    if type(cfg.retrain_pose) is not bool:
        raise InputError("retrain_pose", cfg.retrain_pose, "use true or false")
    if not sizes(cfg.top_n):
        raise InputError("top_n", "[]", "must be a whole number, or a list with one for each round")
    stop = cfg.stop
    if type(stop.patience) is not int or stop.patience < 0:
        raise InputError("stop.patience", stop.patience, "must be a whole number, 0 or more")
    if stop.drop is not None and not (_number(stop.drop) and stop.drop >= 0):
        raise InputError("stop.drop", stop.drop, "must be points of auc_06_10, 0 or more, or null")
    bounds = sizes(stop.kept)
    if len(bounds) != 2 or not all(_number(b) for b in bounds) or not 0 <= bounds[0] <= bounds[1] <= 1:
        raise InputError("stop.kept", stop.kept, "must be two shares of the animals, the least and the most; 0 .. 1")
    for name in ("views", "overlap"):
        if not _number(stop[name]) or not 0 <= stop[name] <= 1:
            raise InputError(f"stop.{name}", stop[name], "must be between 0 (off) and 1")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def alarm(found: Mapping[str, Any], stop: Mapping[str, Any]) -> str | None:
    """Why a selection should not be trained on; None if it may.

    Args:
        found: `instances`, `selected`, `evenness` and `jaccard` of `pipelines.diagnostics`; None: not known.
        stop: the section of the config.
    """
    share = found["selected"] / max(1, found["instances"])
    least, most = stop["kept"]
    if not found["selected"]:
        return "nothing was selected"
    if not least <= share <= most:
        return f"{share:.1%} of the animals were selected, which is not within stop.kept=[{least}, {most}]"
    if found["evenness"] is not None and found["evenness"] < stop["views"]:
        return (
            f"the viewpoints collapse: those kept are {found['evenness']:.2f} as even as those there are, "
            f"below stop.views={stop['views']}"
        )
    if found["jaccard"] is not None and found["jaccard"] < stop["overlap"]:
        return f"the selection churns: overlap {found['jaccard']:.2f} with the former is below {stop['overlap']}"
    return None


def enough(scores: Sequence[float], stop: Mapping[str, Any]) -> str | None:
    """Why the loop should end after these rounds, by their validation scores; None if it should go on."""
    best = max(scores)
    if stop["drop"] is not None and scores[-1] < best - stop["drop"]:
        return f"validation fell {best - scores[-1]:.2f} points below round {scores.index(best)}"
    patience = stop["patience"]
    if patience and len(scores) > patience and max(scores[-patience:]) < max(scores[:-patience]) + stop["min_gain"]:
        return f"no gain on validation in {patience} round{'s' if patience > 1 else ''}"
    return None
