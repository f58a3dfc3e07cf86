"""regard: self-attention for text, images, audio and video; train it, run it, and see what attends to what."""

from regard.attention import (
    ALiBi,
    Causal,
    Dense,
    Documents,
    KVCache,
    Observation,
    Padding,
    Prefix,
    RelativeBias,
    Watch,
    Window,
    attend,
    attend_observed,
)
from regard.pipelines import pipeline
from regard.relations import observe

__version__ = "0.1.0"

__all__ = [
    "ALiBi",
    "Causal",
    "Dense",
    "Documents",
    "KVCache",
    "Observation",
    "Padding",
    "Prefix",
    "RelativeBias",
    "Watch",
    "Window",
    "__version__",
    "attend",
    "attend_observed",
    "observe",
    "pipeline",
]
