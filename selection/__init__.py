"""Selection: score pseudo-labels by a criterion, rank them, keep the best. Needs only numpy and pyarrow."""

from selection.criteria import CRITERIA, HIGHER_IS_BETTER, score
from selection.diagnostics import jaccard, pseudo_label_pck, risk_coverage
from selection.policy import check, rank, scored, select
from selection.stage import select_round

__all__ = [
    "CRITERIA",
    "HIGHER_IS_BETTER",
    "check",
    "jaccard",
    "pseudo_label_pck",
    "rank",
    "risk_coverage",
    "score",
    "scored",
    "select",
    "select_round",
]
