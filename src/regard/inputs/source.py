"""Where an input comes from: a file or its bytes, and the one error for all that cannot be read."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

Source = str | os.PathLike[str] | bytes
"""A file, or what a file holds."""

MOST_PIXELS = 178_956_970
"""More pixels than this are refused, as a decompression bomb: half a GiB as RGB, what Pillow refuses too."""


class InputError(ValueError):
    """An input that cannot be read: one line that names the file and says what is wrong with it."""


def name_of(source: object) -> str:
    """How an error names a source: the path, or what else it is."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source) or "the file with an empty name"
    return f"the input of {len(source)} bytes" if isinstance(source, bytes) else "the input"


@contextmanager
def opened(source: Source) -> Generator[BinaryIO]:
    """A source as an open file, at its beginning.

    Raises:
        InputError: there is no such file, it is a directory or another thing that is no file, it may not be read, or
            it is empty.
    """
    name = name_of(source)
    if isinstance(source, bytes):
        file: BinaryIO = io.BytesIO(source)
        size = len(source)
    elif isinstance(source, str | os.PathLike):
        file, size = _opened(Path(source), name)
    else:
        raise TypeError(f"source is {type(source).__name__}: it must be a path or bytes")
    with file:
        if size == 0:
            raise InputError(f"{name} is empty")
        yield file


def _opened(path: Path, name: str) -> tuple[BinaryIO, int]:
    """A file and its size in bytes."""
    try:
        about = path.stat()
        # Opening a pipe would wait for whoever writes to it.
        file = path.open("rb") if stat.S_ISREG(about.st_mode) else None
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{name} cannot be opened: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte in the name, half of a surrogate pair
        raise InputError(f"{name!r} is no name of a file: {error}") from None
    if file is None:
        kind = "directory" if stat.S_ISDIR(about.st_mode) else "pipe or a device"
        raise InputError(f"{name} is a {kind}, not a file")
    return file, about.st_size


@contextmanager
def reading(source: object, what: str) -> Generator[None]:
    """Turn whatever a decoder raises into an `InputError` that says `what` did not work.

    Only the calls of the decoder belong inside: on damaged data those of Pillow and FFmpeg raise nearly every
    exception that Python has, from struct.error to ZeroDivisionError, so this is the one place that catches them all.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # What the system or FFmpeg says, without the number and the function's name around it.
        said = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise InputError(f"{name_of(source)} {what}: {said}") from error
