"""Models by name: those that come with the package, directories, GGUF files, and checkpoints of the hub."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from regard.models.checkpoint import Checkpoint, is_checkpoint, read_checkpoint
from regard.models.hub import fetch, is_hub_id
from regard.models.store import CONFIG, ModelError, SavedModel, load_model


def embedded_models() -> dict[str, Path]:
    """The models that come with the package: name → directory, sorted by name."""
    root = Path(str(resources.files("regard.models"))) / "embedded"
    return {config.parent.name: config.parent for config in sorted(root.glob(f"*/{CONFIG}"))}


def resolve(source: str | Path) -> Path:
    """Where a model lies.

    Args:
        source: the name of an embedded model, a directory, a GGUF file, or OWNER/NAME on the Hugging Face hub,
            with @REVISION after it if need be. They are tried in this order: write ./NAME for a directory that is
            called like an embedded model.

    Returns:
        A directory, or a GGUF file.

    Raises:
        ModelError: if it is none of them; the message says what was looked for.
    """
    known = embedded_models()
    if str(source) in known and not isinstance(source, Path):
        return known[source]
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
        return path
    if isinstance(source, str) and is_hub_id(source):
        return fetch(source)
    names = ", ".join(known) or "none"
    raise ModelError(
        f"{str(source)!r} is neither a directory nor the name of an embedded model (known: {names}), nor a GGUF file"
        " or a hub id such as OWNER/NAME"
    )


def load(source: str | Path, *, dtype: torch.dtype | None = torch.float32) -> SavedModel | Checkpoint:
    """Load a model with its tokenizer and settings.

    Args:
        source: what `resolve` takes: an embedded model's name, a directory of ours or a Hugging Face checkpoint's,
            a GGUF file, or a hub id.
        dtype: of a checkpoint's parameters, whatever the file has; None is as in the file. Models that
            `save_model` wrote are in float32.

    Returns:
        Its `model` is in evaluation mode; `tokenizer`, `about`, `task` and `directory` say the rest. A `Checkpoint`
        can be saved again.

    Raises:
        ModelError: if there is none, or it is damaged; see `resolve`, `load_model` and `read_checkpoint`.

    Example:
        >>> import regard
        >>> found = regard.load("translate-en-de")
        >>> found.task, found.tokenizer.vocab_size
        ('translation', 6000)
    """
    place = resolve(source)
    if place.is_file():
        from regard.models.gguf import read_gguf

        return read_gguf(place, dtype=dtype)
    return read_checkpoint(place, dtype=dtype) if is_checkpoint(place) else load_model(place)
