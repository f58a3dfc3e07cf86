"""The command line: `regard see`, `regard translate`, `regard models`, `regard doctor`.

What is wrong with an input, a model or an output path is one line on stderr and exit code 2. Answers go to stdout,
everything else to stderr.
"""

from __future__ import annotations

import sys

try:  # imports take a moment, and main() is not there yet to say that it was stopped
    import json
    import os
    import re
    from collections.abc import Generator
    from contextlib import contextmanager
    from pathlib import Path
    from typing import TYPE_CHECKING, Annotated, Any, NoReturn

    import typer

    from regard import __version__
    from regard.files import replacing
except KeyboardInterrupt:
    print("regard: stopped", file=sys.stderr)
    raise SystemExit(130) from None

if TYPE_CHECKING:
    from regard.pipelines import TranslationPipeline

DEFAULT_MODEL = "translate-en-de"
TEXT_SUFFIXES = {".txt", ".md", ".text"}
OTHER_SUFFIXES = {
    "image": {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"},
    "audio": {".wav", ".mp3", ".flac", ".ogg", ".m4a", ".opus"},
    "video": {".mp4", ".mkv", ".webm", ".avi", ".mov"},
}

app = typer.Typer(
    help="Self-attention for text, images, audio and video: run it, and see what attends to what.",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)

_UsageError: Any = typer.BadParameter.__mro__[1]  # all that may be wrong with arguments; Typer exports only a part
_STOPPED = 130  # the exit code for Ctrl-C: 128 + SIGINT

Model = Annotated[str, typer.Option("--model", "-m", help="An embedded model (see `regard models`) or a directory.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores unless given.")]


class InputError(ValueError):
    """An input that cannot be used, with the reason in one line."""


def main() -> None:
    """The `regard` command."""
    try:
        _fill_closed_streams()
        code = app(sys.argv[1:] or ["--help"], prog_name="regard", standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk can still be told
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "regard"
        _fail(f"{error.format_message().rstrip('.')}; see {command} --help")
    except BrokenPipeError:  # the reader of our output has gone, as in `regard translate … | head`
        _abandon_output()
        raise SystemExit(1) from None
    except OSError as error:
        _abandon_output()
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except InputError as error:
        _fail(str(error))
    except ValueError as error:
        from regard.attention.native.library import SettingError
        from regard.models import ModelError
        from regard.pipelines import TextTooLong

        if not isinstance(error, ModelError | SettingError | TextTooLong):
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        code = _STOPPED
    if code == _STOPPED:  # Typer returns it for Ctrl-C
        print("regard: stopped", file=sys.stderr)
        raise SystemExit(_STOPPED)


def _fail(message: str) -> NoReturn:
    print(f"regard: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _fill_closed_streams() -> None:
    """Put the null device where a standard stream is closed: the next file to be opened would be taken for it.

    Raises:
        InputError: if that is standard output; every command writes to it.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        number = ("stdin", "stdout", "stderr").index(name)
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        if name != "stdin":  # which stays None, for those who would read from it
            setattr(sys, name, open(number, "w", errors="replace", closefd=False))  # noqa: SIM115
    if "stdout" in closed:
        raise InputError("standard output is closed")


def _abandon_output() -> None:
    """Lose what cannot be written: Python would try once more as it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(wanted: bool) -> None:
    if wanted:
        print(f"regard {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def see(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A text, a text file, or - for standard input.")],
    model: Model = DEFAULT_MODEL,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The HTML file to write.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the data instead, and write HTML only where -o says.")
    ] = False,
    text: Annotated[
        bool, typer.Option("--text", help="INPUT is the text itself, even if a file is called so.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that regard did not write.")] = False,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam size; the model's own unless given.")] = None,
    threads: Threads = None,
) -> None:
    """Answer an input, and show what each part of the model attended to.

    Prints the answer, which word was read from which, and what every head does; and writes one HTML file that opens
    offline, by default regard-NAME.html in this directory.

    Examples:

    - `regard see "A man in a blue shirt is standing on a ladder cleaning a window."`
    - `regard see caption.txt -o caption.html`
    - `echo "Two dogs play in the snow." | regard see - --json > seen.json`
    """
    from regard.view.html import check_path, write

    name, content = _input(source, text)
    page = output if output is not None else None if as_json else Path(f"regard-{name}.html")
    if page is not None:
        check_path(page, force=force)  # before the work
    translation = _pipeline(model, threads, beams)(content)
    report = translation.report()
    if page is not None:
        page = write(report, page, force=force)
    if as_json:
        sys.stdout.buffer.write(json.dumps(report, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        sys.stdout.flush()
    else:
        from regard.view.terminal import print_report

        print_report(report)
    if page is not None:
        print(f"\nSee it: {page.resolve()}", file=sys.stderr if as_json else sys.stdout)


@app.command()
def translate(
    source: Annotated[str, typer.Argument(metavar="[FILE]", help="A text file; - is standard input.")] = "-",
    model: Model = DEFAULT_MODEL,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here, whole or not at all.")] = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam size; the model's own unless given.")] = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")] = False,
) -> None:
    """Translate line by line, in batches: one output line for each input line, in order.

    Every line should be one sentence. Empty lines stay empty. Progress goes to stderr.

    Examples:

    - `regard translate < captions.en > captions.de`
    - `regard translate captions.en -o captions.de`
    - `regard translate --beams 1 < captions.en`
    """
    if output is not None:
        _check_output(output, force)
    if source == "-" and sys.stdin is not None and sys.stdin.isatty():
        print("Reading lines from the terminal; end with Ctrl-D.", file=sys.stderr)
    lines = _lines(_decode(*_read(source)))
    pipeline = _pipeline(model, threads, beams)
    pipeline.check_lines(lines)  # a line that is too long is found before anything is written
    with _sink(output) as write, _progress(len(lines)) as advance:
        for translation in pipeline.translate_lines(lines, progress=advance):
            write((translation.text if translation is not None else "") + "\n")


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List the models that come with the package: what they do, their scores, and their licence."""
    from regard.models.registry import embedded_models

    found: dict[str, dict[str, Any]] = {}
    for name, directory in embedded_models().items():
        about = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        found[name] = {key: about.get(key) for key in ("task", "description", "scores", "licence")}
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for name, about in found.items():
        print(f"{name}  ({about['task']})")
        if about["description"]:
            print(f"  {about['description']}")
        for score, value in (about["scores"] or {}).items():
            print(f"  {score}: {value}")
        if about["licence"]:
            print(f"  Licence of the weights: {about['licence']}")


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Say what is installed and which attention kernels there are, and check in about two seconds that they are right.

    The exit code is 1 where something is wrong. A native kernel that was not built is not: regard works without it.
    """
    from regard.doctor import examine, lines

    def tell(part: str, value: Any) -> None:
        for line in lines(part, value):
            print(line, flush=True)

    examination = examine() if as_json else examine(tell)
    if as_json:
        print(json.dumps(examination, ensure_ascii=False, indent=2, allow_nan=False))
    if not examination["healthy"]:
        raise SystemExit(1)


