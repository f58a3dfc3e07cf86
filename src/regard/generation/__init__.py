"""Writing one piece after another: beam search on the key/value cache."""

from regard.generation.batches import translate_ids
from regard.generation.beam import Hypothesis, beam_search
from regard.generation.steps import Steps, TranslatorSteps

__all__ = ["Hypothesis", "Steps", "TranslatorSteps", "beam_search", "translate_ids"]
