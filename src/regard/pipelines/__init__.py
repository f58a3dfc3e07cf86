"""A model by name or directory: input in, answer and relations out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regard.models import ModelError, load
from regard.pipelines.translation import TextTooLong, Translation, TranslationPipeline

__all__ = ["TextTooLong", "Translation", "TranslationPipeline", "pipeline"]


def pipeline(source: str | Path, *, device: str | torch.device | None = None, **settings: Any) -> TranslationPipeline:
    """A pipeline with the model of this name or directory.

    Args:
        source: the name of an embedded model, or a directory that `regard.models.save_model` wrote.
        device: where to compute; the CPU by default.
        settings: for the pipeline, such as `beams`; see `TranslationPipeline`.

    Raises:
        ModelError: if there is no such model, it is damaged, or there is no pipeline for its task.
    """
    saved = load(source)
    if saved.task != "translation":
        raise ModelError(f"{saved.directory} is for the task {saved.task!r}: there is a pipeline for translation")
    return TranslationPipeline(saved, device=device, **settings)
