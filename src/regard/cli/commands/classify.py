"""`regard classify`: labels with probabilities, of texts, images, sound and video."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from regard.cli.files import InputError, Line, media_files, media_kind, sink, text_lines
from regard.cli.options import ChosenModel, Threads, default_for, given
from regard.cli.text_commands import AsText, Force, Output, answers, prepare

if TYPE_CHECKING:
    from regard.pipelines import Classification, ClassificationPipeline


def classify(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT|FILE]...",
            help="Texts, text files with one a line, or - for standard input; or files of what the model reads.",
        ),
    ] = None,
    model: ChosenModel = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Each line is two texts with a tab between.")] = False,
    top: Annotated[int | None, typer.Option("--top", "-k", min=1, help="Print so many labels.")] = None,
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object an input, with all labels.")] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut off texts longer than the model reads.")] = False,
    text: AsText = False,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Classify every text, image, sound or video, and print its likeliest label, the probability and the input.

    Between labels and input stands a tab. A model of images, sound or video reads a file an argument. Of a regression
    the number is printed instead of a probability. A model that gives several labels at once prints all that are
    likelier than not, or the likeliest.

    Examples:

    - `regard classify -m distilbert-sst2/ "A moving film." "Not my cup of tea."`
    - `regard classify -m distilbert-sst2/ --json < reviews.txt > labels.jsonl`
    - `regard classify -m roberta-mnli/ --pairs premises-and-claims.tsv`
    - `regard classify -m vit-base-patch16-224/ --top 5 *.jpg`
    - `regard classify -m ast-audioset/ street.wav film.mp4`
    - `regard classify three.wav seven.wav`
    - `regard classify "A moving film."`
    """
    from regard.pipelines import MediaClassificationPipeline, pipeline

    prepare(output, force, threads)
    classifier = pipeline(model or _default(sources or [], text), "classify", **given(truncate=truncate or None))
    if isinstance(classifier, MediaClassificationPipeline):
        if pairs or text:
            option = "--pairs" if pairs else "--text"
            raise InputError(f"{option} is for texts: this model reads {classifier.reader.reads}")
        files = media_files(sources or [], classifier.reader.reads)
        found = answers(
            files,
            lambda part, tell: classifier([line.text for line in part], progress=tell),
            "classifying",
            "files",
        )
    else:
        found = _texts(classifier, text_lines(sources or [], text), pairs)
    with sink(output) as write:
        for answer in found:
            if as_json:
                write(json.dumps(answer.to_dict(), ensure_ascii=False) + "\n")
                continue
            labels = ", ".join(f"{label.name} {label.score:.3f}" for label in answer.chosen(top))
            write(f"{labels}\t{' '.join(answer.shown.splitlines())}\n")


def _default(sources: Sequence[str], text: bool) -> str:
    """The embedded model for these files."""
    kind = media_kind(sources[0], text) if sources else None
    return default_for(kind or "classify", sources[0] if sources else "")


def _texts(classifier: ClassificationPipeline, lines: Sequence[Line], pairs: bool) -> Iterator[Classification]:
    texts = {line.name: _pair(line) if pairs else line.text for line in lines}
    return answers(
        lines,
        lambda part, tell: classifier(
            [texts[line.name] for line in part], names=[line.name for line in part], progress=tell
        ),
        "classifying",
    )


def _pair(line: Line) -> tuple[str, str]:
    first, tab, second = line.text.partition("\t")
    if not tab or "\t" in second:
        raise InputError(f"{line.name} has {line.text.count(chr(9))} tabs: with --pairs it must have one")
    return first, second
