"""Classes of images: a new Vision Transformer, or any that is fine-tuned.

B | images in a batch    H, W | height and width in pixels    K | classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regard.inputs.image import ImageSettings
from regard.training.augment import (
    Augmentation,
    CutMix,
    HorizontalFlip,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomErasing,
)
from regard.training.errors import TrainingError
from regard.training.tasks.classification import ClassificationRecipe, ClassificationTask, Labelled

Pixels = npt.NDArray[np.uint8]
"""Images as they are stored: (n, 3, H, W), RGB."""
Size = Literal["tiny", "small", "medium", "large"]


@dataclass(frozen=True, kw_only=True)
class ClassifyImageRecipe(ClassificationRecipe):
    """How a classifier of images is built and trained. Sizes are of new models: one that is fine-tuned has its own."""

    family: str = "vit"  # of a new model: one of `FAMILIES`
    size: Size = "tiny"  # of a new model; the four below go before it
    d_model: int | None = None  # width
    layers: int | None = None
    heads: int | None = None
    feed_forward: int | None = None  # hidden width of the feed-forward network
    image_size: int = 64  # height and width in pixels that images of all sizes are resized to
    patch: int = 8  # height and width in pixels
    crop: float = 0.125  # part of its height and width that an image is moved by, at most
    flip: bool = True  # mirror every other image, left for right
    erase: float = 0.25  # probability that a box of an image is filled with noise
    rand_augment: int = 2  # operations of RandAugment an image; 0: none
    magnitude: float = 0.5  # their strength at most, 0 … 1
    cutmix: float = 0.0  # probability that the images of a batch exchange boxes

    def augmentations(self, size: int) -> list[Augmentation]:
        """What is done to images of this height and width, in [0, 1], when they are learnt from.

        Raises:
            TrainingError: a field is outside what it may be.
        """
        try:
            found: list[Augmentation] = [RandomCrop(round(self.crop * size)), HorizontalFlip(0.5 * self.flip)]
            if self.rand_augment:
                found.append(RandAugment(self.rand_augment, self.magnitude))
            found.append(RandomErasing(self.erase))
            if self.mixup:
                found.append(MixUp(self.mixup))
            if self.cutmix:
                found.append(CutMix(p=self.cutmix))
        except ValueError as error:
            raise TrainingError(f"the recipe's augmentation cannot be: {error}") from error
        return found


class ClassifyImageTask(ClassificationTask[Pixels]):
    """The task of `Trainer`: an image's class.

    Args:
        model: pixels (B, 3, H, W) float32, normalised → scores (B, K); any module.
        train: images (n, 3, H, W) uint8 to learn from, as an array or as what reads a file.
        validation: images to measure on, of the same classes.
        recipe: batches, smoothing, seed.
        settings: how the model's pixels are normalised; sizes in it do not count here; to −1 … 1 unless given.
        augment: done to images in [0, 1], in this order; what the recipe says unless given.

    Raises:
        TrainingError: if the classes of both differ, or the recipe's augmentation cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Labelled[Pixels],
        validation: Labelled[Pixels],
        recipe: ClassifyImageRecipe,
        *,
        settings: ImageSettings | None = None,
        augment: Sequence[Augmentation] | None = None,
    ) -> None:
        height = train.inputs[np.arange(1)].shape[2]
        super().__init__(model, train, validation, recipe, recipe.augmentations(height) if augment is None else augment)
        self._settings = settings or ImageSettings()

    def ready(self, inputs: Pixels, targets: Tensor, *, learning: bool) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) uint8 → normalised pixels of the same shape."""
        pixels = torch.from_numpy(inputs).to(torch.float32) / 255
        for augmentation in self.augment if learning else ():
            pixels, targets = augmentation(pixels, targets)
        if self._settings.rescale is None:
            pixels = pixels * 255
        elif self._settings.rescale != 1 / 255:
            pixels = pixels * (255 * self._settings.rescale)
        return self._settings.normalised(pixels), targets
