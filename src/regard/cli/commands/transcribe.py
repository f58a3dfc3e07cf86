"""`regard transcribe`: what is said in recordings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.cli.files import check_output, sink
from regard.cli.options import Threads, given, set_threads

if TYPE_CHECKING:
    from regard.pipelines import Segment


def transcribe(
    sources: Annotated[list[str], typer.Argument(metavar="FILE…", help="Audio or video files.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A checkpoint's directory, or a hub id.")],
    language: Annotated[
        str | None, typer.Option(help="A code such as de; what is heard at the beginning unless given.")
    ] = None,
    english: Annotated[bool, typer.Option("--english", help="Translate into English.")] = False,
    words: Annotated[bool, typer.Option("--words", help="The time of each word, too.")] = False,
    fallback: Annotated[
        bool,
        typer.Option(
            "--fallback",
            help="Write again what looks repetitive or unlikely, drawn at rising temperatures; pass over silence.",
        ),
    ] = False,
    previous_text: Annotated[
        bool, typer.Option("--previous-text", help="Let the model read what it wrote in the windows before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object a file.")] = False,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam size; the model's own unless given.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here, whole or not at all.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")] = False,
    threads: Threads = None,
) -> None:
    """Write down what is said in recordings of any length, with the time of every stretch of speech.

    Each file is named before its lines if there are several; what is drawn is the same every time. Progress goes to
    stderr.

    Examples:

    - `regard transcribe -m whisper-tiny/ speech.wav`
    - `regard transcribe -m whisper-tiny/ --language de --words interview.mp3`
    - `regard transcribe -m whisper-tiny/ --fallback lecture.mp4`
    - `regard transcribe -m whisper-tiny/ --json *.flac -o speech.jsonl`
    """
    from regard.pipelines import pipeline

    if output is not None:
        check_output(output, force)
    set_threads(threads)
    how: dict[str, Any] = {"english": english, "words": words, "fallback": fallback, "previous_text": previous_text}
    hear = pipeline(model, "transcribe", language=language, **how, seed=0, **given(beams=beams))
    with sink(output) as write:
        for source in sources:
            transcript = hear(source, progress=lambda seconds, name=source: _tell(name, seconds))
            if as_json:
                write(json.dumps(transcript.to_dict(), ensure_ascii=False) + "\n")
                continue
            if len(sources) > 1:
                write(f"{source}\n")
            for segment in transcript.segments:
                write("".join(_lines(segment)))


def _lines(segment: Segment) -> list[str]:
    lines = [f"[{_clock(segment.start)} – {_clock(segment.stop)}]  {segment.text}\n"]
    return lines + [f"    {_clock(word.start)} – {_clock(word.stop)}  {word.text}\n" for word in segment.words or ()]


def _clock(seconds: float) -> str:
    """Hours where there are any, minutes and seconds."""
    minutes, rest = divmod(round(seconds * 100), 6000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:" if hours else "") + f"{minutes:02}:{rest / 100:05.2f}"


def _tell(name: str, seconds: float) -> None:
    print(f"{name}: {_clock(seconds)} done", file=sys.stderr)
