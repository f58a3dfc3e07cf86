"""A model by name, directory or file: input in, answer and relations out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regard.models import Checkpoint, ModelError, load
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
            checkpoint's directory, a GGUF file, or a hub id; see `regard.models.resolve`.
        device: where to compute; the CPU by default.
        settings: for the pipeline, such as `beams`; see `TranslationPipeline` and `GenerationPipeline`.

    Raises:
        ModelError: if there is no such model, it is damaged, or there is no pipeline for its task.
    """
    found = load(source)
    if isinstance(found, Checkpoint):
        return GenerationPipeline(found, found.tokenizer, device=device, **settings)
    if found.task != "translation":
        raise ModelError(f"{found.directory} is for the task {found.task!r}: there is a pipeline for translation")
    return TranslationPipeline(found, device=device, **settings)
