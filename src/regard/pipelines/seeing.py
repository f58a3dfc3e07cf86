"""What a person sees of an input: a model's answer and relations as one report, by a function for each modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regard.inputs.source import name_of
from regard.models import Checkpoint, ModelError, load
from regard.pipelines import MediaClassificationPipeline, pipeline_of
from regard.pipelines.embedding import EmbeddingPipeline
from regard.pipelines.filling import FillingPipeline
from regard.pipelines.media import reader_of
from regard.pipelines.speech_relations import speech_report


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
    loaded = load(source)
    if isinstance(loaded, Checkpoint) and loaded.family.modality != "text":
        family = loaded.family
        raise ModelError(f"{source} holds a {family.name}, which reads {family.modality}: it must be a model of text")
    found: Any = pipeline_of(loaded, None, device, settings)
    if isinstance(found, FillingPipeline) and not found.has_gap(text):
        found = EmbeddingPipeline(found.reader.checkpoint, found.reader.tokenizer, device=device)
    return found(text).report()


def see_media(
    source: str | Path, file: str | Path | bytes, *, device: str | torch.device | None = None
) -> dict[str, Any]:
    """A model's answer to an image, a sound or a video, and which part of it attended to which; see `see_text`.

    Without a head that classifies, the model only reads the file, and the answer is empty. A model of speech writes
    down what is said at the beginning, as much as it hears at once.

    Args:
        source: of the model, as `regard.pipelines.pipeline` takes it.
        file: the input, or its bytes.
        device: where to compute; the CPU by default.

    Raises:
        ModelError: if there is no such model, it is damaged, or it reads something else.
        InputError: if the file cannot be read as what the model reads.
    """
    found = load(source)
    if not isinstance(found, Checkpoint) or found.family.modality == "text":
        raise ModelError(f"{source} reads text: {name_of(file)} needs a model of images, sound or video")
    if found.head == "transcribe":
        heard: Any = pipeline_of(found, None, device, {})
        return speech_report(heard, file)
    if found.head == "classify":
        return MediaClassificationPipeline(found, device=device)(file).report()
    reader = reader_of(found, device)
    scene = reader.scene(file)
    return reader.report(scene, reader.relate(scene, "see"), name_of(file), "")
