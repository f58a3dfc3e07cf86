"""What commands read and write: arguments, files and standard streams, progress."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.files import replacing
from regard.inputs.kind import SUFFIXES, Kind, kind_of
from regard.inputs.source import InputError as InputError

NAMES: dict[Kind, str] = {"text": "text", "image": "an image", "audio": "a sound", "video": "a video"}
"""What files of a kind are called in a sentence."""


def text_input(source: str, is_text: bool) -> tuple[str, str]:
    """A name for the output, and the text that INPUT stands for."""
    path = Path(source)
    if source == "-" and not is_text:
        name, content = "stdin", without_line_end(decode(*read("-")))
    elif not is_text and _exists(source):
        if path.is_dir():
            raise InputError(f"{path} is a directory; INPUT may be a text or a file")
        name, content = path.stem, without_line_end(decode(*read(source)))
    else:
        if not is_text and _looks_like_path(source):
            raise InputError(f"{source}: no such file (write --text if it is the text itself)")
        name, content = _slug(source), _encodable(source)
    if not content.strip():
        raise InputError(f"{'the input' if source in ('-', '') else source} is empty; there is nothing to see")
    return name, content


def media_kind(source: str, is_text: bool) -> Kind | None:
    """Whether INPUT is a file of an image, a sound or a video, by what is in it; None for texts of any kind."""
    # A pipe cannot be looked into before it is read, and is text; so is what is no file.
    if is_text or source == "-" or not _exists(source) or not Path(source).is_file() or not Path(source).stat().st_size:
        return None
    try:
        kind = kind_of(source)
    except InputError:  # neither text nor media: whoever reads it as text says what is wrong with it
        return None
    return None if kind == "text" else kind


def media_files(sources: Sequence[str], what: str) -> list[Line]:
    """Arguments that are files of images, sound or video, by their paths."""
    if not sources:
        raise InputError(f"there is no file: this model reads {what}")
    for source in sources:
        if not _exists(source):
            raise InputError(f"{source}: no such file; this model reads {what}")
    return [Line(source, source) for source in sources]


@dataclass(frozen=True)
class Line:
    """A text among several, and what messages call it."""

    name: str
    text: str


def text_lines(sources: Sequence[str], is_text: bool) -> list[Line]:
    """The texts that arguments stand for: a text each, or the lines of a text file or of standard input (-).

    Without arguments, those of standard input.
    """
    found: list[Line] = []
    for number, source in enumerate(sources or ["-"], 1):
        if is_text or (source != "-" and not _exists(source)):
            if not is_text and _looks_like_path(source):
                raise InputError(f"{source}: no such file (write --text if it is the text itself)")
            found.append(Line("the text" if len(sources) == 1 else f"text {number}", _encodable(source)))
            continue
        if source == "-" and sys.stdin is not None and sys.stdin.isatty():
            print("Reading lines from the terminal; end with Ctrl-D.", file=sys.stderr)
        if source != "-":
            _refuse_other_kinds(Path(source))
        where = "" if source == "-" else f"{source}, "
        content = lines(decode(*read(source)))
        found += [Line(f"{where}line {i}", line.removesuffix("\r")) for i, line in enumerate(content, 1)]
    if not found:
        raise InputError("the input is empty; there is nothing to read")
    return found


def _exists(source: str) -> bool:
    try:
        return source != "" and Path(source).exists()
    except (OSError, ValueError):  # longer than a name may be, or with a zero byte: a text
        return False


def _looks_like_path(source: str) -> bool:
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    suffix = re.search(r"\.\w+$", source.lower())
    return bool(suffix and suffix.group() in known) or ("/" in source and " " not in source)


def _refuse_other_kinds(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a directory; INPUT may be a text or a text file")
    if (kind := media_kind(str(path), False)) is not None:
        raise InputError(f"{path} is {NAMES[kind]}; this model reads text")


def _slug(text: str) -> str:
    """A file name of the first words of a text."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words[:4])[:48] or "text"


def read(source: str) -> tuple[str, bytes]:
    """A name for messages, and the bytes of a file or of standard input (-)."""
    if source == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed")
        return "standard input", sys.stdin.buffer.read()
    return source, Path(source).read_bytes()


def decode(name: str, data: bytes) -> str:
    """A file's bytes as text, without a mark of the byte order.

    Raises:
        InputError: if they are not UTF-8; it says where.
    """
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


def without_line_end(text: str) -> str:
    """A text without its last line end: `echo` and editors put one there that is no part of the text."""
    return text.removesuffix("\n").removesuffix("\r")


def lines(text: str) -> list[str]:
    """Lines as `wc -l` and the shell count them: ended by a line feed, the last one maybe not."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


@contextmanager
def sink(output: Path | None) -> Generator[Any]:
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


def write_now(text: str) -> None:
    """Writes to standard output at once, in UTF-8 whatever the terminal's encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def check_output(output: Path, force: bool) -> None:
    """Refuses before the work what cannot or must not be written."""
    if not output.parent.is_dir():
        raise InputError(f"{output} cannot be written: {output.parent} is no directory")
    if output.exists() and not output.is_file():
        raise InputError(f"{output} cannot be written: it is not a regular file")
    if output.exists() and not force:
        raise InputError(f"{output} exists; choose another path, or replace it with --force")


@contextmanager
def progress(total: int, doing: str = "translating", unit: str = "lines") -> Generator[Any]:
    """A function that takes the number of lines, or of another unit, done; a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: print(f"{done:,} of {total:,} {unit}", file=sys.stderr)  # pyright: ignore[reportUnknownLambdaType]
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)

        def advance(done: int) -> None:
            bar.update(task, completed=done)

        yield advance
