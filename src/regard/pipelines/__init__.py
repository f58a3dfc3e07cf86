"""A model by name, directory or file: input in, answer and relations out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regard.models import ModelError, load
from regard.models.checkpoint import is_checkpoint
from regard.pipelines.generation import Generation, GenerationPipeline, generation_pipeline
from regard.pipelines.translation import TextTooLong, Translation, TranslationPipeline

__all__ = [
    "Generation",
    "GenerationPipeline",
    "TextTooLong",
    "Translation",
    "TranslationPipeline",
    "generation_pipeline",
    "pipeline",
]


def pipeline(
    source: str | Path, *, device: str | torch.device | None = None, **settings: Any
) -> TranslationPipeline | GenerationPipeline:
    """A pipeline with the model of this name, directory or file.

    Args:
        source: the name of an embedded model, a directory that `regard.models.save_model` wrote, a Hugging Face
            checkpoint's directory, or a GGUF file.
        device: where to compute; the CPU by default.
        settings: for the pipeline, such as `beams`; see `TranslationPipeline` and `GenerationPipeline`.

    Raises:
        ModelError: if there is no such model, it is damaged, or there is no pipeline for its task.
    """
    if is_checkpoint(source):
        return generation_pipeline(source, device=device, **settings)
    saved = load(source)
    if saved.task != "translation":
        raise ModelError(f"{saved.directory} is for the task {saved.task!r}: there is a pipeline for translation")
    return TranslationPipeline(saved, device=device, **settings)
