"""Puts a model that a benchmark trained into the package, among those that `regard models` lists."""

import dataclasses
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from regard.files import write_atomically
from regard.models.checkpoint import Checkpoint

MOST = 12 * 10**6
"""Bytes that the weights of an embedded model may have."""


def embed(
    checkpoint: Checkpoint,
    name: str,
    about: Mapping[str, Any],
    *,
    card: str,
    licence: str,
    place: Path | None = None,
) -> Path:
    """Write a model directory: config.json, weights in float16, what its files are read with, card and licence.

    Args:
        checkpoint: with the weights of the end of its training.
        name: of the model, and of its directory.
        about: for config.json: description, limits, scores, licence.
        card: README.md.
        licence: of the weights, in full: LICENSE.
        place: the directory; that of embedded models in the package unless given.

    Returns:
        The directory.

    Raises:
        ValueError: if the weights are too large.
    """
    directory = place or Path(str(resources.files("regard.models"))) / "embedded" / name
    settings = {**checkpoint.settings, **about}
    written = dataclasses.replace(checkpoint, settings=settings).save(directory, dtype=torch.float16)
    size = (written / "model.safetensors").stat().st_size
    if size > MOST:
        raise ValueError(f"{written} has weights of {size:,} bytes: an embedded model may have {MOST:,}")
    write_atomically(written / "README.md", card.encode())
    write_atomically(written / "LICENSE", licence.encode())
    return written
