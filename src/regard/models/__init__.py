"""The model families, and how they are saved, loaded and found by name."""

from regard.models.checkpoint import Checkpoint
from regard.models.registry import embedded_models, load, resolve
from regard.models.store import ModelError, SavedModel, load_model, save_model
from regard.models.translator import Translator, TranslatorConfig

__all__ = [
    "Checkpoint",
    "ModelError",
    "SavedModel",
    "Translator",
    "TranslatorConfig",
    "embedded_models",
    "load",
    "load_model",
    "resolve",
    "save_model",
]
