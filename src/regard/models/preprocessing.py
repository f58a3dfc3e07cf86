"""How files become a checkpoint's inputs: its preprocessor_config.json, held against what the model takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from regard.inputs.features import ASTSettings
from regard.inputs.image import ImageSettings
from regard.models.checkpoint import Checkpoint
from regard.models.family import ModelError
from regard.models.patch_transformer import PatchConfig

PREPROCESSOR = "preprocessor_config.json"
SettingsT = TypeVar("SettingsT")


def image_settings(checkpoint: Checkpoint) -> ImageSettings:
    """How an image, or each frame of a video, becomes the pixels that a checkpoint takes.

    Args:
        checkpoint: of a `PatchTransformer`.

    Raises:
        ModelError: the preprocessor is missing, not known, or makes something else than the model takes.
    """
    settings, config = _read(checkpoint, ImageSettings.from_json)
    if config.channels != 3:
        raise ModelError(f"{checkpoint.directory} takes {config.channels} channels: it must be 3, RGB")
    fixed, moving = settings.crop or settings.size, len(config.size) == 3
    if moving and not isinstance(fixed, tuple):
        raise ModelError(f"{checkpoint.directory / PREPROCESSOR} makes frames of any size: the model takes one")
    if isinstance(fixed, tuple) and config.resized == "never":
        _check_size(checkpoint, (*config.size[:-2], *fixed), config.size, "videos" if moving else "images")
    return settings


def sound_settings(checkpoint: Checkpoint) -> ASTSettings:
    """How sound becomes the spectrogram that a checkpoint takes.

    Args:
        checkpoint: of a `PatchTransformer`.

    Raises:
        ModelError: the preprocessor is missing, not known, or makes something else than the model takes.
    """
    settings, config = _read(checkpoint, ASTSettings.from_json)
    _check_size(checkpoint, (settings.mels, settings.frames), config.size, "spectrograms")
    return settings


def _read(checkpoint: Checkpoint, from_json: Callable[[dict[str, Any]], SettingsT]) -> tuple[SettingsT, PatchConfig]:
    if PREPROCESSOR not in checkpoint.files:
        raise ModelError(f"{checkpoint.directory} has no {PREPROCESSOR}: it says how files become tensors")
    model: Any = checkpoint.model
    data = checkpoint.json(PREPROCESSOR)
    try:
        return from_json(data), model.config
    except ValueError as error:
        raise ModelError(f"{checkpoint.directory}: {error}") from error


def _check_size(checkpoint: Checkpoint, made: tuple[int, ...], taken: tuple[int, ...], what: str) -> None:
    """Refuse a preprocessor that makes another size than the model takes."""
    if made != taken:
        makes, takes = (" × ".join(map(str, shape)) for shape in (made, taken))
        where = checkpoint.directory / PREPROCESSOR
        raise ModelError(f"{where} makes {what} of {makes}: config.json says that the model takes {takes}")
