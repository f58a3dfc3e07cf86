"""Classes of recordings: a new Audio Spectrogram Transformer, one that is fine-tuned, or a CNN or LSTM beside them.

B | recordings in a batch    N | samples    M | mel bins    T | frames    K | classes
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regard.inputs.audio import audio_blocks, check_heard
from regard.inputs.features import ASTSettings, ast_features
from regard.inputs.source import InputError, name_of
from regard.models import Checkpoint
from regard.models.checkpoint import new_checkpoint
from regard.models.convolutional import SOUND, ConvolutionalConfig
from regard.models.patch_transformer import PatchConfig
from regard.models.preprocessing import PREPROCESSOR, sound_settings
from regard.training.augment import (
    Augmentation,
    FrequencyMask,
    Gain,
    MixUp,
    Noise,
    SoundAugmentation,
    Speed,
    TimeMask,
    TimeShift,
)
from regard.training.baselines import Baseline, FrameLSTMConfig, new_baseline
from regard.training.data import Ints
from regard.training.errors import TrainingError
from regard.training.run import Run, Trained, as_they_are
from regard.training.stored import Clips, Values
from regard.training.tasks.classification import ClassificationRecipe, ClassificationTask, Inputs, Labelled
from regard.training.tasks.files import Note
from regard.training.tasks.media import OF_TRANSFORMERS, SIZES, Media, residual_network, train_media, width_and_layers

Sounds = Sequence[npt.NDArray[np.float32]]
"""Recordings as they are stored: (N,) each at 16 kHz, one channel, of any lengths of 400 samples and more."""
FRAME = 400
"""Samples of the shortest recording that has a spectrogram."""


@dataclass(frozen=True, kw_only=True)
class ClassifyAudioRecipe(ClassificationRecipe):
    """How a classifier of recordings is built and trained. Sizes are of new models."""

    family: str = "ast"  # of a new model: one of `FAMILIES`
    seconds: float | None = None  # that a new model hears; None: the longest recording's, up to 10.24
    mels: int = 64  # mel bins of a new model
    patch: int | None = None  # mel bins and frames of 10 ms; None: 16, or 8 of convolutional
    stride: int = 10  # from one patch to the next; convolutional's lie side by side
    shift: float = 0.1  # seconds by which a recording begins earlier or later, at most
    speed: float = 1.1  # how much faster or slower, at most; 1: not at all
    gain: float = 6.0  # decibels louder or softer, at most; 0: not at all
    noise: float | None = 15.0  # decibels that a recording is above the noise, at least; None: no noise
    time_masks: int = 1  # stripes of frames that are hidden
    time_mask: float = 0.15  # their width as a part of all frames, at most
    frequency_masks: int = 1  # stripes of mel bins that are hidden
    frequency_mask: float = 0.2  # their width as a part of all mel bins, at most

    def sound_augmentations(self) -> list[SoundAugmentation]:
        """What is done to samples when they are learnt from.

        Raises:
            TrainingError: a field is outside what it may be.
        """
        try:
            found: list[SoundAugmentation] = []
            if self.speed != 1:
                found.append(Speed(self.speed))
            if self.shift:
                found.append(TimeShift(self.shift))
            if self.gain:
                found.append(Gain(self.gain))
            if self.noise is not None:
                found.append(Noise(self.noise, self.noise + 30))
        except ValueError as error:
            raise TrainingError(f"the recipe's augmentation cannot be: {error}") from error
        return found

    def augmentations(self, settings: ASTSettings) -> list[Augmentation]:
        """What is done to spectrograms when they are learnt from.

        Raises:
            TrainingError: a field is outside what it may be.
        """
        try:
            found: list[Augmentation] = [
                FrequencyMask(round(self.frequency_mask * settings.mels), self.frequency_masks),
                TimeMask(round(self.time_mask * settings.frames), self.time_masks),
            ]
            return [*found, MixUp(self.mixup)] if self.mixup else found
        except ValueError as error:
            raise TrainingError(f"the recipe's augmentation cannot be: {error}") from error


class ClassifyAudioTask(ClassificationTask[Sounds]):
    """The task of `Trainer`: a recording's class.

    Args:
        model: spectrograms (B, 1, M, T) float32 → scores (B, K); any module.
        train: recordings to learn from, (N,) float32 at 16 kHz each, 400 samples or more.
        validation: recordings to measure on, of the same classes.
        recipe: batches, smoothing, seed.
        settings: of the spectrogram; AudioSet's unless given.
        augment: done to spectrograms, in this order; what the recipe says unless given.
        augment_sound: done to samples, in this order; what the recipe says unless given.

    Raises:
        TrainingError: if the classes of both differ, or the recipe's augmentation cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Labelled[Sounds],
        validation: Labelled[Sounds],
        recipe: ClassifyAudioRecipe,
        *,
        settings: ASTSettings | None = None,
        augment: Sequence[Augmentation] | None = None,
        augment_sound: Sequence[SoundAugmentation] | None = None,
    ) -> None:
        self._settings = settings = settings or ASTSettings()
        augment = recipe.augmentations(settings) if augment is None else augment
        super().__init__(model, train, validation, recipe, augment)
        self.augment_sound = recipe.sound_augmentations() if augment_sound is None else tuple(augment_sound)

    def ready(self, inputs: Sounds, targets: Tensor, *, learning: bool) -> tuple[Tensor, Tensor]:
        """Recordings → their spectrograms (B, 1, M, T)."""
        features = torch.stack([self._features(torch.from_numpy(sound), learning) for sound in inputs])  # (B, 1, M, T)
        for augmentation in self.augment if learning else ():
            features, targets = augmentation(features, targets)
        return features, targets

    def _features(self, samples: Tensor, learning: bool) -> Tensor:
        for augmentation in self.augment_sound if learning else ():
            samples = augmentation(samples, self._settings.rate)
        if len(samples) < FRAME:  # a short one made faster
            samples = torch.nn.functional.pad(samples, (0, FRAME - len(samples)))
        return ast_features(samples, self._settings).T[None]  # (1, M, T)


