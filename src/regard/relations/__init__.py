"""A whole forward pass: which element attended to which, layer by layer, head by head."""

from regard.relations.capture import observe
from regard.relations.heads import HEAD_ROLES, HeadRole
from regard.relations.relations import Edge, Relations, Sequence, Site
from regard.relations.relevance import Alignment, align

__all__ = ["HEAD_ROLES", "Alignment", "Edge", "HeadRole", "Relations", "Sequence", "Site", "align", "observe"]
