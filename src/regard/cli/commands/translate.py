"""`regard translate`: line by line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from regard.cli.files import check_output, decode, lines, progress, read, sink
from regard.cli.options import DEFAULT_MODEL, Job, Model, Prefix, Threads, translation_pipeline


def translate(
    source: Annotated[str, typer.Argument(metavar="[FILE]", help="A text file; - is standard input.")] = "-",
    model: Model = DEFAULT_MODEL,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here, whole or not at all.")] = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam size; the model's own unless given.")] = None,
    job: Job = None,
    prefix: Prefix = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")] = False,
) -> None:
    """Translate line by line, in batches: one output line for each input line, in order.

    Every line should be one sentence. Empty lines stay empty. Progress goes to stderr.

    Examples:

    - `regard translate < captions.en > captions.de`
    - `regard translate captions.en -o captions.de`
    - `regard translate --beams 1 < captions.en`
    - `regard translate -m opus-mt-en-de/ < letter.en`
    - `regard translate -m t5-small/ --job translation_en_to_de < letter.en`
    - `regard translate -m flan-t5-small/ --prefix "Summarise: " < letters.txt`
    """
    if output is not None:
        check_output(output, force)
    if source == "-" and sys.stdin is not None and sys.stdin.isatty():
        print("Reading lines from the terminal; end with Ctrl-D.", file=sys.stderr)
    texts = lines(decode(*read(source)))
    pipeline = translation_pipeline(model, threads, beams=beams, job=job, prefix=prefix)
    pipeline.check_lines(texts)  # a line that is too long is found before anything is written
    with sink(output) as write, progress(len(texts)) as advance:
        for translation in pipeline.translate_lines(texts, progress=advance):
            write((translation.text if translation is not None else "") + "\n")
