"""Options that several commands take, and what they load."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
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
Job = Annotated[str | None, typer.Option(help="Of a checkpoint for several: one that its config.json lists.")]
Prefix = Annotated[str | None, typer.Option(help="Words before every text that tell a checkpoint its job.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores unless given.")]


def set_threads(threads: int | None) -> None:
    """Compute on so many threads; all cores where there is no number."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def translation_pipeline(model: str, threads: int | None, **settings: Any) -> TranslationPipeline:
    """The pipeline of a translating model, on so many threads, with those of these settings that have a value."""
    from regard.pipelines import pipeline

    set_threads(threads)
    return pipeline(model, "translate", **given(**settings))


def generating(model: str, threads: int | None, settings: dict[str, Any] | None) -> GenerationPipeline:
    """The pipeline of a model that continues texts, on so many threads, with these of its settings changed."""
    from regard.pipelines import pipeline

    set_threads(threads)
    return pipeline(model, "generate", **(settings or {}))


def given(**settings: Any) -> dict[str, Any]:
    """The settings that have a value."""
    return {name: value for name, value in settings.items() if value is not None}


def with_options(options: Mapping[str, Any], parameter: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command options that several share, or that are many.

    Args:
        options: their types by name, each with None as the default.
        parameter: of the command, which takes those that are given, by name.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)

        def run(**values: Any) -> None:
            found = given(**{name: values.pop(name) for name in options})
            command(**values, **{parameter: found})

        parameters = [p for p in own.parameters.values() if p.name != parameter]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in options.items()
        ]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorated
