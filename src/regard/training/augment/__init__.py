"""Training examples, changed at random every time they are seen: images, spectrograms and sound."""

from regard.training.augment.base import Augmentation, CutMix, MixUp, one_hot
from regard.training.augment.images import HorizontalFlip, RandomCrop, RandomErasing
from regard.training.augment.rand_augment import RandAugment
from regard.training.augment.sound import (
    FrequencyMask,
    Gain,
    Noise,
    SoundAugmentation,
    Speed,
    TimeMask,
    TimeShift,
)

__all__ = [
    "Augmentation",
    "CutMix",
    "FrequencyMask",
    "Gain",
    "HorizontalFlip",
    "MixUp",
    "Noise",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "SoundAugmentation",
    "Speed",
    "TimeMask",
    "TimeShift",
    "one_hot",
]
