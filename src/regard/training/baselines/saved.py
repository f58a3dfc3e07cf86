"""Baselines on disk: a directory with config.json, model.safetensors, and the files of a tokenizer."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard.files import replace_directory
from regard.models.checkpoint import CONFIG
from regard.models.family import ModelError, json_object
from regard.models.weight_files import WEIGHTS, check_finite
from regard.training.baselines.classifiers import (
    ConvolutionalClassifier,
    ConvolutionalClassifierConfig,
    RecurrentClassifier,
    RecurrentClassifierConfig,
)
from regard.training.baselines.frame_lstm import FrameLSTM, FrameLSTMConfig
from regard.training.baselines.recurrent import RecurrentConfig, RecurrentLanguageModel
from regard.training.baselines.residual_network import ResidualConfig, ResidualNetwork
from regard.training.baselines.translator import RecurrentTranslator, RecurrentTranslatorConfig


@dataclass(frozen=True)
class Kind:
    """How the baselines of one kind are made."""

    name: str
    config: type[Any]  # a frozen dataclass
    model: type[nn.Module]


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("recurrent-language-model", RecurrentConfig, RecurrentLanguageModel),
        Kind("recurrent-classifier", RecurrentClassifierConfig, RecurrentClassifier),
        Kind("convolutional-classifier", ConvolutionalClassifierConfig, ConvolutionalClassifier),
        Kind("recurrent-translator", RecurrentTranslatorConfig, RecurrentTranslator),
        Kind("residual-network", ResidualConfig, ResidualNetwork),
        Kind("frame-lstm", FrameLSTMConfig, FrameLSTM),
    )
}
BASELINES = tuple(kind.model for kind in KINDS.values())
"""What no pipeline runs: there is no attention to be seen in most of them."""


@dataclass(frozen=True)
class Baseline:
    """A model that others are compared with, and what belongs to it.

    Args:
        model: of one of the `KINDS`.
        family: that kind.
        files: of its tokenizer, by name.
        about: more for config.json, such as the names of the classes.
    """

    model: nn.Module
    family: Kind
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def save(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write it, whole or not at all, for `load_baseline`.

        Args:
            directory: where to; a baseline that was there before is replaced, and what else it held is kept.
            dtype: of the tensors on disk; as they are unless given.

        Raises:
            ModelError: the directory exists and holds no baseline, or a weight is not finite.
        """
        from safetensors.torch import save

        place = Path(directory)
        if place.exists() and any(place.iterdir()) and not _is_baseline(place):
            raise ModelError(f"{place} exists and is not a saved baseline: it is not replaced")
        tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in self.model.state_dict().items()}
        check_finite(tensors, "the model")
        config: Any = self.model.config
        settings = {"regard_baseline": self.family.name, "config": asdict(config), **self.about}
        files = {CONFIG: json.dumps(settings, indent=2).encode() + b"\n", WEIGHTS: save(tensors), **self.files}
        replace_directory(place, files, owned=tuple(files))
        return place


def new_baseline(
    config: Any, *, files: Mapping[str, bytes] | None = None, about: Mapping[str, Any] | None = None
) -> Baseline:
    """A baseline with random weights, in training mode.

    Args:
        config: the dataclass of one of the `KINDS`.
        files: of its tokenizer, by name.
        about: see `Baseline`.

    Raises:
        TrainingError: if the sizes cannot be.
    """
    kind = next(kind for kind in KINDS.values() if kind.config is type(config))
    return baseline_of(kind.model(config), files=files, about=about)


def baseline_of(
    model: nn.Module, *, files: Mapping[str, bytes] | None = None, about: Mapping[str, Any] | None = None
) -> Baseline:
    """A model of one of the `KINDS` and what belongs to it; see `new_baseline`."""
    return Baseline(model, next(kind for kind in KINDS.values() if kind.model is type(model)), files or {}, about or {})


def load_baseline(directory: str | Path) -> Baseline:
    """Read a baseline; its model is in float32 and in evaluation mode, and `files` holds all else beside it.

    Raises:
        ModelError: if there is none in this directory, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    place = Path(directory)
    if not _is_baseline(place):
        raise ModelError(f"{place} is not a saved baseline: its {CONFIG} must name one of {', '.join(KINDS)}")
    settings = json_object((place / CONFIG).read_bytes(), str(place / CONFIG))
    kind, values = KINDS[settings.pop("regard_baseline")], settings.pop("config", None)
    try:
        model = kind.model(_config(kind.config, values))
        model.load_state_dict({name: t.float() for name, t in load((place / WEIGHTS).read_bytes()).items()})
    except (SafetensorError, OSError, TypeError, RuntimeError, ValueError) as error:
        raise ModelError(f"{place} is damaged: {' '.join(str(error).split())[:200]}") from error
    beside = [path for path in place.iterdir() if path.is_file() and path.name not in (CONFIG, WEIGHTS)]
    return Baseline(model.eval(), kind, {path.name: path.read_bytes() for path in beside}, settings)


def _is_baseline(place: Path) -> bool:
    try:
        return json_object((place / CONFIG).read_bytes(), "").get("regard_baseline") in KINDS
    except (OSError, ModelError):
        return False


def _config(kind: type[Any], values: Any) -> Any:
    """The dataclass, with tuples where JSON has lists."""
    if not isinstance(values, dict):
        raise TypeError("config is no object")
    settings = typing.cast(dict[str, Any], values)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})
