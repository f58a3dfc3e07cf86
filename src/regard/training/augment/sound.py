"""Augmentations of sound: of samples before they become a spectrogram, and of the spectrogram (SpecAugment).

N | samples    B | examples in a batch    M | mel bins    T | frames
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from regard.training.augment.base import Augmentation, positive, uniform, whole


class SoundAugmentation(ABC):
    """Changes the samples of one recording."""

    @abstractmethod
    def __call__(self, samples: Tensor, rate: int) -> Tensor:
        """Samples (N,) floating point, so many a second → samples (N,), or another number of them."""


@dataclass(frozen=True)
class TimeShift(SoundAugmentation):
    """The recording begins earlier or later: what falls out is lost, what is open is silence.

    Args:
        seconds: at most, in both directions.

    Raises:
        ValueError: if seconds is negative.
    """

    seconds: float = 0.1

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise ValueError(f"seconds is {self.seconds}: it must be 0 or more")

    def __call__(self, samples: Tensor, rate: int) -> Tensor:
        most = min(round(self.seconds * rate), len(samples) - 1)
        shift = whole(-most, most)
        # Negative padding cuts off.
        return F.pad(samples, (shift, -shift))


@dataclass(frozen=True)
class Speed(SoundAugmentation):
    """Faster or slower, and so higher or lower.

    Args:
        most: the speed is between 1 / most and most; 1 or more.

    Raises:
        ValueError: if most is less than 1.

    Audio augmentation for speech recognition: Ko et al., Interspeech 2015.
    """

    most: float = 1.1

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most is {self.most}: it must be 1 or more")

    def __call__(self, samples: Tensor, rate: int) -> Tensor:
        speed = math.exp(uniform(-1, 1) * math.log(self.most))
        length = max(1, round(len(samples) / speed))
        return F.interpolate(samples[None, None], length, mode="linear", align_corners=False)[0, 0]


@dataclass(frozen=True)
class Noise(SoundAugmentation):
    """White noise, weaker than the recording by so many decibels.

    Args:
        least: ratio of the recording's power to the noise's, in dB.
        most: the same, at most.

    Raises:
        ValueError: if least is more than most.
    """

    least: float = 10.0
    most: float = 40.0

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"least is {self.least} dB and most {self.most}: least must not be more")

    def __call__(self, samples: Tensor, rate: int) -> Tensor:
        ratio = 10 ** (-uniform(self.least, self.most) / 20)
        return samples + torch.randn_like(samples) * samples.square().mean().sqrt() * ratio


@dataclass(frozen=True)
class Gain(SoundAugmentation):
    """Louder or softer.

    Args:
        decibels: at most, in both directions; above 0.

    Raises:
        ValueError: if decibels is not positive.
    """

    decibels: float = 6.0

    def __post_init__(self) -> None:
        positive("decibels", self.decibels)

    def __call__(self, samples: Tensor, rate: int) -> Tensor:
        return samples * 10 ** (uniform(-self.decibels, self.decibels) / 20)


@dataclass(frozen=True)
class _Mask(Augmentation):
    """Stripes of each spectrogram take its mean.

    Args:
        width: bins or frames a stripe, at most.
        count: stripes.

    Raises:
        ValueError: if width or count is negative.
    """

    width: int
    count: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "count"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")

    def change(self, inputs: Tensor) -> Tensor:
        size = inputs.shape[self._axis]
        places = torch.arange(size)
        hidden = torch.zeros(len(inputs), size, dtype=torch.bool)
        for _ in range(self.count):
            width = (torch.rand(len(inputs)) * (min(self.width, size) + 1)).long()
            first = (torch.rand(len(inputs)) * (size - width + 1)).long()
            hidden |= (places >= first[:, None]) & (places < (first + width)[:, None])
        shape = (len(inputs), 1, size, 1) if self._axis == 2 else (len(inputs), 1, 1, size)
        return torch.where(hidden.view(shape), inputs.mean((1, 2, 3), keepdim=True), inputs)

    @property
    def _axis(self) -> int:
        """Of spectrograms (B, 1, M, T)."""
        raise NotImplementedError


class FrequencyMask(_Mask):
    """Stripes of mel bins of each spectrogram take its mean. SpecAugment: arXiv 1904.08779."""

    @property
    def _axis(self) -> int:
        return 2


class TimeMask(_Mask):
    """Stripes of frames of each spectrogram take its mean. SpecAugment: arXiv 1904.08779."""

    @property
    def _axis(self) -> int:
        return 3
