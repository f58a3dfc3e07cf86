"""Whether relevance is faithful: whether the answer depends on what is said to matter, beside a control at random."""

from regard.relations.faithfulness.alignment_error import (
    AlignmentScores,
    ReferencePair,
    alignment_scores,
    diagonal_links,
)
from regard.relations.faithfulness.comparison import Comparison, compare_with_control
from regard.relations.faithfulness.deletion import BINS, CONTROL, METRICS, POINTS, Metric, faithfulness_of
from regard.relations.faithfulness.intervals import Interval

__all__ = [
    "BINS",
    "CONTROL",
    "METRICS",
    "POINTS",
    "AlignmentScores",
    "Comparison",
    "Interval",
    "Metric",
    "ReferencePair",
    "alignment_scores",
    "compare_with_control",
    "diagonal_links",
    "faithfulness_of",
]
