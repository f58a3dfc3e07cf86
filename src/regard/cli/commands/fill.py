"""`regard fill`: the likeliest words for gaps."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from regard.cli.files import sink, text_lines
from regard.cli.options import Threads
from regard.cli.text_commands import AsText, Encoder, Force, Output, Sources, answers, prepare


def fill(
    model: Encoder,
    sources: Sources = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Guesses for each gap.")] = 5,
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object a text.")] = False,
    text: AsText = False,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Guess the gaps of every text, each by itself, and print the likeliest pieces with their probabilities.

    A gap is written as the model's tokenizer has it: [MASK] for BERT and DistilBERT, <mask> for RoBERTa.

    Examples:

    - `regard fill -m bert-base-uncased/ "Two [MASK] run over the grass."`
    - `regard fill -m roberta-base/ --top 1 --json < gaps.txt > guesses.jsonl`
    """
    from regard.pipelines import pipeline

    lines = text_lines(sources or [], text)
    prepare(output, force, threads)
    filler = pipeline(model, "fill", top=top)
    found = answers(
        lines,
        lambda part, tell: filler([line.text for line in part], names=[line.name for line in part], progress=tell),
        "filling",
    )
    with sink(output) as write:
        for filling in found:
            if as_json:
                write(json.dumps(filling.to_dict(), ensure_ascii=False) + "\n")
                continue
            write(f"{filling.filled}\n")
            for gap in filling.gaps:
                write("  " + "  ".join(f"{guess.piece} {guess.probability:.3f}" for guess in gap) + "\n")
