"""Classes of images: a new Vision Transformer, any that is fine-tuned, or a convolutional network beside them.

B | images in a batch    H, W | height and width in pixels    K | classes
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regard.inputs.image import ImageSettings, image_pixels
from regard.inputs.source import opened, reading
from regard.models import Checkpoint
from regard.models.checkpoint import new_checkpoint
from regard.models.convolutional import IMAGE, ConvolutionalConfig
from regard.models.patch_transformer import PatchConfig
from regard.models.preprocessing import PREPROCESSOR, image_settings
from regard.training.augment import (
    Augmentation,
    CutMix,
    HorizontalFlip,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomErasing,
)
from regard.training.baselines import Baseline
from regard.training.data import Ints
from regard.training.errors import TrainingError
from regard.training.run import Run, Trained, as_they_are
from regard.training.stored import Stack, Values
from regard.training.tasks.classification import ClassificationRecipe, ClassificationTask, Inputs, Labelled
from regard.training.tasks.files import Note
from regard.training.tasks.media import OF_TRANSFORMERS, SIZES, Media, residual_network, train_media

Pixels = npt.NDArray[np.uint8]
"""Images as they are stored: (n, 3, H, W), RGB."""


@dataclass(frozen=True, kw_only=True)
class ClassifyImageRecipe(ClassificationRecipe):
    """How a classifier of images is built and trained. Sizes are of new models: one that is fine-tuned has its own."""

    family: str = "vit"  # of a new model: one of `FAMILIES`
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
            found: list[Augmentation] = [
                RandomCrop(min(round(self.crop * size), size - 1)),
                HorizontalFlip(0.5 * self.flip),
            ]
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


def vision_transformer(recipe: ClassifyImageRecipe, names: tuple[str, ...], settings: ImageSettings) -> Checkpoint:
    """A new Vision Transformer.

    Raises:
        TrainingError: if the patches do not fill the image, or the width is no multiple of the heads.
    """
    return _new("vit", PatchConfig(**_sizes(recipe, names)), settings)


def convolutional(recipe: ClassifyImageRecipe, names: tuple[str, ...], settings: ImageSettings) -> Checkpoint:
    """A new Transformer behind convolutions, which learns from fewer images; a residual block in each middle stage.

    Raises:
        TrainingError: if the patch is no power of two, or patches do not fill the image, or the width is no multiple of
            the heads.
    """
    halvings = recipe.patch.bit_length() - 1
    if recipe.patch < 2 or recipe.patch != 2**halvings or recipe.image_size % recipe.patch:
        raise TrainingError(
            f"patch is {recipe.patch}; it may be a power of two that divides the image's {recipe.image_size} pixels"
        )
    sizes = _sizes(recipe, names)
    config = ConvolutionalConfig(
        **sizes,
        activation="relu",
        norm_eps=1e-6,
        class_token=False,
        pooling="mean",
        widths=tuple(max(8, sizes["d_model"] >> (halvings - i)) for i in range(halvings)),
        blocks=(0, *[1] * (halvings - 1), 0),
    )
    return _new(IMAGE, config, settings)


def residual(recipe: ClassifyImageRecipe, names: tuple[str, ...], settings: ImageSettings) -> Baseline:
    """A new residual network, a baseline without attention."""
    return residual_network(recipe, names, 3, recipe.image_size, _files(settings))


def _new(kind: str, config: PatchConfig, settings: ImageSettings) -> Checkpoint:
    return new_checkpoint(kind, config, files=_files(settings))


def _files(settings: ImageSettings) -> dict[str, bytes]:
    return {PREPROCESSOR: json.dumps(settings.to_json(), indent=2).encode()}


def _sizes(recipe: ClassifyImageRecipe, names: tuple[str, ...]) -> dict[str, Any]:
    if recipe.patch < 1 or recipe.image_size % recipe.patch:
        raise TrainingError(
            f"patch is {recipe.patch}; it may be what divides the image's {recipe.image_size} pixels without a rest"
        )
    patch = (recipe.patch, recipe.patch)
    image: dict[str, Any] = {"channels": 3, "size": (recipe.image_size,) * 2, "patch": patch, "stride": patch}
    return image | {"labels": names} | recipe.sizes(SIZES)


FAMILIES: Mapping[str, Callable[[ClassifyImageRecipe, tuple[str, ...], ImageSettings], Checkpoint | Baseline]] = {
    "vit": vision_transformer,
    "convolutional": convolutional,
    "cnn": residual,
}
"""What makes new models."""


class _Images(Media[Pixels, ClassifyImageRecipe, ImageSettings]):
    """Images from files: stored as they are learnt from, resized and cropped, 8 bits a colour."""

    task, modality = "classify-image", "image"

    def settings(self, recipe: ClassifyImageRecipe, start: Checkpoint | None) -> ImageSettings:
        recipe.only_of_new("family", "image_size", "patch")
        if start is None:
            if recipe.family not in FAMILIES:
                raise TrainingError(f"family is {recipe.family!r}; it may be {', '.join(map(repr, FAMILIES))}")
            if recipe.family == "cnn":
                as_they_are(recipe, (*OF_TRANSFORMERS, "patch"), "family 'cnn'")
            if not 1 <= recipe.image_size <= 4096:
                raise TrainingError(f"image_size is {recipe.image_size}; it may be from 1 to 4096")
            return ImageSettings(size=(recipe.image_size, recipe.image_size))
        settings = image_settings(start)
        if not isinstance(settings.crop or settings.size, tuple):
            raise TrainingError(
                f"{start.directory / PREPROCESSOR} makes images of any size; it may make one, by size or crop_size"
            )
        return settings

    def decode(self, path: Path, settings: ImageSettings) -> tuple[Values, Note]:
        from PIL import Image

        pixels = image_pixels(path, settings).numpy()
        with opened(path) as file, reading(path, "is not an image that can be read"):
            header = Image.open(file)
            return pixels, (header.mode, *header.size)

    def notes(self, found: Counter[Note], settings: ImageSettings) -> list[str]:
        rows, columns = self._size(settings)
        modes: Counter[str] = Counter()
        for (mode, _, _), count in found.items():
            modes[mode] += count
        said: list[str] = []
        others = {mode: count for mode, count in sorted(modes.items()) if mode != "RGB"}
        if others:
            kinds = ", ".join(f"{count:,} {mode}" for mode, count in others.items())
            count = sum(others.values())
            said.append(f"{count:,} {'image becomes' if count == 1 else 'images become'} RGB: {kinds}")
        sizes = sorted({(width, height) for _, width, height in found}, key=lambda size: (size[0] * size[1], size))
        if len(sizes) > 1:
            least, most = (f"{width} × {height}" for width, height in (sizes[0], sizes[-1]))
            said.append(f"images of {len(sizes):,} sizes, {least} to {most} pixels, become {columns} × {rows}")
        return said

    def inputs(self, path: Path, lengths: Ints, settings: ImageSettings) -> Inputs[Pixels]:
        return Stack.read(path, len(lengths), (3, *self._size(settings)), np.uint8)

    def new(
        self, recipe: ClassifyImageRecipe, names: tuple[str, ...], settings: ImageSettings
    ) -> Checkpoint | Baseline:
        return FAMILIES[recipe.family](recipe, names, settings)

    def learnt(
        self,
        model: nn.Module,
        train: Labelled[Pixels],
        validation: Labelled[Pixels],
        recipe: ClassifyImageRecipe,
        settings: ImageSettings,
    ) -> ClassificationTask[Pixels]:
        return ClassifyImageTask(model, train, validation, recipe, settings=settings)

    def _size(self, settings: ImageSettings) -> tuple[int, int]:
        size = settings.crop or settings.size
        assert isinstance(size, tuple)
        return size


def train_image_classifier(
    data: Path | Labelled[Pixels],
    recipe: ClassifyImageRecipe,
    run: Run,
    *,
    validation: Path | Labelled[Pixels] | None = None,
) -> Trained:
    """Train a classifier of images, from files or arrays to the model in run.out/model.

    Files that cannot be read are left out and counted; images of all modes and sizes are converted. They are decoded
    once, to run.out/data, and read from there a batch at a time.

    Args:
        data: a directory with a folder for each class; a table of paths and labels (CSV, TSV, JSON lines or Parquet);
            or images in memory, of the size that the model takes.
        recipe: everything about the model and how it learns.
        run: where, and with what.
        validation: the same to measure on; a part of each class unless given.

    Raises:
        TrainingError: if there is nothing to learn from or only one class, the recipe cannot be, or the directory holds
            another run; see also `Trainer.run`.
        ModelError: if the model to be fine-tuned cannot be read, or is none of images.
    """
    return train_media(_Images(), data, recipe, run, validation)
