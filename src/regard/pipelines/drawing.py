"""Pictures of inputs as data that a page embeds: images, frames, and spectrograms in colours."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Place = tuple[int, float, float, float, float]
"""The number of a picture, and left, top, right and bottom in its own units: `width` and `height` of `picture_data`."""

_MOST_EDGE = 1024
_EXACT = 128 * 128  # pixels up to which nothing may be lost
# From silence to loud: each a little lighter than the one before, also for who sees few colours.
_LEVELS = ((13, 15, 40), (64, 30, 110), (140, 45, 115), (215, 80, 75), (245, 150, 55), (252, 240, 170))
_PADDING = (128, 128, 128)


def picture_data(image: Image, *, most: int = _MOST_EDGE, title: str = "") -> dict[str, Any]:
    """A picture for a page.

    Args:
        image: RGB.
        most: pixels of the longer edge; a larger image is made smaller.
        title: what stands under it.

    Returns:
        {"uri": a data URI, "width": of the image, "height", "title"}.
    """
    width, height = image.size
    if max(image.size) > most:
        image = image.copy()
        image.thumbnail((most, most))
    exact = image.width * image.height <= _EXACT
    return {"uri": _uri(image, "PNG" if exact else "JPEG"), "width": width, "height": height, "title": title}


def spectrogram_data(features: Tensor, heard: int, *, lowest: int = 20) -> dict[str, Any]:
    """A spectrogram for a page: a column a frame of 10 ms, a row a mel bin, the lowest frequencies at the bottom.

    Args:
        features: (T, M), logarithms.
        heard: frames that hold sound; what follows is padding, and grey.
        lowest: where the mel bins begin, in Hz.

    Returns:
        As `picture_data`, and "stretch": its pixels need not be square.
    """
    from PIL import Image

    low, high = features[:heard].min(), features[:heard].max()
    levels = ((features - low) / (high - low).clamp(min=1e-9)).clamp(0, 1).T.flip(0) * (len(_LEVELS) - 1)  # (M, T)
    colours = torch.tensor(_LEVELS, dtype=torch.float32)
    below = levels.long().clamp(max=len(_LEVELS) - 2)
    part = (levels - below)[..., None]
    pixels = (colours[below] * (1 - part) + colours[below + 1] * part).round().to(torch.uint8)  # (M, T, 3)
    pixels[:, heard:] = torch.tensor(_PADDING, dtype=torch.uint8)
    image = Image.fromarray(pixels.contiguous().numpy())
    title = f"time across, 0 to {len(features) / 100:.2f} s; mel bins upwards, {lowest} to 8000 Hz"
    title += "; grey: padding" if heard < len(features) else ""
    drawn = {"uri": _uri(image, "PNG"), "width": image.width, "height": image.height, "title": title}
    return drawn | {"stretch": True}


def _uri(image: Image, form: str) -> str:
    file = io.BytesIO()
    image.save(file, form, **({"quality": 85} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
