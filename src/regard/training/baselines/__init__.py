"""Models without self-attention that Transformers are compared with, trained by the same tasks."""

from regard.training.baselines.classifiers import (
    ConvolutionalClassifier,
    ConvolutionalClassifierConfig,
    RecurrentClassifier,
    RecurrentClassifierConfig,
    TextBaseline,
)
from regard.training.baselines.frame_lstm import FrameLSTM, FrameLSTMConfig
from regard.training.baselines.recurrent import Cell, RecurrentConfig, RecurrentLanguageModel
from regard.training.baselines.residual_network import ResidualConfig, ResidualNetwork
from regard.training.baselines.saved import Baseline, load_baseline, new_baseline
from regard.training.baselines.translator import RecurrentTranslator, RecurrentTranslatorConfig

__all__ = [
    "Baseline",
    "Cell",
    "ConvolutionalClassifier",
    "ConvolutionalClassifierConfig",
    "FrameLSTM",
    "FrameLSTMConfig",
    "RecurrentClassifier",
    "RecurrentClassifierConfig",
    "RecurrentConfig",
    "RecurrentLanguageModel",
    "RecurrentTranslator",
    "RecurrentTranslatorConfig",
    "ResidualConfig",
    "ResidualNetwork",
    "TextBaseline",
    "load_baseline",
    "new_baseline",
]
