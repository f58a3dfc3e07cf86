"""Positions as config.json describes them."""

from __future__ import annotations

from regard.attention import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from regard.attention.position import Scaling
from regard.models.family import Settings


def rotary_of(settings: Settings, max_positions: int) -> tuple[float, Scaling | None]:
    """The base of the rotary frequencies, and how they are scaled for long contexts.

    Read from `rope_parameters`, or from `rope_theta` and `rope_scaling` of older files.

    Raises:
        ModelError: if the scaling is of a kind that there is not.
    """
    part = settings.part("rope_parameters") or settings.part("rope_scaling")
    base = settings.number("rope_theta", 10000.0)
    if part is None:
        return base, None
    base = part.number("rope_theta", base)
    part.refuse("partial_rotary_factor", 1, 1.0)
    name = "rope_type" if "rope_type" in part or "type" not in part else "type"
    kind = part.choice(name, {k: k for k in ("default", "linear", "dynamic", "yarn", "llama3")}, "default")
    if kind == "default":
        return base, None
    factor = part.number("factor")
    trained = settings.whole("original_max_position_embeddings", max_positions)
    original = part.whole("original_max_position_embeddings", trained)
    if kind == "linear":
        return base, LinearScaling(factor)
    if kind == "dynamic":
        return base, DynamicScaling(factor, original)
    if kind == "yarn":
        for unused in ("mscale", "mscale_all_dim"):
            part.refuse(unused)
        return base, YarnScaling(
            factor,
            original,
            beta_fast=part.number("beta_fast", 32.0),
            beta_slow=part.number("beta_slow", 1.0),
            attention_factor=part.number("attention_factor") if "attention_factor" in part else None,
            truncate=part.flag("truncate", True),
        )
    return base, Llama3Scaling(
        factor,
        original,
        low_frequency_factor=part.number("low_freq_factor"),
        high_frequency_factor=part.number("high_freq_factor"),
    )