def _pipeline(model: str, threads: int | None, beams: int | None) -> TranslationPipeline:
    import torch

    from regard.pipelines import pipeline

    if threads is not None:
        torch.set_num_threads(threads)
    settings: dict[str, Any] = {} if beams is None else {"beams": beams}
    return pipeline(model, **settings)


def _input(source: str, is_text: bool) -> tuple[str, str]:
    """A name for the output, and the text that INPUT stands for."""
    path = Path(source)
    if source == "-" and not is_text:
        name, content = "stdin", _decode(*_read("-"))
    elif not is_text and _exists(source):
        _refuse_other_kinds(path)
        name, content = path.stem, _decode(*_read(source))
    else:
        if not is_text and _looks_like_path(source):
            raise InputError(f"{source}: no such file (write --text if it is the text itself)")
        name, content = _slug(source), _encodable(source)
    if not content.strip():
        raise InputError(f"{'the input' if source in ('-', '') else source} is empty; there is nothing to see")
    return name, content


def _exists(source: str) -> bool:
    try:
        return source != "" and Path(source).exists()
    except (OSError, ValueError):  # longer than a name may be, or with a zero byte: a text
        return False


def _looks_like_path(source: str) -> bool:
    known = TEXT_SUFFIXES.union(*OTHER_SUFFIXES.values())
    suffix = re.search(r"\.\w+$", source.lower())
    return bool(suffix and suffix.group() in known) or ("/" in source and " " not in source)


def _refuse_other_kinds(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a directory; INPUT may be a text or a text file")
    for kind, suffixes in OTHER_SUFFIXES.items():
        if path.suffix.lower() in suffixes:
            raise InputError(f"{path} looks like {kind}; the embedded model reads text")


def _slug(text: str) -> str:
    """A file name of the first words of a text."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words[:4])[:48] or "text"


def _read(source: str) -> tuple[str, bytes]:
    """A name for messages, and the bytes of a file or of standard input (-)."""
    if source == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed")
        return "standard input", sys.stdin.buffer.read()
    return source, Path(source).read_bytes()


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} (line {line})"
        ) from None


def _encodable(text: str) -> str:
    """An argument as text; bytes of it that were no UTF-8 have become lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("INPUT is not UTF-8") from None
    return text


def _lines(text: str) -> list[str]:
    """Lines as `wc -l` and the shell count them: ended by a line feed, the last one maybe not."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


@contextmanager
def _sink(output: Path | None) -> Generator[Any]:
    """A function that writes text to standard output, or to a file that appears whole or not at all."""
    if output is None:
        stream = open(sys.stdout.fileno(), "w", encoding="utf-8", newline="", closefd=False)  # noqa: SIM115
        try:
            yield stream.write
        finally:
            stream.flush()
        return
    try:
        with replacing(output) as part, part.open("x", encoding="utf-8", newline="") as stream:
            yield stream.write
    except OSError as error:
        raise InputError(f"{output} cannot be written: {(error.strerror or str(error)).lower()}") from None


def _check_output(output: Path, force: bool) -> None:
    """Refuses before the work what cannot or must not be written."""
    if not output.parent.is_dir():
        raise InputError(f"{output} cannot be written: {output.parent} is no directory")
    if output.exists() and not output.is_file():
        raise InputError(f"{output} cannot be written: it is not a regular file")
    if output.exists() and not force:
        raise InputError(f"{output} exists; choose another path, or replace it with --force")


@contextmanager
def _progress(total: int) -> Generator[Any]:
    """A function that takes the number of lines done; a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: print(f"{done:,} of {total:,} lines", file=sys.stderr)  # pyright: ignore[reportUnknownLambdaType]
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("translating"), BarColumn(), MofNCompleteColumn(), TextColumn("lines"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("translate", total=total)

        def advance(done: int) -> None:
            bar.update(task, completed=done)

        yield advance


if __name__ == "__main__":
    main()
