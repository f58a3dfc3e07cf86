"""Pixels of any kind → RGB: what Pillow gives in other modes, arrays and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.inputs.source import MOST_PIXELS, InputError

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

    Array = numpy.ndarray[Any, Any]

_ORIENTATION = 0x0112  # the EXIF tag
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # modes of Pillow with one channel of more than 8 bits


def check_pixels(name: str, height: int, width: int) -> None:
    """Raises InputError for an image without pixels, or with so many that it must be a decompression bomb."""
    if height < 1 or width < 1:
        raise InputError(f"{name} has {width} × {height} pixels")
    if height * width > MOST_PIXELS:
        raise InputError(f"{name} has {width} × {height} pixels: more than {MOST_PIXELS} are refused")


def image_rgb(image: Image, name: str) -> Image:
    """A Pillow image as RGB, turned upright, transparency laid on white.

    Raises:
        InputError: it has no pixels, or numbers that are no colours.
    """
    from PIL import Image

    check_pixels(name, image.height, image.width)
    image.load()
    turn = _turn(image)
    if image.mode in _DEEP:
        import numpy

        values = numpy.asarray(image)
        # Mode I is 32 bits wide, but files have 16 (PGM, PNG): what Pillow itself makes of it is cut off at 255.
        read = array_rgb(_sixteen(values, name) if image.mode == "I" else values, name)
    elif "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        read = _on_white(image.convert("LA" if image.mode == "La" else "RGBA"))
    else:
        read = image.convert("RGB")
    return read if turn is None else read.transpose(Image.Transpose(turn))


def array_rgb(array: Array | Tensor, name: str = "the array") -> Image:
    """An array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W), as an RGB image; C is 1, 3 or 4.

    Raises:
        InputError: it has another shape, or values outside the range of its type.
    """
    import numpy
    from PIL import Image

    if isinstance(array, Tensor):
        name, form = "the tensor", "(C, H, W)"
        tensor = array.detach().cpu()
        tensor = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        pixels = (tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).numpy()
    else:
        form, pixels = "(H, W, C)", array
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise InputError(f"{name} has shape {tuple(array.shape)}: it must be (H, W) or {form}, C being 1, 3 or 4")
    check_pixels(name, *pixels.shape[:2])
    levels = _levels(pixels, name)
    if levels.shape[2] == 4:
        return _on_white(Image.fromarray(numpy.ascontiguousarray(levels)))
    return Image.fromarray(numpy.ascontiguousarray(numpy.broadcast_to(levels, (*levels.shape[:2], 3))))


def _levels(pixels: Array, name: str) -> Array:
    """Values as grey levels, uint8."""
    import numpy

    kind = pixels.dtype.kind
    if pixels.dtype == numpy.uint8:
        return pixels
    if kind == "b":
        return pixels.astype(numpy.uint8) * 255
    if kind == "u" and pixels.dtype.itemsize == 2:
        return ((pixels.astype(numpy.uint32) + 128) // 257).astype(numpy.uint8)
    if kind not in "iuf":
        raise InputError(f"{name} holds {pixels.dtype}: it must hold integers or floating-point numbers")
    top = 1 if kind == "f" else 255
    least, most = pixels.min(), pixels.max()
    if not (least >= 0 and most <= top):  # also where there is NaN
        raise InputError(f"{name} holds {pixels.dtype} from {least:g} to {most:g}: they must be from 0 to {top}")
    if kind == "f":
        pixels = numpy.rint(pixels.astype(numpy.float64) * 255)
    return pixels.astype(numpy.uint8)


def _sixteen(values: Array, name: str) -> Array:
    import numpy

    least, most = int(values.min()), int(values.max())
    if least < 0 or most > 65535:
        raise InputError(f"{name} has grey levels from {least} to {most}: they must be from 0 to 65535")
    return values.astype(numpy.uint16)


def _on_white(image: Image) -> Image:
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _turn(image: Image) -> int | None:
    """How to turn an image upright, as a number of Pillow's Transpose; None for one that is."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, of which Pillow raises many things, says nothing, and the pixels are whole
        return None
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
