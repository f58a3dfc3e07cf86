"""Writing one piece after another: greedy, sampled or by beam search, on the key/value cache."""

from regard.generation.batches import translate_ids
from regard.generation.beam import Hypothesis, beam_search
from regard.generation.causal import CausalModel, CausalSteps
from regard.generation.constraints import Constraints
from regard.generation.decoding import Continuation, Written, generate_ids, stream_ids
from regard.generation.settings import GenerationSettings, SettingsError, read_settings
from regard.generation.steps import EncoderDecoderSteps, Steps

__all__ = [
    "CausalModel",
    "CausalSteps",
    "Constraints",
    "Continuation",
    "EncoderDecoderSteps",
    "GenerationSettings",
    "Hypothesis",
    "SettingsError",
    "Steps",
    "Written",
    "beam_search",
    "generate_ids",
    "read_settings",
    "stream_ids",
    "translate_ids",
]
