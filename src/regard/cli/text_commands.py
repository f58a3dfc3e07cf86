"""What `regard embed`, `fill` and `classify` share: their arguments, and running a pipeline over many lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from regard.cli.files import Line, check_output, progress
from regard.cli.options import set_threads

CHUNK = 4096  # lines whose answers are held at a time
_OFTEN = 0.5  # seconds between two reports of progress

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TEXT|FILE]...", help="Texts, or text files with one a line; - is standard input."),
]
Encoder = Annotated[str, typer.Option("--model", "-m", help="A checkpoint's directory, or a hub id.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write here, whole or not at all.")]
AsText = Annotated[bool, typer.Option("--text", help="The arguments are texts, even if a file is called so.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")]
T = TypeVar("T")


def prepare(output: Path | None, force: bool, threads: int | None) -> None:
    """Refuse an output that cannot be written before the work, which is then done on so many threads."""
    if output is not None:
        check_output(output, force)
    set_threads(threads)


def answers(
    lines: Sequence[Line],
    run: Callable[[list[Line], Callable[[int], object]], Sequence[T]],
    doing: str,
    unit: str = "lines",
) -> Iterator[T]:
    """The answer to every line, in order, with progress on stderr where there are several.

    Args:
        lines: the texts.
        run: answers some of them together, and tells how many are done.
        doing: what is being done, for a person.
        unit: what the inputs are.
    """
    shown = progress(len(lines), doing, unit) if len(lines) > 1 else nullcontext(lambda done: None)
    last = time.monotonic()
    with shown as advance:
        for first in range(0, len(lines), CHUNK):

            def tell(done: int, first: int = first) -> None:
                nonlocal last
                if first + done == len(lines) or time.monotonic() - last >= _OFTEN:
                    last = time.monotonic()
                    advance(first + done)

            yield from run([*lines[first : first + CHUNK]], tell)
