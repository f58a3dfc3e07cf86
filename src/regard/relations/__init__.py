"""A whole forward pass: which element attended to which, layer by layer, head by head."""

from regard.relations.ablation import ablate
from regard.relations.capture import observe
from regard.relations.faithfulness import (
    AlignmentScores,
    Comparison,
    ReferencePair,
    alignment_scores,
    compare_with_control,
    diagonal_links,
    faithfulness_of,
)
from regard.relations.heads import HEAD_ROLES, HeadRole
from regard.relations.relations import Relations
from regard.relations.relevance import (
    Alignment,
    Relevance,
    align,
    attention_outputs,
    gradient_relevance,
    gradient_times_input,
    rollout,
    summed_value_norm_weights,
    value_norm_weights,
)
from regard.relations.segments import SegmentShare
from regard.relations.sites import Edge, Sequence, Sink, Site

__all__ = [
    "HEAD_ROLES",
    "Alignment",
    "AlignmentScores",
    "Comparison",
    "Edge",
    "HeadRole",
    "ReferencePair",
    "Relations",
    "Relevance",
    "SegmentShare",
    "Sequence",
    "Sink",
    "Site",
    "ablate",
    "align",
    "alignment_scores",
    "attention_outputs",
    "compare_with_control",
    "diagonal_links",
    "faithfulness_of",
    "gradient_relevance",
    "gradient_times_input",
    "observe",
    "rollout",
    "summed_value_norm_weights",
    "value_norm_weights",
]
