"""Selection: score pseudo-labels by a criterion, rank them, keep the best. Needs only numpy and pyarrow."""

from selection.criteria import CRITERIA, HIGHER_IS_BETTER, score
from selection.diagnostics import jaccard, pseudo_label_pck, risk_coverage
from selection.policy import rank, select

__all__ = [
    "CRITERIA",
    "HIGHER_IS_BETTER",
    "jaccard",
    "pseudo_label_pck",
    "rank",
    "risk_coverage",
    "score",
    "select",
]
