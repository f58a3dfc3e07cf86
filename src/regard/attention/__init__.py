"""The mechanism: query, key, value → output; masks, positions, cache; what was seen."""

from regard.attention.cache import KVCache
from regard.attention.dispatch import attend, attend_observed
from regard.attention.mask import Causal, Dense, Documents, Mask, Padding, Prefix, Window
from regard.attention.observation import Observation, Watch
from regard.attention.position import (
    ALiBi,
    DynamicScaling,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LogBuckets,
    RelativeBias,
    Rotary,
    YarnScaling,
    apply_rotary,
    sinusoidal,
)

__all__ = [
    "ALiBi",
    "Causal",
    "Dense",
    "Documents",
    "DynamicScaling",
    "KVCache",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "LogBuckets",
    "Mask",
    "Observation",
    "Padding",
    "Prefix",
    "RelativeBias",
    "Rotary",
    "Watch",
    "Window",
    "YarnScaling",
    "apply_rotary",
    "attend",
    "attend_observed",
    "sinusoidal",
]
