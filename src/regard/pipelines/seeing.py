"""What a person sees of an input: a model's answer and relations as one report, by a function for each modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regard.models import ModelError
from regard.pipelines import pipeline
from regard.pipelines.embedding import EmbeddingPipeline
from regard.pipelines.filling import FillingPipeline
from regard.pipelines.transcription import TranscriptionPipeline


def see_text(
    source: str | Path, text: str, *, device: str | torch.device | None = None, **settings: Any
) -> dict[str, Any]:
    """A model's answer to a text, and which part of it attended to which, as data that views draw.

    A translator translates the text, a decoder continues it, an encoder classifies it or fills its gaps, if it has
    any; without a head, or without gaps, it only reads the text, and the answer is empty.

    Args:
        source: of the model, as `regard.pipelines.pipeline` takes it.
        text: the input.
        device: where to compute; the CPU by default.
        settings: for the pipeline, such as `beams`.

    Raises:
        ModelError: if there is no such model, it is damaged, or it reads no text.
        TokenizerError: if its tokenizer is missing or damaged.
        TextTooLong: if the text has more pieces than the model takes.
        RequestError, SettingsError: if the pipeline has no such setting, or it is not what it may be.
    """
    found = pipeline(source, device=device, **settings)
    if isinstance(found, TranscriptionPipeline):
        raise ModelError(f"{source} transcribes sound: see `regard transcribe --help`")
    if isinstance(found, FillingPipeline) and not found.has_gap(text):
        found = EmbeddingPipeline(found.reader.checkpoint, found.reader.tokenizer, device=device)
    return found(text).report()
