"""Rules that go with any criterion, and quotas: a limit on how much of a selection may look alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from selection.viewpoint import view
from tables import InputError


@dataclass(frozen=True)
class Rules:
    """What a selection holds to beside its criterion; None: no such rule.

    Quotas go down the ranking and count within a round: first each photographer's best, then of these each
    viewpoint's best, then the `top_n` best of what is left. They need all rows at once and cost next to nothing.

    Attributes:
        gate: joints whose reprojection is off by this share of the box's longer side or more are masked before
            scoring (`selection.gated`); an instance needs half of its joints.
        per_user: most instances of one photographer; needs the column `author`, whose nulls are not limited.
        per_view: most instances seen from one of the directions of `selection.view`.
    """

    gate: float | None = None
    per_user: int | None = None
    per_view: int | None = None

    @staticmethod
    def split(policy: dict[str, Any]) -> tuple[Rules, dict[str, Any]]:
        """The rules among keyword arguments, and the criterion's parameters."""
        names = Rules.__dataclass_fields__
        rest = {k: v for k, v in policy.items() if k not in names}
        return Rules(**{k: v for k, v in policy.items() if k in names}), rest

    def check(self) -> None:
        """Raise InputError for a rule that is out of range."""
        if self.gate is not None and (type(self.gate) not in (int, float) or not self.gate > 0):
            raise InputError("gate", self.gate, "must be a share of the box's longer side above 0, or null")
        for name, most in (("per_user", self.per_user), ("per_view", self.per_view)):
            if most is not None and (type(most) is not int or most < 1):
                raise InputError(name, most, "must be a whole number of instances, 1 or more, or null")

    def given(self) -> dict[str, Any]:
        """Those rules that are set."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    def quotas(self) -> dict[str, int]:
        """Columns of `groups` and how many rows of one group may be kept, in the order in which they count."""
        both = {"user": self.per_user, "view": self.per_view}
        return {name: most for name, most in both.items() if most is not None}


def groups(table: pa.Table, rules: Rules) -> dict[str, Any]:
    """The columns that the quotas count: `user` and `view`, as far as they are asked for.

    Raises:
        InputError: `author` is needed and not there.
    """
    columns: dict[str, Any] = {}
    if rules.per_user is not None:
        if "author" not in table.column_names:
            raise InputError("per_user", rules.per_user, "needs the column `author`, which the table does not have")
        columns["user"] = table["author"].cast(pa.string())
    if rules.per_view is not None:
        columns["view"] = pa.array(view(table), pa.int32())
    return columns


def within(rows: pa.Table, name: str, most: int, candidates: np.ndarray) -> np.ndarray:
    """[N] bool: of the candidates [N], in order, the first `most` of each round and group; a null has no group."""
    rounds = rows["round"].combine_chunks().dictionary_encode().indices.to_numpy()
    column = rows[name].combine_chunks().dictionary_encode().indices
    known = column.is_valid().to_numpy(zero_copy_only=False) & candidates
    codes = column.fill_null(0).to_numpy().astype(np.int64)
    key = np.where(known, rounds * (codes.max(initial=0) + 1) + codes, -1)
    order = np.argsort(key, kind="stable")
    first = np.searchsorted(key[order], key[order], "left")
    place = np.empty(len(key), np.int64)
    place[order] = np.arange(len(key)) - first
    return candidates & (~known | (place < most))
