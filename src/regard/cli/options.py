"""Options that several commands take, and what they load."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli.files import NAMES, InputError

if TYPE_CHECKING:
    from regard.pipelines import GenerationPipeline, TranslationPipeline

DEFAULT_MODEL = "translate-en-de"
DEFAULTS: Mapping[str, str] = {
    "translate": DEFAULT_MODEL,
    "classify": "film-reviews",
    "generate": "shakespeare",
    "image": "photo-classes",
    "audio": "spoken-digits",
}
"""The embedded model of each task with texts, and of each kind of file, where no model is named."""

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="An embedded model (see `regard models`), a directory, a GGUF file, or a hub id."
    ),
]
ChosenModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="An embedded model, a directory, a GGUF file, or a hub id; unless given, the embedded one for such an"
        " input: see `regard models`.",
    ),
]
Job = Annotated[str | None, typer.Option(help="Of a checkpoint for several: one that its config.json lists.")]
Prefix = Annotated[str | None, typer.Option(help="Words before every text that tell a checkpoint its job.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores unless given.")]


def default_for(use: str, source: str) -> str:
    """The embedded model for a file that is no text, or a task with texts; what it can do, and what not, is said on
    stderr.

    Args:
        use: the kind of the file, or the task.
        source: what the file is called, for the error.

    Raises:
        InputError: there is none.
    """
    from regard.models.registry import embedded_models

    name, known = DEFAULTS.get(use), embedded_models()
    if name is None or name not in known:
        if use in NAMES:
            why = f"{source} is {NAMES[use]}: no model of the package reads it"
        else:
            why = f"no model of the package can {use} a text"
        raise InputError(f"{why}; name a model that does with --model")
    about = json.loads((known[name] / "config.json").read_text(encoding="utf-8"))
    said = " ".join(about[part] for part in ("description", "limits") if about.get(part))
    print(f"{name}: {said} --model names another.", file=sys.stderr)
    return name


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
