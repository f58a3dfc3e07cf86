"""`regard see`: an answer, and what each part of the model attended to."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli.files import NAMES, InputError, media_kind, text_input
from regard.cli.options import (
    DEFAULT_MODEL,
    ChosenModel,
    Job,
    Prefix,
    Threads,
    default_for,
    given,
    set_threads,
)

if TYPE_CHECKING:
    from regard.inputs.kind import Kind

TASKS = ("translate", "classify", "generate")


def see(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A text, any file, or - for standard input.")],
    model: ChosenModel = None,
    task: Annotated[
        str | None,
        typer.Option(help="What a model of the package does with a text: translate, unless given; classify, generate."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The HTML file to write.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the data instead, and write HTML only where -o says.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="INPUT is the text, even if a file is called so.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that regard did not write.")] = False,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam size; the model's own unless given.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Pieces that a continuation may have; what the model recommends, or 256.")
    ] = None,
    job: Job = None,
    prefix: Prefix = None,
    threads: Threads = None,
) -> None:
    """Answer an input, and show what each part of the model attended to.

    Prints the answer, which word was read from which, and what every head does; and writes one HTML file that opens
    offline, by default regard-NAME.html in this directory. A translator translates a text, a decoder continues it, an
    encoder classifies it, fills its gaps, or only reads it. A model of images, sound or video classifies a file, or
    only reads it, and the page shows on the picture which part looks where. A model of speech writes down what is said
    in the beginning, as much as it hears at once.

    Examples:

    - `regard see "A man in a blue shirt is standing on a ladder cleaning a window."`
    - `regard see caption.txt -o caption.html`
    - `regard see three.wav`
    - `regard see --task classify "A moving film."`
    - `regard see -m all-MiniLM-L6-v2/ "Two dogs play in the snow."`
    - `regard see -m model.gguf --max-new-tokens 20 "The sun was low, and"`
    - `regard see -m t5-small/ --job summarization letter.txt`
    - `regard see -m vit-base-patch16-224/ cat.jpg`
    - `regard see -m whisper-tiny/ speech.wav`
    - `echo "Two dogs play in the snow." | regard see - --json > seen.json`
    """
    from regard.view.html import check_path, write

    settings = given(beams=beams, max_new_tokens=max_new_tokens, job=job, prefix=prefix)
    kind = media_kind(source, text)
    if kind is not None and settings:
        raise InputError(f"--{next(iter(settings)).replace('_', '-')} is for texts: {source} is {NAMES[kind]}")
    model = _chosen(model, task, kind, source)
    name, content = text_input(source, text) if kind is None else (Path(source).stem, source)
    page = output if output is not None else None if as_json else Path(f"regard-{name}.html")
    if page is not None:
        check_path(page, force=force)  # before the work
    set_threads(threads)
    report = _report(model, content, kind, settings)
    if page is not None:
        page = write(report, page, force=force)
    _print(report, as_json=as_json)
    if page is not None:
        print(f"\nSee it: {page.resolve()}", file=sys.stderr if as_json else sys.stdout)


def _chosen(model: str | None, task: str | None, kind: Kind | None, source: str) -> str:
    """The model that is named, or that of the package for a task or a kind of file."""
    if task not in (None, *TASKS):
        raise InputError(f"--task is {task!r}; it may be {', '.join(TASKS)}")
    if task is not None and model is not None:
        raise InputError("--task chooses among the models of the package: give either --task or --model")
    if task is not None and kind is not None:
        raise InputError(f"--task is for texts: {source} is {NAMES[kind]}")
    if model is not None:
        return model
    if kind is None and task in (None, "translate"):
        return DEFAULT_MODEL
    return default_for(kind or task or "", source)


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.buffer.write(json.dumps(report, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        sys.stdout.flush()
    else:
        from regard.view.terminal import print_report

        print_report(report)


def _report(model: str, content: str, kind: Kind | None, settings: dict[str, Any]) -> dict[str, Any]:
    from regard.pipelines.seeing import see_media, see_text

    return see_text(model, content, **settings) if kind is None else see_media(model, content)
