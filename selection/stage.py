"""A round's selection as a committed dataset: `pseudo_labels` joined with `instances.bbox` -> `selections`.

Ranking is global and scoring costs microseconds a row, while a Ray Data job takes seconds to start: the parts are
scored one after the other in this process, and only ids and scores are held for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from selection.corrected import labelled_by_hand
from selection.criteria import CRITERIA
from selection.leaks import evaluation_photos, leaks
from selection.policy import check, rank, scored
from selection.quota import Rules
from tables import KEYS, Dataset, InputError, Lake, fingerprint, schema, unique_rows


def select_round(
    lake: Lake,
    pseudo: Dataset,
    instances: Dataset | Sequence[Dataset],
    criterion: str,
    top_n: int,
    round: int,
    truth: pa.Table | None = None,
    **policy: Any,
) -> Dataset:
    """Rank one round's pseudo-labels and commit the selection; done already means nothing to do.

    Animals of photos that look like one of the val or test split are never selected: the reason names that photo. Nor
    are those that a person labelled: their labels are trained on, and another animal takes their place.

    Args:
        pseudo: committed `pseudo_labels`; rows of other rounds are left out, a null round is 0.
        instances: where the boxes are; an instance without one is never selected.
        truth: `instance_id, truth_keypoints`, for the control `oracle` alone.
        policy: the criterion's parameters and `Rules`, as in `selection.select`; `per_user` looks the authors of the
            instances' photos up in the lake.

    Returns:
        The finished `selections` dataset, in a slot of its own for each criterion and round.

    Raises:
        InputError: unknown criterion, bad `top_n`, a column the criterion needs is not in `pseudo_labels`.
    """
    check(criterion, top_n, **policy)
    rules, params = Rules.split(policy)
    sources = [instances] if isinstance(instances, Dataset) else list(instances)
    state = {"pseudo_labels": pseudo.state(), "instances": [s.state() for s in sources]}
    identity = {"criterion": criterion, "top_n": top_n, "round": round, "params": params, "input": state}
    if rules.given():
        identity["rules"] = rules.given()
    held = evaluation_photos(lake, pseudo.category)
    if len(held):
        identity["held"] = fingerprint(held.to_pydict())
    by_hand = pa.concat_arrays([labelled_by_hand(s) for s in sources])
    if len(by_hand):
        identity["by_hand"] = fingerprint({"instances": by_hand.to_pylist()})
    identity["pseudo_labels"] = pseudo.fingerprint  # what a training on this selection looks up
    output = lake.dataset("selections", pseudo.category, identity, slot=f"{criterion} round={round}")
    if output.is_finished(output.fingerprint):
        return output

    parts = pseudo.parts()
    if not parts:
        raise InputError("pseudo_labels", pseudo.category, f"nothing is committed in {lake.uri}/{pseudo.path}")
    beside = pa.concat_tables([s.read(["instance_id", "bbox", "photo_id", "dhash"]) for s in sources])
    beside = beside.append_column("leak_of", leaks(beside, held))
    beside = beside.append_column("by_hand", pc.is_in(beside["instance_id"], by_hand))
    if truth is not None:
        beside = beside.append_column(
            "truth_keypoints", truth["truth_keypoints"].take(pc.index_in(beside["instance_id"], truth["instance_id"]))
        )
    if rules.per_user is not None:
        beside = _with_authors(beside, lake, pseudo.category)
    wanted = {"instance_id", "round", *CRITERIA[criterion].columns}
    if "keypoints_mt" in wanted or rules.per_view is not None:
        wanted.add("keypoints")  # the number of joints; the viewpoint
    if rules.gate is not None:
        wanted |= {"keypoints", "keypoints_3d"}
    columns = [c for c in schema("pseudo_labels").names if c in wanted]
    parts_scored = [scored(_beside(pseudo.read(columns, [part]), beside), criterion, **policy) for part in parts]
    # A key may stand in two parts after a restart.
    rows = unique_rows(pa.concat_tables(parts_scored), KEYS["pseudo_labels"])
    rows = rows.filter(pc.equal(rows["round"], round))
    kept = rank(rows, criterion, top_n, **policy)
    output.write("all", kept, schema("selections"))
    leaked = sum(reason.startswith("leak") for reason in kept["reason"].to_pylist())
    summary = {"rows": len(kept), "selected": sum(kept["selected"].to_pylist()), "leaks": leaked}
    output.finish(output.fingerprint, summary)
    return output


def _beside(rows: pa.Table, instances: pa.Table) -> pa.Table:
    """The rows with the other columns of their instance, null where there is none."""
    where = pc.index_in(rows["instance_id"], instances["instance_id"])
    for name in instances.column_names:
        if name not in rows.column_names:
            rows = rows.append_column(name, instances[name].take(where))
    return rows


def _with_authors(instances: pa.Table, lake: Lake, category: str) -> pa.Table:
    photos = pa.concat_tables([d.read(["photo_id", "author"]) for d in lake.datasets("photos", category)])
    return instances.append_column(
        "author", photos["author"].take(pc.index_in(instances["photo_id"], photos["photo_id"]))
    )
