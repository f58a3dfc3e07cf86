"""Classes of recordings: a new Audio Spectrogram Transformer, or one that is fine-tuned.

B | recordings in a batch    N | samples    M | mel bins    T | frames    K | classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regard.inputs.features import ASTSettings, ast_features
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
from regard.training.errors import TrainingError
from regard.training.tasks.classification import ClassificationRecipe, ClassificationTask, Labelled

Sounds = Sequence[npt.NDArray[np.float32]]
"""Recordings as they are stored: (N,) each at 16 kHz, one channel, of any lengths of 400 samples and more."""
Size = Literal["tiny", "small", "medium", "large"]
FRAME = 400
"""Samples of the shortest recording that has a spectrogram."""


@dataclass(frozen=True, kw_only=True)
class ClassifyAudioRecipe(ClassificationRecipe):
    """How a classifier of recordings is built and trained. Sizes are of new models."""

    family: str = "ast"  # of a new model: one of `FAMILIES`
    size: Size = "tiny"  # of a new model; the four below go before it
    d_model: int | None = None  # width
    layers: int | None = None
    heads: int | None = None
    feed_forward: int | None = None  # hidden width of the feed-forward network
    seconds: float | None = None  # that a new model hears; None: the longest recording's, up to 10.24
    mels: int = 64  # mel bins of a new model
    patch: int = 16  # mel bins and frames of 10 ms
    stride: int = 10  # from one patch to the next
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
