"""Files and their classes, as people have them: a folder a class, or a table of paths and labels.

They are decoded once, by some threads, into one file of the run, from which batches are then read: data that are larger
than memory are never in it, and a run that is resumed reads none of them again.

n | files that can be read
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regard.files import replacing, write_atomically
from regard.inputs.source import InputError
from regard.training.data import Ints
from regard.training.display import counted
from regard.training.errors import StorageError, TrainingError
from regard.training.stored import Values
from regard.training.tables import SUFFIXES, Skipped, flaw, read_rows

Note = tuple[Any, ...]
"""What is remarkable about a file: a picture's mode and size, for example."""
Decode = Callable[[Path], tuple[Values, Note]]
_WHOLE = re.compile(r"-?\d+")
_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 8 * _THREADS  # files that are decoded at a time


@dataclass(frozen=True)
class LabelledFile:
    """A file and its class."""

    path: Path
    label: str
    name: str  # within the data, with / between folders


def list_files(data: Path, columns: tuple[str, str], skipped: Skipped) -> list[LabelledFile]:
    """The files of a data set.

    Args:
        data: a directory with a folder for each class, whose files, at any depth, are examples; or a table with a path
            a row, relative to its own directory if it is not absolute, and a label. Names that begin with a dot are
            passed over.
        columns: of a table: the paths', and the labels'.
        skipped: counts what is left out.

    Raises:
        TrainingError: if data is neither, or a table has no such column.
    """
    if data.is_dir():
        return [*_folders(data, skipped)]
    if data.suffix.lower() in SUFFIXES:
        return [*_rows(data, columns, skipped)]
    folders, tables = "a directory with a folder a class", f"a table ({', '.join(SUFFIXES)})"
    if data.exists():
        raise TrainingError(f"{data} is neither {folders} nor {tables}")
    raise TrainingError(f"{data} does not exist; it may be {folders} or {tables}")


def _folders(data: Path, skipped: Skipped) -> Iterator[LabelledFile]:
    for entry in sorted(data.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            skipped.add("it is in no class's folder", str(entry))
            continue
        if wrong := flaw(entry.name):
            skipped.add(f"the name of the class is {wrong}", str(entry))
            continue
        been: set[str] = set()  # folders, which links may lead to again

        def closed(error: OSError) -> None:
            skipped.add("its folder cannot be read", str(error.filename))

        for folder, folders, names in os.walk(entry, followlinks=True, onerror=closed):
            if os.path.realpath(folder) in been:
                folders.clear()
                continue
            been.add(os.path.realpath(folder))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                path = Path(folder) / name
                yield LabelledFile(path, entry.name, path.relative_to(data).as_posix())


def _rows(table: Path, columns: tuple[str, str], skipped: Skipped) -> Iterator[LabelledFile]:
    for row in read_rows(table, columns, skipped):
        path, label = row.values
        if wrong := flaw(path, number=False):
            skipped.add(f"the path is {wrong}", row.place)
        elif wrong := flaw(label):
            skipped.add(f"the label is {wrong}", row.place)
        else:
            yield LabelledFile(table.parent / path.strip(), str(label).strip(), path.strip())


def fingerprint(files: Sequence[LabelledFile]) -> str:
    """What tells these files from others: their number and a hash of their names, classes and sizes."""
    digest, total = hashlib.sha256(), 0
    for file in files:
        size = _size(file.path)
        total += max(size, 0)
        digest.update(f"{file.name}\0{file.label}\0{size}\n".encode(errors="surrogateescape"))
    return f"{len(files):,} files, {total:,} bytes, SHA-256 of names, classes and sizes {digest.hexdigest()[:16]}"


def _size(path: Path) -> int:
    """Bytes of a file; -1 for what is none, or has a name that no file can have."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


def class_names(labels: Iterable[str], where: object, what: str = "example with a class") -> tuple[str, ...]:
    """The classes in order; numbers in the order of numbers.

    Raises:
        TrainingError: if there is none, or only one.
    """
    found = {*labels}
    if len(found) < 2:
        only = f"only the class {next(iter(found))!r}" if found else f"no {what}"
        raise TrainingError(f"{where} has {only}; there must be two classes or more")
    numbers = all(_WHOLE.fullmatch(label) for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if numbers else 0, label)))


@dataclass(frozen=True)
class Decoded:
    """Files that were decoded: their values lie one after another in a file."""

    path: Path
    labels: list[str]  # n
    lengths: Ints  # (n,), values of each
    notes: Counter[Note]
    skipped: Skipped


def decode_files(
    files: Sequence[LabelledFile],
    path: Path,
    decode: Decode,
    skipped: Skipped,
    *,
    shown: bool = True,
) -> Decoded:
    """Decode files into one, or read what an earlier call made of them.

    Args:
        files: to be decoded.
        path: of the file of their values; beside it a .json is written that says what it holds.
        decode: a file → its values (any shape, the same dtype for all), and what is remarkable about it; an
            `InputError` leaves it out.
        skipped: what was left out before; what cannot be read is added.
        shown: whether a bar shows how far it is.

    Raises:
        StorageError: if the file cannot be written.
        TrainingError: if what an earlier call wrote is damaged.
    """
    if not path.with_suffix(".json").is_file():
        _write(files, path, decode, skipped, shown)
    try:
        found: dict[str, Any] = json.loads(path.with_suffix(".json").read_bytes())
        notes = Counter({tuple(note): count for note, count in found["notes"]})
        left_out = Skipped(skipped.noun, found["counts"], found["places"])
        return Decoded(path, found["labels"], np.array(found["lengths"], dtype=np.int64), notes, left_out)
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise TrainingError(f"{path.with_suffix('.json')} is damaged: {error}") from error


def _write(files: Sequence[LabelledFile], path: Path, decode: Decode, skipped: Skipped, shown: bool) -> None:
    labels: list[str] = []
    lengths: list[int] = []
    notes: Counter[Note] = Counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("xb") as target:
            for file, found in counted(_decoded(files, decode), len(files), "reading", shown=shown):
                if isinstance(found, InputError):
                    skipped.add("it cannot be read", str(found))
                    continue
                values, note = found
                target.write(values.tobytes())
                labels.append(file.label)
                lengths.append(values.size)
                notes[note] += 1
            target.flush()
        about = {"labels": labels, "lengths": lengths, "notes": [*notes.items()]}
        about |= {"counts": skipped.counts, "places": skipped.places}
        write_atomically(path.with_suffix(".json"), json.dumps(about).encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


def _decoded(
    files: Sequence[LabelledFile], decode: Decode
) -> Iterator[tuple[LabelledFile, tuple[Values, Note] | InputError]]:
    """All files in order, decoded by threads, some at a time so that no more of them are in memory."""

    def result(file: LabelledFile) -> tuple[Values, Note] | InputError:
        try:
            return decode(file.path)
        except InputError as error:
            return error

    # A forked process makes torch's own pool anew where it is first used; two threads at once would find it half made.
    torch.set_num_threads(torch.get_num_threads())
    rest = iter(files)
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := [*islice(rest, _CHUNK)]:
            yield from zip(chunk, pool.map(result, chunk), strict=True)
