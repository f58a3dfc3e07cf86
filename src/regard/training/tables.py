"""Tables of examples, read a row at a time: CSV, TSV, JSON lines and Parquet."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regard.training.errors import TrainingError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_BLOCK = 2**20
_NAMED = 3  # places a reason that are named
csv.field_size_limit(2**27)  # characters in a field; the library's 128 Ki is less than a long document


@dataclass
class Skipped:
    """What was left out: how many for each reason, and where the first of them are."""

    noun: str = "row"
    counts: dict[str, int] = field(default_factory=dict[str, int])
    places: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def add(self, reason: str, place: str) -> None:
        """Count one more."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        named = self.places.setdefault(reason, [])
        if len(named) < _NAMED:
            named.append(place)

    def sentences(self) -> list[str]:
        """What was left out and why, for a person."""
        return [self._sentence(reason, count) for reason, count in self.counts.items()]

    def _sentence(self, reason: str, count: int) -> str:
        what = f"1 {self.noun} is" if count == 1 else f"{count:,} {self.noun}s are"
        named = self.places[reason]
        more = f"; and {count - len(named):,} more" if count > len(named) else ""
        return f"{what} left out: {reason} ({'; '.join(named)}{more})"


@dataclass(frozen=True)
class Row:
    """The chosen columns of one row, and what messages call it."""

    place: str
    values: tuple[Any, ...]


def fingerprint(path: Path) -> str:
    """What tells a file from others: its size and a hash of its content.

    Raises:
        TrainingError: if it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    return f"{size:,} bytes SHA-256 {digest.hexdigest()[:16]}"


def read_rows(
    path: Path, columns: Sequence[str], skipped: Skipped, names: Sequence[str] | None = None
) -> Iterator[Row]:
    """The rows of a table, one at a time, however large it is.

    CSV is as spreadsheets write it, with quotes and a line of names. TSV has a line of names, a tab between fields and
    no quotes. JSON lines have an object a line. Parquet needs pyarrow.

    Args:
        path: its suffix says what it is.
        columns: names of the columns that are wanted.
        skipped: counts rows that are damaged.
        names: of all columns, of a .csv or .tsv file that has no line of names.

    Raises:
        TrainingError: if the file is missing, of another kind, not UTF-8 or damaged, or has no such column; or there
            are names for a file of a kind that has its own.
    """
    kinds = {".jsonl": _json_lines, ".parquet": _parquet}
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise TrainingError(f"{path} is no table; it may be {', '.join(SUFFIXES)}")
    if names is not None and suffix in kinds:
        raise TrainingError(f"{path} names its columns; those of a .csv or .tsv file may be given")
    try:
        if suffix in kinds:
            yield from kinds[suffix](path, columns, skipped)
        else:
            yield from _csv(path, columns, skipped, names)
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error


def names_of(columns: str | None) -> tuple[str, ...] | None:
    """The names in a list of columns with commas between; None where there is none.

    Raises:
        TrainingError: one is empty, or there twice.

    >>> names_of("sentence, label")
    ('sentence', 'label')
    """
    if columns is None:
        return None
    names = tuple(name.strip() for name in columns.split(","))
    if not all(names) or len({*names}) < len(names):
        raise TrainingError(f"columns is {columns!r}; it may be different names with commas between")
    return names


def _csv(path: Path, columns: Sequence[str], skipped: Skipped, given: Sequence[str] | None) -> Iterator[Row]:
    tabs = path.suffix.lower() == ".tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = _Lines(file)
        rows = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
        try:
            names = next(rows, []) if given is None else given
            places = _places(path, names, columns)
            lines.row.clear()
            for row in rows:
                place = f"{path}, line {rows.line_num}"
                if not tabs and lines.ended and len(lines.row) > 1 and "".join(lines.row).count('"') % 2:
                    first = rows.line_num - len(lines.row) + 1
                    raise TrainingError(f"{path}, line {first}: a quotation mark opens a field that never ends")
                lines.row.clear()
                if not row:
                    continue
                if len(row) != len(names):
                    source = "the first line" if given is None else ", ".join(names)
                    skipped.add(f"it does not have the {len(names)} fields of {source}", place)
                    continue
                yield Row(place, tuple(row[i] for i in places))
        except csv.Error as error:
            raise TrainingError(f"{path}, line {rows.line_num}: {error}") from error


class _Lines:
    """The lines of a file, and those of the row that is being read."""

    def __init__(self, file: Iterable[str]) -> None:
        self._file = iter(file)
        self.row: list[str] = []
        self.ended = False  # the file has no more lines

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            self.row.append(next(self._file))
        except StopIteration:
            self.ended = True
            raise
        return self.row[-1]


def _json_lines(path: Path, columns: Sequence[str], skipped: Skipped) -> Iterator[Row]:
    known: dict[str, None] = {}
    found = False
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                skipped.add("it is no JSON object", place)
                continue
            if not found:
                known |= dict.fromkeys(str(name) for name in row)
                found = all(name in row for name in columns)
            yield Row(place, tuple(row.get(name) for name in columns))
    if not found:
        if not known and skipped.counts:
            raise TrainingError(f"{path} has no line with a JSON object; it may have one a line")
        _places(path, [*known], columns)


def _parquet(path: Path, columns: Sequence[str], skipped: Skipped) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise TrainingError(f"{path}: Parquet needs pyarrow; install it, or give {', '.join(SUFFIXES[:3])}") from error
    try:
        with parquet.ParquetFile(path) as file:
            _places(path, file.schema_arrow.names, columns)
            number = 0
            for batch in file.iter_batches(1024, columns=[*columns]):
                for values in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                    number += 1
                    yield Row(f"{path}, row {number}", values)
    except pyarrow.ArrowException as error:
        raise TrainingError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def flaw(value: Any, *, number: bool = True) -> str | None:
    """Why a field holds no text, such as the name of a class; None where it does.

    Args:
        value: of the field.
        number: whether a number, a date, or true and false may be a name.
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return "missing"
    if isinstance(value, list | dict | bytes) or not (number or isinstance(value, str)):
        return "no text"
    try:
        str(value).encode()
    except UnicodeEncodeError:  # JSON can write halves of characters
        return "no text: it has half a character"
    return None


def _places(path: Path, names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Where the wanted columns are among all."""
    for column in columns:
        if names.count(column) != 1:
            number = "no column" if column not in names else f"{names.count(column)} columns"
            raise TrainingError(f"{path} has {number} {column!r}; it has {', '.join(map(repr, names)) or 'none'}")
    return [names.index(column) for column in columns]
