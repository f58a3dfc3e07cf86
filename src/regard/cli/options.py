"""Options that several commands take, and what they load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from regard.pipelines import GenerationPipeline, TranslationPipeline

DEFAULT_MODEL = "translate-en-de"

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="An embedded model (see `regard models`), a directory, a GGUF file, or a hub id."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores unless given.")]


def translation_pipeline(model: str, threads: int | None, beams: int | None) -> TranslationPipeline:
    """The pipeline of a translating model, on so many threads."""
    import torch

    from regard.models import ModelError
    from regard.pipelines import TranslationPipeline, pipeline

    if threads is not None:
        torch.set_num_threads(threads)
    settings: dict[str, Any] = {} if beams is None else {"beams": beams}
    found = pipeline(model, **settings)
    if not isinstance(found, TranslationPipeline):
        raise ModelError(f"{model} does not translate: see `regard generate --help`")
    return found


def generating(model: str, threads: int | None, settings: dict[str, Any] | None) -> GenerationPipeline:
    """The pipeline of a model that continues texts, on so many threads, with these of its settings changed."""
    import torch

    from regard.pipelines import generation_pipeline

    if threads is not None:
        torch.set_num_threads(threads)
    return generation_pipeline(model, **(settings or {}))
