"""The settings of generation as options, for every command that writes text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

_SETTINGS: dict[str, Any] = {
    "max_new_tokens": Annotated[int | None, typer.Option(min=1, help="Pieces that an answer may have.")],
    "temperature": Annotated[float | None, typer.Option(min=0, help="Of the draw; 0 takes the likeliest piece.")],
    "top_k": Annotated[int | None, typer.Option(min=0, help="Draw among so many likeliest pieces; 0 is all.")],
    "top_p": Annotated[
        float | None, typer.Option(min=0, max=1, help="Draw among the likeliest pieces with this probability together.")
    ],
    "min_p": Annotated[
        float | None, typer.Option(min=0, max=1, help="Draw among pieces with this share of the likeliest one's.")
    ],
    "repetition_penalty": Annotated[float | None, typer.Option(help="Above 1, what was there before is less likely.")],
    "beams": Annotated[int | None, typer.Option(min=1, help="Hypotheses of a beam search; 1 is none.")],
    "stop": Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be given several times.")],
    "seed": Annotated[int | None, typer.Option(min=0, help="Of the random numbers: the same seed, the same answer.")],
    "int8": Annotated[
        bool | None, typer.Option("--int8", help="Keep the weights in eight bits: faster, a little less exact.")
    ],
}


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `settings` holds those of these options that are given, as options of its own."""
    own = inspect.signature(command, eval_str=True)

    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in _SETTINGS}
        command(**values, settings={name: value for name, value in given.items() if value is not None})

    parameters = [p for p in own.parameters.values() if p.name != "settings"]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _SETTINGS.items()
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
