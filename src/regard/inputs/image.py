"""Images: any file that Pillow reads → RGB → resized, cropped, normalised → a tensor; and its patches as elements.

H, W | height and width in pixels    the original | the image as it was read, turned upright
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor

from regard.elements import Box, Element
from regard.inputs.pixels import array_rgb, check_pixels, image_rgb
from regard.inputs.settings import Settings, is_number
from regard.inputs.source import MOST_PIXELS, InputError, name_of, opened, reading

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

    Picture = str | os.PathLike[str] | bytes | Image | numpy.ndarray[Any, Any] | Tensor

RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""The filters of Pillow, each at the number that it has in a `preprocessor_config.json`."""

_MOST_EDGE = 16_384

# What the image processors of transformers 5 do where their JSON says nothing.
_HALF, _CLIP_MEAN, _CLIP_STD = (
    (0.5, 0.5, 0.5),
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
_SQUARE, _SHORTEST = {"height": 224, "width": 224}, {"shortest_edge": 224}
_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"size": _SQUARE, "resample": 2, "mean": _HALF, "std": _HALF, "crop": False, "square": True},
    "DeiT": {
        "size": {"height": 256, "width": 256}, "resample": 3, "mean": _HALF, "std": _HALF, "crop": True, "square": True,
    },
    "Bit": {
        "size": _SHORTEST, "resample": 3, "mean": _CLIP_MEAN, "std": _CLIP_STD, "crop": True, "square": False,
    },
    "VideoMAE": {"size": _SHORTEST, "resample": 2, "mean": _HALF, "std": _HALF, "crop": True, "square": False},
}  # fmt: skip
_TYPES = {
    family + ending: defaults
    for family, defaults in _FAMILIES.items()
    for ending in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
}
_TYPE_KEYS = ("image_processor_type", "feature_extractor_type")
_USED = {
    "do_resize", "size", "default_to_square", "resample", "do_center_crop", "crop_size", "do_rescale",
    "rescale_factor", "do_normalize", "image_mean", "image_std", "do_pad", "data_format", "input_data_format",
}  # fmt: skip
# These change nothing of what a tensor holds: every image becomes RGB, and one image is no batch.
_WITHOUT_EFFECT = {
    "do_convert_rgb", "processor_class", "device", "disable_grouping", "return_tensors", "image_seq_length",
    "_processor_class", "_valid_processor_keys", "transformers_version",
}  # fmt: skip


