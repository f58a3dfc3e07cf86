"""Training a classifier of images or of sound, from files, or data in memory, to the model in the run's directory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from regard.models import Checkpoint, load
from regard.models.classifier import check_classifies, to_classifier
from regard.training.baselines import Baseline, ResidualConfig, new_baseline
from regard.training.data import Ints
from regard.training.directory import agree, left_as_it_was
from regard.training.dropout import set_dropout
from regard.training.errors import TrainingError
from regard.training.run import Run, Trained
from regard.training.stored import Values
from regard.training.tables import Skipped
from regard.training.tasks.cards import train_and_save
from regard.training.tasks.classification import Batches, ClassificationRecipe, ClassificationTask, Inputs, Labelled
from regard.training.tasks.files import LabelledFile, Note, class_names, decode_files, fingerprint, list_files

RawT = TypeVar("RawT")
RecipeT = TypeVar("RecipeT", bound=ClassificationRecipe)
SettingsT = TypeVar("SettingsT")
_READ = {"image": "images", "audio": "sound"}
SIZES = {
    "tiny": {"d_model": 128, "layers": 6, "heads": 4, "feed_forward": 256},
    "small": {"d_model": 192, "layers": 12, "heads": 3, "feed_forward": 768},
    "medium": {"d_model": 384, "layers": 12, "heads": 6, "feed_forward": 1536},
    "large": {"d_model": 768, "layers": 12, "heads": 12, "feed_forward": 3072},
}
"""Sizes of new models: from small on those of DeiT's (arXiv 2012.12877), large being ViT's base."""
OF_TRANSFORMERS = ("model", "heads", "feed_forward", "layer_decay", "compile")
"""Settings that baselines have nothing for."""


def residual_network(
    recipe: ClassificationRecipe, names: tuple[str, ...], channels: int, side: int, files: Mapping[str, bytes]
) -> Baseline:
    """A new residual network: each stage twice as wide as the one before, the last as wide as the size says.

    It has a third as many residual blocks in a stage as a Transformer of that size has layers: about as many
    parameters. Inputs whose shorter side has more than 64 places are halved by the first stage, and once more after.

    Args:
        recipe: size and dropout.
        names: of the classes.
        channels: of the input.
        side: places of its shorter side.
        files: that are saved beside it.

    """
    (width, layers), stages = width_and_layers(recipe), 4 if side > 64 else 3
    widths = tuple(max(1, width >> (stages - 1 - i)) for i in range(stages))
    blocks = (max(1, layers // 3),) * stages
    first_stride, dropout = 2 if side > 64 else 1, recipe.dropout or 0.0
    return new_baseline(ResidualConfig(channels, widths, blocks, names, first_stride, dropout), files=files)


def width_and_layers(recipe: ClassificationRecipe) -> tuple[int, int]:
    """Of a new baseline."""
    usual = SIZES[recipe.size]
    width = usual["d_model"] if recipe.d_model is None else recipe.d_model
    return width, usual["layers"] if recipe.layers is None else recipe.layers


class Media(ABC, Generic[RawT, RecipeT, SettingsT]):
    """What differs between images and sound."""

    task: str  # as on the command line
    modality: str

    @abstractmethod
    def settings(self, recipe: RecipeT, start: Checkpoint | None) -> SettingsT:
        """How files become inputs: as the preprocessor of a model that is fine-tuned says, or the recipe.

        Raises:
            TrainingError: the recipe cannot be, or the model takes inputs of any size.
            ModelError: the preprocessor does not fit the model.
        """

    @abstractmethod
    def decode(self, path: Path, settings: SettingsT) -> tuple[Values, Note]:
        """A file as it is stored, and what is remarkable about it.

        Raises:
            InputError: it cannot be read.
        """

    @abstractmethod
    def notes(self, found: Counter[Note], settings: SettingsT) -> list[str]:
        """What was remarkable, a sentence each."""

    @abstractmethod
    def inputs(self, path: Path, lengths: Ints, settings: SettingsT) -> Inputs[RawT]:
        """Those that were stored in a file, of these lengths."""

    def fitted(self, settings: SettingsT, recipe: RecipeT, lengths: Ints) -> SettingsT:
        """The settings of a new model for recordings of these lengths."""
        return settings

    @abstractmethod
    def new(self, recipe: RecipeT, names: tuple[str, ...], settings: SettingsT) -> Checkpoint | Baseline:
        """A new model for these classes.

        Raises:
            TrainingError: the recipe cannot be.
        """

    @abstractmethod
    def learnt(
        self,
        model: nn.Module,
        train: Labelled[RawT],
        validation: Labelled[RawT],
        recipe: RecipeT,
        settings: SettingsT,
    ) -> ClassificationTask[RawT]:
        """The task of `Trainer`."""


def train_media(
    media: Media[RawT, RecipeT, SettingsT],
    data: Path | Labelled[RawT],
    recipe: RecipeT,
    run: Run,
    validation: Path | Labelled[RawT] | None,
) -> Trained:
    """Train a classifier; see `train_image_classifier` and `train_audio_classifier`."""
    sources = [_Source(media, source, recipe) for source in (data, validation) if source is not None]
    sources[0].names()  # refuses one class alone before anything is written
    start = None if recipe.model is None else _start(media, recipe.model)
    settings = media.settings(recipe, start)
    with left_as_it_was(run.out):
        run.out.mkdir(parents=True, exist_ok=True)
        prints = [source.fingerprint() for source in sources]
        about = {"training": prints[0], "validation": prints[1] if validation is not None else "part of training"}
        agree(run.out / "recipe.json", recipe, about, resume=run.resume, free=recipe.may_change())
        train = sources[0].read(run.out / "data" / "train.bin", settings, shown=run.progress)
        if validation is not None:
            held_out = sources[1].read(run.out / "data" / "validation.bin", settings, train.names, shown=run.progress)
        else:
            train, held_out = train.divided(recipe.validation_fraction, recipe.seed)
        if start is None and sources[0].lengths is not None:
            settings = media.fitted(settings, recipe, sources[0].lengths)
        torch.manual_seed(recipe.seed)
        if start is None:
            checkpoint = media.new(recipe, train.names, settings)
        else:
            checkpoint = to_classifier(start, train.names, media.modality)
        set_dropout(checkpoint.model, recipe.dropout)
        task = media.learnt(checkpoint.model, train, held_out, recipe, settings)
        return train_and_save(media.task, checkpoint, task, recipe, run, [s for source in sources for s in source.said])


class _Source(Generic[RawT, RecipeT, SettingsT]):
    """Files, or data in memory."""

    def __init__(self, media: Media[RawT, RecipeT, SettingsT], data: Path | Labelled[RawT], recipe: RecipeT) -> None:
        self._media, self._data = media, data
        self._skipped = Skipped("file")
        self._files: list[LabelledFile] = []
        self.said: list[str] = []  # what was left out and what was converted
        self.lengths: Ints | None = None  # (n,) of the inputs in files
        if isinstance(data, Path):
            self._files = list_files(data, (recipe.path, recipe.label), self._skipped)

    def names(self) -> tuple[str, ...]:
        if isinstance(self._data, Labelled):
            return self._data.names
        return class_names((file.label for file in self._files), self._data)

    def fingerprint(self) -> str:
        """What tells these data from others."""
        if isinstance(self._data, Path):
            return fingerprint(self._files)
        digest = hashlib.sha256()
        for batch in Batches(self._data, np.arange(len(self._data)), 256):
            raw: Any = batch.inputs
            for values in (batch.labels.numpy(), *raw):
                digest.update(values.tobytes())
        return f"{len(self._data):,} examples, SHA-256 {digest.hexdigest()[:16]}"

    def read(
        self, path: Path, settings: SettingsT, known: tuple[str, ...] | None = None, *, shown: bool
    ) -> Labelled[RawT]:
        """The examples, those of files by way of one at `path`; of `known` classes alone."""
        if isinstance(self._data, Labelled):
            return self._data
        if known is not None:
            for file in self._files:
                if file.label not in known:
                    self._skipped.add(f"the label {file.label!r} is not among those to learn", str(file.path))
        files = [file for file in self._files if known is None or file.label in known]
        found = decode_files(files, path, lambda p: self._media.decode(p, settings), self._skipped, shown=shown)
        left_out = found.skipped.sentences()
        lost = sorted({file.label for file in files} - {*found.labels})
        if lost:
            left_out.append(f"nothing can be read of the classes {', '.join(lost[:8])}: they are left out")
        self.said = [*left_out, *self._media.notes(found.notes, settings)]
        self.lengths = found.lengths
        try:
            names = known or class_names(found.labels, f"{self._data}, of what can be read,")
        except TrainingError as error:
            raise TrainingError("; ".join([str(error), *left_out])) from error
        if not found.labels:
            classes = f"{self._data} has nothing that can be read of the classes {', '.join(names[:8])}"
            raise TrainingError("; ".join([classes, *left_out]))
        numbers = {label: i for i, label in enumerate(names)}
        labels = np.array([numbers[label] for label in found.labels], dtype=np.int64)
        return Labelled(self._media.inputs(path, found.lengths, settings), labels, names)


def _start(media: Media[Any, Any, Any], model: str) -> Checkpoint:
    """The model that is fine-tuned."""
    found = load(model)
    if not isinstance(found, Checkpoint):
        raise TrainingError(f"model is {model}, for {found.task}; it may be one of {_READ[media.modality]}")
    check_classifies(found, media.modality)
    return found
