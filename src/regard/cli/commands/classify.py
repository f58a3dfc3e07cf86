"""`regard classify`: labels with probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli.files import InputError, Line, sink, text_lines
from regard.cli.options import Threads
from regard.cli.text_commands import AsText, Encoder, Force, Output, Sources, answers, prepare

if TYPE_CHECKING:
    from regard.models.bert import Problem
    from regard.pipelines import Classification
    from regard.pipelines.classification import Label


def classify(
    model: Encoder,
    sources: Sources = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Each line is two texts with a tab between.")] = False,
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object a text, with all labels.")] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut off texts longer than the model reads.")] = False,
    text: AsText = False,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Classify every text, and print the likeliest label, its probability and the text, with tabs between.

    Of a regression the number is printed instead of a probability. A model that gives several labels at once prints all
    that are likelier than not, or the likeliest.

    Examples:

    - `regard classify -m distilbert-sst2/ "A moving film." "Not my cup of tea."`
    - `regard classify -m distilbert-sst2/ --json < reviews.txt > labels.jsonl`
    - `regard classify -m roberta-mnli/ --pairs premises-and-claims.tsv`
    """
    from regard.pipelines import pipeline

    lines = text_lines(sources or [], text)
    texts = {line.name: _pair(line) if pairs else line.text for line in lines}
    prepare(output, force, threads)
    classifier = pipeline(model, "classify", truncate=truncate)
    found = answers(
        lines,
        lambda part, tell: classifier(
            [texts[line.name] for line in part], names=[line.name for line in part], progress=tell
        ),
        "classifying",
    )
    with sink(output) as write:
        for answer in found:
            if as_json:
                write(json.dumps(answer.to_dict(), ensure_ascii=False) + "\n")
                continue
            shown = _shown(answer, classifier.reader.model.config.problem)
            labels = ", ".join(f"{label.name} {label.score:.3f}" for label in shown)
            whole = answer.text if isinstance(answer.text, str) else "\t".join(answer.text)
            write(f"{labels}\t{' '.join(whole.splitlines())}\n")


def _shown(answer: Classification, problem: Problem) -> Sequence[Label]:
    if problem == "regression":
        return answer.labels
    likely = [label for label in answer.labels if label.score > 0.5] if problem == "multi_label" else []
    return likely or answer.labels[:1]


def _pair(line: Line) -> tuple[str, str]:
    first, tab, second = line.text.partition("\t")
    if not tab or "\t" in second:
        raise InputError(f"{line.name} has {line.text.count(chr(9))} tabs: with --pairs it must have one")
    return first, second