@dataclass(frozen=True)
class ImageSettings:
    """How an image becomes the tensor that a model was trained on: resize, centre crop, rescale, normalise."""

    size: tuple[int, int] | int | None = (224, 224)  # (height, width); one number: the shorter edge; None: as it is
    crop: tuple[int, int] | None = None  # (height, width) of the centre; what lies outside the image is black
    resample: str = "bilinear"  # one of RESAMPLE
    rescale: float | None = 1 / 255  # factor; None: 0 … 255 as they are
    mean: tuple[float, float, float] | None = (0.5, 0.5, 0.5)  # subtracted, None: neither this nor std
    std: tuple[float, float, float] | None = (0.5, 0.5, 0.5)  # divided by

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLE:
            raise ValueError(f"resample is {self.resample!r}: it may be {', '.join(RESAMPLE)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: one of them is None")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is {self.std}: it must be positive")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImageSettings:
        """The settings that a `preprocessor_config.json` says.

        Args:
            data: the JSON object, of a ViTImageProcessor, DeiTImageProcessor, BitImageProcessor or
                VideoMAEImageProcessor; their older names, ending in FeatureExtractor, and the newer ones, ending in
                Fast or Pil, mean the same. What it leaves out is what transformers 5 takes.

        Raises:
            ValueError: it is of another kind, has a setting that is not known here, or one that cannot be.
        """
        settings = Settings(data)
        defaults = _TYPES[settings.kind(_TYPE_KEYS, _TYPES)]
        settings.check_known({*_TYPE_KEYS, *_USED, *_WITHOUT_EFFECT})
        settings.only("do_pad", False)
        settings.only("data_format", "channels_first")
        settings.only("input_data_format", "channels_first", "channels_last")  # which images say themselves
        square = settings.flag("default_to_square", defaults["square"])
        size = crop = rescale = mean = std = None
        resample = defaults["resample"]
        if settings.flag("do_resize", True):
            size = _size(settings, "size", defaults["size"], square)
            resample = settings.whole("resample", resample, 0, len(RESAMPLE) - 1)
        if settings.flag("do_center_crop", defaults["crop"]):
            crop = _height_width(settings, "crop_size", _SQUARE if defaults["crop"] else None)
        if settings.flag("do_rescale", True):
            rescale = settings.number("rescale_factor", 1 / 255)
        if settings.flag("do_normalize", True):
            mean, std = (_colours(settings, f"image_{name}", defaults[name]) for name in ("mean", "std"))
            if min(std) <= 0:
                raise settings.error("image_std", "it must be positive")
        return cls(size, crop, RESAMPLE[resample], rescale, mean, std)

    def to_json(self) -> dict[str, Any]:
        """A `preprocessor_config.json` that says the same, as a ViTImageProcessor; see `from_json`."""

        def edges(size: tuple[int, int]) -> dict[str, int]:
            return {"height": size[0], "width": size[1]}

        size = {"shortest_edge": self.size} if isinstance(self.size, int) else edges(self.size or (224, 224))
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": self.size is not None,
            "size": size,
            "resample": RESAMPLE.index(self.resample),
            "do_center_crop": self.crop is not None,
            "crop_size": edges(self.crop) if self.crop else None,
            "do_rescale": self.rescale is not None,
            "rescale_factor": 1 / 255 if self.rescale is None else self.rescale,
            "do_normalize": self.mean is not None,
            "image_mean": [*(self.mean or _HALF)],
            "image_std": [*(self.std or _HALF)],
        }

    def normalised(self, values: Tensor) -> Tensor:
        """Rescaled values (…, 3, H, W) → the same without the mean, divided by the standard deviation."""
        if self.mean is None or self.std is None:
            return values
        mean, std = (torch.tensor(c, dtype=values.dtype, device=values.device) for c in (self.mean, self.std))
        return (values - mean[:, None, None]) / std[:, None, None]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """What (height, width) an image of this size is resized to, before it is cropped."""
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        if width <= height:
            return int(self.size * height / width), self.size
        return self.size, int(self.size * width / height)

    def output(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the tensor of an image of this size."""
        return self.crop or self.resized(height, width)

    def window(self, height: int, width: int) -> Box:
        """The part of an original of this size that the tensor shows; beyond its edges where the crop is larger."""
        rows, columns = self.resized(height, width)
        cropped = self.crop or (rows, columns)
        top, left = (rows - cropped[0]) // 2, (columns - cropped[1]) // 2
        down, right = height / rows, width / columns  # pixels of the original a pixel of the resized
        return Box(left * right, top * down, (left + cropped[1]) * right, (top + cropped[0]) * down)


def read_image(source: Picture) -> Image:
    """An image as RGB, upright: turned as its EXIF orientation says, transparency laid on white.

    Args:
        source: a file, or its bytes: anything that Pillow reads but EPS, which is a program; of several pictures the
            first. Or a Pillow image. Or an array (H, W) or (H, W, 1, 3 or 4), or a tensor (H, W) or (1, 3 or 4, H, W):
            grey, RGB or RGBA in 0 … 255 as integers, 0 … 65535 as uint16, 0 … 1 as floating point.

    Raises:
        InputError: it is no image, is damaged or cut off, has no pixels or more than `MOST_PIXELS`, or values
            outside those above. A Pillow image or array that is not one of these is one, too.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        with reading(source, "cannot be read"):
            return image_rgb(source, "the image")
    if isinstance(source, str | os.PathLike | bytes):
        name = name_of(source)
        with opened(source) as file, reading(source, "is not an image that can be read"):
            try:
                image = Image.open(file)
            except Image.UnidentifiedImageError:
                raise InputError(f"{name} is not an image: Pillow knows no format like it") from None
            if image.format == "EPS":
                raise InputError(f"{name} is PostScript, which is a program and not pixels: convert it to PNG")
            check_pixels(name, image.height, image.width)
            image.load()
            return image_rgb(image, name)
    return array_rgb(source)


def image_pixels(image: Picture, settings: ImageSettings) -> Tensor:
    """An image, resized and cropped: (3, H, W) uint8, RGB.

    Args:
        image: whatever `read_image` takes.
        settings: what the model was trained with, or is to be.

    Raises:
        InputError: as `image_tensor`.
    """
    import numpy
    from PIL.Image import Resampling

    read = read_image(image)
    rows, columns = settings.resized(read.height, read.width)
    if rows * columns > MOST_PIXELS:
        raise InputError(
            f"{name_of(image)} has {read.width} × {read.height} pixels, which would be resized to {columns} × {rows}: "
            f"more than {MOST_PIXELS} are refused"
        )
    read = read.resize((columns, rows), Resampling[settings.resample.upper()])
    if settings.crop is not None:
        height, width = settings.crop
        top, left = (rows - height) // 2, (columns - width) // 2
        read = read.crop((left, top, left + width, top + height))  # black where that is outside
    return torch.from_numpy(numpy.array(read)).permute(2, 0, 1)


def image_tensor(image: Picture, settings: ImageSettings) -> Tensor:
    """An image as a model takes it: (3, H, W), float32.

    Differs by less than a grey level from the image processors of transformers that compute with Pillow.

    Args:
        image: whatever `read_image` takes.
        settings: what the model was trained with.

    Raises:
        InputError: the image cannot be read, or is so narrow that it would have too many pixels when resized.
    """
    values = image_pixels(image, settings).to(torch.float64)
    if settings.rescale is not None:
        values = values * settings.rescale
    return settings.normalised(values.to(torch.float32)).contiguous()


def patch_boxes(
    height: int, width: int, settings: ImageSettings, grid: tuple[int, int], patch: tuple[int, int] | None = None
) -> list[Box | None]:
    """For each patch of a grid over the tensor of an image, row by row, its box in the original's pixels.

    Args:
        height: of the original.
        width: of the original.
        settings: by which it became a tensor; resize and crop are taken back.
        grid: rows and columns of patches.
        patch: height and width of each in the tensor's pixels, where rows and columns that do not make a whole patch
            are left out at the end; unless given, the patches share the tensor evenly.

    Returns:
        Boxes cut off at the edges of the original; None for a patch wholly outside, which shows padding.
    """
    rows, columns = grid
    if min(grid) < 1:
        raise ValueError(f"grid is {grid}: it must have at least one row and one column")
    window, shown = settings.window(height, width), settings.output(height, width)
    down, across = (shown[0] / rows, shown[1] / columns) if patch is None else patch
    xs = [window.left + (window.right - window.left) * i * across / shown[1] for i in range(columns + 1)]
    ys = [window.top + (window.bottom - window.top) * i * down / shown[0] for i in range(rows + 1)]
    boxes: list[Box | None] = []
    for row in range(rows):
        for column in range(columns):
            box = Box(
                max(xs[column], 0.0), max(ys[row], 0.0), min(xs[column + 1], width), min(ys[row + 1], height)
            )  # fmt: skip
            boxes.append(box if box.left < box.right and box.top < box.bottom else None)
    return boxes


def patch_elements(
    height: int,
    width: int,
    settings: ImageSettings,
    grid: tuple[int, int],
    *,
    patch: tuple[int, int] | None = None,
    before: tuple[str, ...] = (),
) -> list[Element]:
    """The positions of a Vision Transformer: patches row by row, labelled "row,column" from 0, with their boxes.

    Args:
        height: of the original.
        width: of the original.
        settings: by which it became a tensor.
        grid: rows and columns of patches.
        patch: see `patch_boxes`.
        before: labels of the positions before the first patch, such as ("[CLS]",); they have no span.
    """
    elements = [Element(i, label, "image") for i, label in enumerate(before)]
    for i, box in enumerate(patch_boxes(height, width, settings, grid, patch)):
        elements.append(Element(len(elements), f"{i // grid[1]},{i % grid[1]}", "image", box))
    return elements


def _size(settings: Settings, key: str, default: Any, square: bool) -> tuple[int, int] | int:
    """A size: {"height", "width"}, {"shortest_edge"}, a list of height and width, or one number for either."""
    value: object = settings.get(key, default)
    if isinstance(value, dict) and value.keys() == {"shortest_edge"}:
        value, square = cast("dict[str, object]", value)["shortest_edge"], False
    if not square and _is_edge(value):
        return value
    return _height_width(settings, key, default)


def _height_width(settings: Settings, key: str, default: Any) -> tuple[int, int]:
    value = settings.get(key, default)
    if isinstance(value, Mapping) and value.keys() == {"height", "width"}:
        value = [value["height"], value["width"]]
    edges = cast("list[object]", value if isinstance(value, list) else [value, value])
    if len(edges) == 2 and _is_edge(edges[0]) and _is_edge(edges[1]):
        return edges[0], edges[1]
    form = '{"height", "width"}' + (' or {"shortest_edge"}' if key == "size" else "")
    raise settings.error(key, f"it must be {form}, in pixels from 1 to {_MOST_EDGE}")


def _is_edge(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_EDGE


def _colours(settings: Settings, key: str, default: tuple[float, ...]) -> tuple[float, float, float]:
    """A number for each of red, green and blue, or one for all."""
    value = settings.get(key, list(default))
    if is_number(value):
        value = [value] * 3
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(is_number(v) for v in value):
        raise settings.error(key, "it must be a number, or three")
    return float(value[0]), float(value[1]), float(value[2])
