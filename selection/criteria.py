"""Criteria: one number per pseudo-labelled instance, from the columns of an Arrow table.

Each file `criteria_*.py` holds one idea and says what its columns cost to predict. To add one, write a function under
`@criterion` in a file of its own and import it in `selection/__init__.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from selection.columns import all_null, by_blocks
from tables import InputError

Score = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Criterion:
    """A scoring function, its direction, the columns it needs and the parameters it takes.

    Attributes:
        compute: a table -> [N] float64; for a fusion: one array of costs [N] for each of `fuses` -> [N].
        fuses: criteria whose ranks among all rows make the score; empty where a row is scored by itself.
        cuts: only the best `top_n` are kept; otherwise all are.
    """

    compute: Score
    higher_is_better: bool
    columns: tuple[str, ...]
    params: tuple[str, ...]
    fuses: tuple[str, ...] = ()
    cuts: bool = True


CRITERIA: dict[str, Criterion] = {}
HIGHER_IS_BETTER: dict[str, bool] = {}


def register(name: str, found: Criterion) -> None:
    """Make a criterion known by this name."""
    CRITERIA[name] = found
    HIGHER_IS_BETTER[name] = found.higher_is_better


def criterion(*columns: str, higher_is_better: bool) -> Callable[[Score], Score]:
    """Register a function that scores rows one by one under its own name."""

    def decorate(compute: Score) -> Score:
        params = tuple(inspect.signature(compute).parameters)[1:]
        register(compute.__name__, Criterion(compute, higher_is_better, columns, params))
        return compute

    return decorate


def find(criterion: str) -> Criterion:
    """The criterion of this name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if criterion not in CRITERIA:
        raise InputError("criterion", criterion, f"unknown; choose one of {', '.join(CRITERIA)}")
    return CRITERIA[criterion]


def check_params(criterion: str, params: Mapping[str, Any]) -> None:
    """Raise InputError for a parameter that the criterion does not take."""
    takes = find(criterion).params
    for name, value in params.items():
        if name not in takes:
            raise InputError(name, value, f"`{criterion}` takes {', '.join(takes) or 'no parameters'}")


def score(criterion: str, table: pa.Table, **params: Any) -> np.ndarray:
    """Score every row; the sign is the formula's own, `HIGHER_IS_BETTER[criterion]` gives the direction.

    Args:
        table: `pseudo_labels` joined with `instances.bbox`, N rows; only the criterion's own columns are needed.
        params: the criterion's parameters (`CRITERIA[criterion].params`), say the seed of `random`.

    Returns:
        [N] float64. NaN where a row cannot be scored: a missing prediction, a null box or one without area.

    Raises:
        InputError: unknown criterion or parameter, a column is missing, or widths do not fit each other.
    """
    found = find(criterion)
    check_params(criterion, params)
    for name in found.columns:
        if name not in table.column_names:
            raise InputError("criterion", criterion, f"needs the column `{name}`, which the table does not have")
    if found.fuses:
        return found.compute(*(costs(c, score(c, table)) for c in found.fuses))
    if any(all_null(table, name) for name in found.columns):
        return np.full(len(table), np.nan)
    return by_blocks(lambda rows: found.compute(rows, **params), table)


def costs(criterion: str, scores: np.ndarray) -> np.ndarray:
    """Scores turned so that lower is better; infinite where a row has none.

    Adding 0.0 makes -0.0 the same as 0.0, so that ties are ties.
    """
    return np.where(np.isfinite(scores), (-scores if find(criterion).higher_is_better else scores) + 0.0, np.inf)
