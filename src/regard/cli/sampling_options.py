"""The settings of generation as options, for every command that writes text."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from regard.cli.options import with_options

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
    "lookup": Annotated[
        bool | None,
        typer.Option(
            "--lookup/--no-lookup", help="Write several pieces a step where the text repeats itself; on unless given."
        ),
    ],
    "int8": Annotated[
        bool | None, typer.Option("--int8", help="Keep the weights in eight bits: faster, a little less exact.")
    ],
}

with_settings = with_options(_SETTINGS, "settings")
"""Gives a command these options, and its parameter `settings` those of them that are given."""
