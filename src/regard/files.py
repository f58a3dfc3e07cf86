"""Files and directories that appear whole or not at all: written beside their place, and then moved there."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""How the name of a file ends that is still being written; it begins with a dot."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[Path]:
    """A path to write a file to, that takes the place of `path` in one step, on disk, when the context ends.

    After an exception it is removed instead, and `path` stays what it was. A link is followed and stays a link; a
    file that is replaced hands on its permissions.

    Raises:
        OSError: if it cannot be written or moved.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:32]}.{secrets.token_hex(4)}{PART}")
    try:
        yield part
        if target.exists():
            shutil.copymode(target, part)
        _sync(part)
        os.replace(part, target)
        _sync_directory(target.parent)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that, whatever happens, `path` holds either the old content or the new, whole."""
    with replacing(path) as part:
        part.write_bytes(content)


def replace_directory(path: str | os.PathLike[str], files: Mapping[str, bytes], *, owned: Collection[str]) -> None:
    """Make a directory of these files, or put one in the place of one that is there.

    What the old directory holds under other names than `owned` is kept. Two moves put the new one in place; an
    exception between them, Ctrl-C for example, puts the old one back. A process that is killed just there leaves
    both, whole, in a hidden directory beside.

    Args:
        path: where to; its parents are made. A link is followed, and stays a link.
        files: content by name, or by the path of a file in a folder of it.
        owned: names, or such paths, that belong to what is replaced.

    Raises:
        OSError: if it cannot be written or moved; what was there before stays.
    """
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{place.name[:32]}-", dir=place.parent))
    new, old = scratch / "new", scratch / "old"

    def ours(folder: str, names: list[str]) -> set[str]:
        within = Path(folder).relative_to(place)
        return {name for name in names if (within / name).as_posix() in owned}

    try:
        if place.exists():
            shutil.copytree(place, new, symlinks=True, ignore=ours, copy_function=_link_or_copy)
        new.mkdir(exist_ok=True)
        for name, content in files.items():
            (new / name).parent.mkdir(exist_ok=True)
            write_atomically(new / name, content)
        if place.exists():
            place.rename(old)
        new.rename(place)
        _sync_directory(place.parent)
    finally:
        if old.exists() and not place.exists():
            old.rename(place)
        shutil.rmtree(scratch, ignore_errors=True)


def remove_left_overs(directory: Path, names: Collection[str]) -> None:
    """Takes away what a process that was killed left half written; nobody else may be writing there.

    A directory that was being replaced, and is in its place no more, is left where it is: beside, in a hidden one.

    Args:
        directory: in which it wrote.
        names: of the files and directories that it wrote.
    """
    for name in names:
        start = f".{name[:32]}"
        for path in directory.glob(f"{glob.escape(start)}.????????{PART}"):
            path.unlink(missing_ok=True)
        for path in directory.glob(f"{glob.escape(start)}-????????"):
            if path.is_dir() and ((directory / name).exists() or not (path / "old").exists()):
                shutil.rmtree(path, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    """Have the system write a file to the disk before it is moved: a power cut could leave an empty one there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """The same for a directory's list of names, where the system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
