"""Models without self-attention that Transformers are compared with, trained by the same tasks."""

from regard.training.baselines.classifiers import (
    ConvolutionalClassifier,
    ConvolutionalClassifierConfig,
    RecurrentClassifier,
    RecurrentClassifierConfig,
    TextBaseline,
)
from regard.training.baselines.recurrent import Cell, RecurrentConfig, RecurrentLanguageModel
from regard.training.baselines.saved import Baseline, load_baseline, new_baseline
from regard.training.baselines.translator import RecurrentTranslator, RecurrentTranslatorConfig

__all__ = [
    "Baseline",
    "Cell",
    "ConvolutionalClassifier",
    "ConvolutionalClassifierConfig",
    "RecurrentClassifier",
    "RecurrentClassifierConfig",
    "RecurrentConfig",
    "RecurrentLanguageModel",
    "RecurrentTranslator",
    "RecurrentTranslatorConfig",
    "TextBaseline",
    "load_baseline",
    "new_baseline",
]
