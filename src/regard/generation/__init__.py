"""Writing one piece after another: greedy, sampled or by beam search, on the key/value cache."""

from regard.generation.batches import translate_ids
from regard.generation.beam import Hypothesis, beam_search
from regard.generation.causal import CausalModel, CausalSteps
from regard.generation.decoding import Continuation, Written, generate_ids, stream_ids
from regard.generation.settings import GenerationSettings, SettingsError, read_settings
from regard.generation.steps import Steps, TranslatorSteps

__all__ = [
    "CausalModel",
    "CausalSteps",
    "Continuation",
    "GenerationSettings",
    "Hypothesis",
    "SettingsError",
    "Steps",
    "TranslatorSteps",
    "Written",
    "beam_search",
    "generate_ids",
    "read_settings",
    "stream_ids",
    "translate_ids",
]
