"""Selection: score pseudo-labels by a criterion, rank them, keep the best. Needs only numpy and pyarrow."""

import selection.criteria_paper  # importing a criterion's file makes it known; the method's come first

# isort: split
import selection.criteria_agreement
import selection.criteria_controls
import selection.criteria_fusion
import selection.criteria_heatmap
import selection.criteria_pck
import selection.criteria_visibility  # noqa: F401
from selection.criteria import CRITERIA, HIGHER_IS_BETTER, score
from selection.criteria_calibrated import calibrate
from selection.criteria_fusion import fuse_ranks
from selection.diagnostics import aurc_table, jaccard, pseudo_label_pck, reliability, risk_coverage
from selection.gate import gated, passing
from selection.policy import check, policy_of, rank, scored, select
from selection.quota import Rules
from selection.stage import select_round
from selection.stream import select_stream
from selection.viewpoint import VIEW_NAMES, azimuth, view, viewpoint_histogram

__all__ = [
    "CRITERIA", "HIGHER_IS_BETTER", "VIEW_NAMES", "Rules", "aurc_table", "azimuth", "calibrate", "check", "fuse_ranks",
    "gated", "jaccard", "passing", "policy_of", "pseudo_label_pck", "rank", "reliability", "risk_coverage", "score",
    "scored", "select", "select_round", "select_stream", "view", "viewpoint_histogram",
]  # fmt: skip
