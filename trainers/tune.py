"""Sweep the selection with Ray Tune: criterion, size, gate, quota of views, share of labels, by AUC on validation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from tables import InputError, Lake
from trainers.app import command

# Keys that are lists here and single values in `selftrain`.
SPACE = ("criterion", "top_n", "gate", "per_view", "label_share")
FIXED = ("per_user", "seed")  # the same for all trials
SEARCHES = ("grid", "random", "asha", "optuna")


@command("tune")
def main(cfg: Any) -> None:
    check(cfg)
    lake = Lake(cfg.lake)
    run = lake.files.read_json(f"runs/{cfg.run}/run.json")
    if run is None:
        known = ", ".join(lake.files.names("runs")) or "none"
        raise InputError("run", cfg.run, f"no finished run of that name in {lake.uri} (there: {known})")
    if not any("selections" in r for r in run["rounds"]):
        raise InputError("run", cfg.run, "has no round on pseudo-labels, so there are none to select from")
    from trainers.sweep import sweep

    sweep(cfg, lake, run, points(cfg))


def check(cfg: Any) -> None:
    """Refuse what cannot be swept, before Ray starts.

    Raises:
        InputError: naming the key, its value and the fix.
    """
    from selection import check as check_selection
    from selection import policy_of

    for key in SPACE:
        if not isinstance(cfg[key], Sequence) or isinstance(cfg[key], str) or not cfg[key]:
            raise InputError(key, cfg[key], f"give a list, say '{key}=[...]'")
    if "oracle" in cfg.criterion:
        raise InputError("criterion", "oracle", "needs the truth, which training may not see: diagnostics only")
    for point in points(cfg):
        share = point["label_share"]
        if share is not None and (type(share) not in (int, float) or not 0 <= share <= 1):
            raise InputError("label_share", share, "must be a share of each batch, 0 .. 1, or null")
        policy = policy_of({**{k: cfg[k] for k in FIXED}, **point})
        check_selection(point["criterion"], point["top_n"], **policy)
    if cfg.search not in SEARCHES:
        raise InputError("search", cfg.search, f"use one of {', '.join(SEARCHES)}")
    if type(cfg.trials) is not int or cfg.trials < 1:
        raise InputError("trials", cfg.trials, "must be a whole number, 1 or more")
    if cfg.search == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise InputError("search", "optuna", "is not installed: pip install 'wildshape[optuna]'") from error


def points(cfg: Any) -> list[dict[str, Any]]:
    """Every combination of the space, in the order of its lists."""
    return [dict(zip(SPACE, values, strict=True)) for values in product(*(list(cfg[key]) for key in SPACE))]


if __name__ == "__main__":
    main()
