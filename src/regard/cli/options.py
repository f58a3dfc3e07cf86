"""Options that several commands take, and what they load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from regard.pipelines import TranslationPipeline

DEFAULT_MODEL = "translate-en-de"

Model = Annotated[str, typer.Option("--model", "-m", help="An embedded model (see `regard models`) or a directory.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores unless given.")]


def translation_pipeline(model: str, threads: int | None, beams: int | None) -> TranslationPipeline:
    """The pipeline of a translating model, on so many threads."""
    import torch

    from regard.pipelines import pipeline

    if threads is not None:
        torch.set_num_threads(threads)
    settings: dict[str, Any] = {} if beams is None else {"beams": beams}
    return pipeline(model, **settings)
