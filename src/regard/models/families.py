"""The families of models whose checkpoints are read, each in a module of its own that is imported when it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from regard.models.family import Family, Head, ModelError

MODULES: Mapping[str, str] = {
    "audio-spectrogram-transformer": "audio_spectrogram",
    "bart": "bart",
    "bert": "bert",
    "camembert": "roberta",
    "convolutional-image-transformer": "convolutional",
    "convolutional-spectrogram-transformer": "convolutional",
    "deit": "vit",
    "dinov2": "vit",
    "dinov2_with_registers": "vit",
    "distilbert": "distilbert",
    "gpt2": "gpt2",
    "llama": "llama",
    "marian": "marian",
    "mistral": "llama",
    "mt5": "t5",
    "qwen2": "llama",
    "qwen3": "llama",
    "roberta": "roberta",
    "t5": "t5",
    "videomae": "videomae",
    "vit": "vit",
    "whisper": "whisper",
    "xlm-roberta": "roberta",
}
"""From model_type in config.json to the module of `regard.models` whose FAMILIES reads it."""


def family_of(settings: Mapping[str, Any], where: str) -> tuple[Family, Head]:
    """The family that reads a config.json, and the head that the checkpoint has.

    Args:
        settings: the whole object.
        where: the file, for messages.

    Raises:
        ModelError: there is no such family, or it has no such head; the message lists those there are.
    """
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in MODULES:
        raise ModelError(f"{where}: model_type is {kind!r}: known are {', '.join(sorted(MODULES))}")
    family = next(f for f in families_in(MODULES[kind]) if kind in f.model_types)
    names = settings.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in family.architectures:
        known = ", ".join(family.architectures)
        raise ModelError(f"{where}: architectures is {names!r}: of {kind}, known are {known}")
    return family, family.architectures[names[0]]


def all_families() -> list[Family]:
    """Every family, in the order of the list above."""
    return [family for module in dict.fromkeys(MODULES.values()) for family in families_in(module)]


def families_in(module: str) -> tuple[Family, ...]:
    """The families of one module of `regard.models`."""
    return import_module(f"regard.models.{module}").FAMILIES
