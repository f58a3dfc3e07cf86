"""Which elements mattered, by several methods; each names itself and its source.

No matrix of N×N is formed: a vector is handed from layer to layer, and weights are of the rows that are asked for.
"""

from regard.relations.relevance.alignment import Alignment, align
from regard.relations.relevance.attention_rollout import rollout
from regard.relations.relevance.gradients import attention_outputs, gradient_relevance, gradient_times_input
from regard.relations.relevance.layers import Relevance
from regard.relations.relevance.norms import summed_value_norm_weights, value_norm_weights

__all__ = [
    "Alignment",
    "Relevance",
    "align",
    "attention_outputs",
    "gradient_relevance",
    "gradient_times_input",
    "rollout",
    "summed_value_norm_weights",
    "value_norm_weights",
]
