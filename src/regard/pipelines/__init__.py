"""A model by name, directory or file: input in, answer and relations out."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch

from regard.models import Checkpoint, ModelError, SavedModel, load
from regard.pipelines.answering import AnsweringPipeline
from regard.pipelines.classification import Classification, ClassificationPipeline
from regard.pipelines.embedding import Embedding, EmbeddingPipeline
from regard.pipelines.filling import Filling, FillingPipeline
from regard.pipelines.generation import Generation, GenerationPipeline
from regard.pipelines.media_classification import MediaClassification, MediaClassificationPipeline
from regard.pipelines.texts import RequestError, TextTooLong
from regard.pipelines.transcription import Segment, Transcript, TranscriptionPipeline
from regard.pipelines.translation import Translation, TranslationPipeline

__all__ = [
    "AnsweringPipeline",
    "Classification",
    "ClassificationPipeline",
    "Embedding",
    "EmbeddingPipeline",
    "Filling",
    "FillingPipeline",
    "Generation",
    "GenerationPipeline",
    "MediaClassification",
    "MediaClassificationPipeline",
    "Pipeline",
    "RequestError",
    "Segment",
    "Task",
    "TextTooLong",
    "Transcript",
    "TranscriptionPipeline",
    "Translation",
    "TranslationPipeline",
    "pipeline",
    "pipeline_of",
]

Task = Literal["translate", "generate", "embed", "fill", "classify", "transcribe"]
CheckpointPipeline = (
    AnsweringPipeline
    | GenerationPipeline
    | EmbeddingPipeline
    | FillingPipeline
    | ClassificationPipeline
    | TranscriptionPipeline
)
Pipeline = TranslationPipeline | CheckpointPipeline | MediaClassificationPipeline
_OF_TASK: dict[str, type[CheckpointPipeline]] = {
    "translate": AnsweringPipeline,
    "generate": GenerationPipeline,
    "embed": EmbeddingPipeline,
    "fill": FillingPipeline,
    "classify": ClassificationPipeline,
    "transcribe": TranscriptionPipeline,
}


@overload
def pipeline(
    source: str | Path, task: Literal["translate"], *, device: str | torch.device | None = None, **settings: Any
) -> TranslationPipeline | AnsweringPipeline: ...
@overload
def pipeline(
    source: str | Path, task: Literal["generate"], *, device: str | torch.device | None = None, **settings: Any
) -> GenerationPipeline: ...
@overload
def pipeline(
    source: str | Path, task: Literal["embed"], *, device: str | torch.device | None = None, **settings: Any
) -> EmbeddingPipeline: ...
@overload
def pipeline(
    source: str | Path, task: Literal["fill"], *, device: str | torch.device | None = None, **settings: Any
) -> FillingPipeline: ...
@overload
def pipeline(
    source: str | Path, task: Literal["classify"], *, device: str | torch.device | None = None, **settings: Any
) -> ClassificationPipeline | MediaClassificationPipeline: ...
@overload
def pipeline(
    source: str | Path, task: Literal["transcribe"], *, device: str | torch.device | None = None, **settings: Any
) -> TranscriptionPipeline: ...
@overload
def pipeline(
    source: str | Path, task: None = None, *, device: str | torch.device | None = None, **settings: Any
) -> Pipeline: ...
def pipeline(
    source: str | Path, task: Task | None = None, *, device: str | torch.device | None = None, **settings: Any
) -> Pipeline:
    """A pipeline with the model of this name, directory or file.

    Args:
        source: the name of an embedded model, a directory that `regard.models.save_model` wrote, a Hugging Face
            checkpoint's directory, a GGUF file, or a hub id; see `regard.models.resolve`.
        task: "translate", "generate", "embed", "fill", "classify" or "transcribe"; what the model's head is for unless
            given. Any encoder of text may "embed".
        device: where to compute; the CPU by default.
        settings: for the pipeline, such as `beams`; see `TranslationPipeline`, `AnsweringPipeline`,
            `GenerationPipeline`, `EmbeddingPipeline`, `FillingPipeline`, `ClassificationPipeline`,
            `TranscriptionPipeline` and, for models of images, sound and video, `MediaClassificationPipeline`.

    Raises:
        ModelError: if there is no such model, it is damaged, or it is not for this task.
        TokenizerError: if its tokenizer is missing or damaged.
        RequestError: if there is no such task, or its pipeline has no such setting.
    """
    if task is not None and task not in get_args(Task):
        raise RequestError(f"task is {task!r}: it must be {', '.join(get_args(Task))} or None")
    return pipeline_of(load(source), task, device, settings)


def pipeline_of(
    found: Checkpoint | SavedModel, task: Task | None, device: str | torch.device | None, settings: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model that has been loaded; see `pipeline`.

    Raises:
        ModelError: if the model is not for this task.
        RequestError: if its pipeline has no such setting.
    """
    if isinstance(found, Checkpoint):
        if found.family.modality != "text" and found.head != "transcribe":
            return _media(found, task, device, settings)
        kind = _kind(found, task)
        _check_settings(kind, settings)
        return kind(found, found.tokenizer, device=device, **settings)
    if found.task != "translation":
        raise ModelError(f"{found.directory} is for the task {found.task!r}: there is a pipeline for translation")
    if task not in (None, "translate"):
        raise ModelError(f"{found.directory} is for the task {found.task!r}: it cannot {task}")
    _check_settings(TranslationPipeline, settings)
    return TranslationPipeline(found, device=device, **settings)


def _media(
    checkpoint: Checkpoint, task: Task | None, device: str | torch.device | None, settings: Mapping[str, Any]
) -> MediaClassificationPipeline:
    """The pipeline of a model that reads images, sound or video."""
    if task not in (None, "classify"):
        family = checkpoint.family
        raise ModelError(
            f"{checkpoint.directory} holds a {family.name}, which reads {family.modality}: to {task} it must read text"
        )
    _check_settings(MediaClassificationPipeline, settings)
    return MediaClassificationPipeline(checkpoint, device=device, **settings)


def _kind(checkpoint: Checkpoint, task: Task | None) -> type[CheckpointPipeline]:
    """The pipeline of a model that reads or writes text for a task, or for the model's head."""
    head = checkpoint.head
    chosen = task or ("embed" if head == "hidden" else head)
    if chosen not in _OF_TASK or (head == "transcribe") != (chosen == "transcribe"):
        raise ModelError(f"{checkpoint.directory} has the head {head!r}: there is no pipeline to {chosen} with it")
    return _OF_TASK[chosen]


def _check_settings(kind: type[Pipeline], settings: Mapping[str, Any]) -> None:
    """Refuse a setting that a pipeline has not; one that takes any checks them itself."""
    parameters = signature(kind).parameters.values()
    known = [p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.name != "device"]
    unknown = [name for name in settings if name not in known]
    if unknown and not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        raise RequestError(f"{kind.__name__} has no setting {unknown[0]}: it has {', '.join(known) or 'none'}")