def spectrogram_transformer(recipe: ClassifyAudioRecipe, names: tuple[str, ...], settings: ASTSettings) -> Checkpoint:
    """A new Audio Spectrogram Transformer.

    Raises:
        TrainingError: if the spectrogram does not hold a patch, or the width is no multiple of the heads.
    """
    size, patch = (settings.mels, settings.frames), _patch(recipe)
    if not (1 <= patch <= min(size) and recipe.stride >= 1):
        raise TrainingError(
            f"patch is {patch} with stride {recipe.stride}; both may be from 1, and a patch at most {min(size)} wide"
            f" for {settings.mels} mel bins and {settings.frames} frames"
        )
    config = PatchConfig(
        channels=1,
        size=size,
        patch=(patch, patch),
        stride=(recipe.stride, recipe.stride),
        distillation_token=True,
        pooling="both tokens",
        pooled_norm=1e-12,
        labels=names,
        **recipe.sizes(SIZES),
    )
    return _new("audio-spectrogram-transformer", config, settings)


def convolutional(recipe: ClassifyAudioRecipe, names: tuple[str, ...], settings: ASTSettings) -> Checkpoint:
    """A new Transformer behind convolutions.

    Raises:
        TrainingError: if the patches do not fill the spectrogram or are none of 1, 2, 4 and 8 wide, or the width is no
            multiple of the heads.
    """
    patch, sizes = _patch(recipe), recipe.sizes(SIZES)
    try:
        config = ConvolutionalConfig(
            channels=1,
            size=(settings.mels, settings.frames),
            patch=(patch, patch),
            stride=(patch, patch),
            activation="relu",
            norm_eps=1e-6,
            class_token=False,
            pooling="mean",
            labels=names,
            modality="audio",
            widths=(sizes["d_model"] // 4, sizes["d_model"] // 2),
            **sizes,
        )
    except ValueError as error:
        raise TrainingError(f"the recipe's model cannot be: {error}") from error
    return _new(SOUND, config, settings)


def residual(recipe: ClassifyAudioRecipe, names: tuple[str, ...], settings: ASTSettings) -> Baseline:
    """A new residual network over spectrograms, a baseline without attention."""
    return residual_network(recipe, names, 1, min(settings.mels, settings.frames), _files(settings))


def recurrent(recipe: ClassifyAudioRecipe, names: tuple[str, ...], settings: ASTSettings) -> Baseline:
    """A new bidirectional LSTM over pairs of frames, a baseline without attention: two layers of the size's width.

    Raises:
        TrainingError: if the sizes cannot be.
    """
    width, layers = width_and_layers(recipe)[0], 2 if recipe.layers is None else recipe.layers
    stacked, dropout = min(2, settings.frames), 0.2 if recipe.dropout is None else recipe.dropout
    try:
        config = FrameLSTMConfig(settings.mels, width, layers, names, stacked=stacked, dropout=dropout)
    except ValueError as error:
        raise TrainingError(f"the recipe's model cannot be: {error}") from error
    return new_baseline(config, files=_files(settings))


def _new(kind: str, config: PatchConfig, settings: ASTSettings) -> Checkpoint:
    return new_checkpoint(kind, config, files=_files(settings))


def _files(settings: ASTSettings) -> dict[str, bytes]:
    return {PREPROCESSOR: json.dumps(settings.to_json(), indent=2).encode()}


def _patch(recipe: ClassifyAudioRecipe) -> int:
    usual = 8 if recipe.family == "convolutional" else 16
    return usual if recipe.patch is None else recipe.patch


def _frames(recipe: ClassifyAudioRecipe, wanted: int) -> int:
    """So many frames, or as many more as it takes to fill patches that lie side by side."""
    patch = max(1, _patch(recipe))
    return math.ceil(wanted / patch) * patch if recipe.family == "convolutional" else max(wanted, patch)


FAMILIES: Mapping[str, Callable[[ClassifyAudioRecipe, tuple[str, ...], ASTSettings], Checkpoint | Baseline]] = {
    "ast": spectrogram_transformer,
    "convolutional": convolutional,
    "cnn": residual,
    "lstm": recurrent,
}
"""What makes new models."""


class _Sounds(Media[Sounds, ClassifyAudioRecipe, ASTSettings]):
    """Recordings from files: stored as samples, as many as the model hears."""

    task, modality = "classify-audio", "audio"

    def settings(self, recipe: ClassifyAudioRecipe, start: Checkpoint | None) -> ASTSettings:
        recipe.only_of_new("family", "seconds", "mels", "patch", "stride")
        if start is not None:
            return sound_settings(start)
        if recipe.family not in FAMILIES:
            raise TrainingError(f"family is {recipe.family!r}; it may be {', '.join(map(repr, FAMILIES))}")
        if recipe.family in ("cnn", "lstm"):
            unused = (*OF_TRANSFORMERS, "patch", "stride", *(["optimiser"] if recipe.family == "lstm" else []))
            as_they_are(recipe, unused, f"family {recipe.family!r}")
        if not 1 <= recipe.mels <= 256:
            raise TrainingError(f"mels is {recipe.mels}; it may be from 1 to 256")
        if recipe.seconds is not None and not 0.2 <= recipe.seconds <= 3600:
            raise TrainingError(f"seconds is {recipe.seconds}; it may be from 0.2 to 3600, or null")
        wanted = 1024 if recipe.seconds is None else _frames(recipe, round(100 * recipe.seconds))
        return ASTSettings(recipe.mels, wanted)

    def fitted(self, settings: ASTSettings, recipe: ClassifyAudioRecipe, lengths: Ints) -> ASTSettings:
        if recipe.seconds is not None:
            return settings
        longest = 1 + (int(lengths.max()) - FRAME) // 160
        return replace(settings, frames=min(settings.frames, _frames(recipe, longest)))

    def decode(self, path: Path, settings: ASTSettings) -> tuple[Values, Note]:
        heard = FRAME + 160 * (settings.frames - 1)
        blocks = audio_blocks(path, settings.rate, block=heard)
        samples, longer = next(blocks, torch.zeros(0)), next(blocks, None) is not None
        check_heard(samples, name_of(path))
        if len(samples) < FRAME:
            raise InputError(f"{path} has {1000 * len(samples) / settings.rate:.0f} ms of sound: 25 ms are needed")
        return samples.numpy(), (longer,)

    def notes(self, found: Counter[Note], settings: ASTSettings) -> list[str]:
        count, seconds = found[(True,)], (FRAME + 160 * (settings.frames - 1)) / settings.rate
        what = "1 recording is" if count == 1 else f"{count:,} recordings are"
        return [f"{what} longer than {seconds:.2f} s: what comes later is not heard"] if count else []

    def inputs(self, path: Path, lengths: Ints, settings: ASTSettings) -> Inputs[Sounds]:
        return Clips.read(path, lengths)

    def new(self, recipe: ClassifyAudioRecipe, names: tuple[str, ...], settings: ASTSettings) -> Checkpoint | Baseline:
        return FAMILIES[recipe.family](recipe, names, settings)

    def learnt(
        self,
        model: nn.Module,
        train: Labelled[Sounds],
        validation: Labelled[Sounds],
        recipe: ClassifyAudioRecipe,
        settings: ASTSettings,
    ) -> ClassificationTask[Sounds]:
        return ClassifyAudioTask(model, train, validation, recipe, settings=settings)


def train_audio_classifier(
    data: Path | Labelled[Sounds],
    recipe: ClassifyAudioRecipe,
    run: Run,
    *,
    validation: Path | Labelled[Sounds] | None = None,
) -> Trained:
    """Train a classifier of recordings, from files or arrays to the model in run.out/model.

    Files without sound that can be read are left out and counted; of a long one the beginning is heard. They are
    decoded once, to run.out/data, and read from there a batch at a time.

    Args:
        data: a directory with a folder for each class; a table of paths and labels (CSV, TSV, JSON lines or Parquet);
            or recordings in memory.
        recipe: everything about the model and how it learns.
        run: where, and with what.
        validation: the same to measure on; a part of each class unless given.

    Raises:
        TrainingError: if there is nothing to learn from or only one class, the recipe cannot be, or the directory holds
            another run; see also `Trainer.run`.
        ModelError: if the model to be fine-tuned cannot be read, or is none of sound.
    """
    return train_media(_Sounds(), data, recipe, run, validation)
