"""Text files → token ids on disk, which are mapped into memory and never loaded whole."""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regard.files import replacing, write_atomically
from regard.inputs.tokenizer import Tokenizer
from regard.training.errors import StorageError, TrainingError

Ids = npt.NDArray[Any]  # of two or four bytes without sign
_BLOCK = 2**20  # bytes read at a time
_MOST = 2**24  # characters encoded at a time, where a text has no line that could be cut at
_CUT = re.compile(r"(?<=\S\n)(?=\S)")  # where no tokenizer joins what is before with what is after


@dataclass(frozen=True)
class TextFile:
    """A text file that was read once: where it is, and what tells it from others."""

    path: Path
    size: int  # bytes
    digest: str  # SHA-256, hexadecimal


@dataclass(frozen=True)
class Section:
    """A part of a text file, in bytes; a character that begins in it belongs to it."""

    path: Path
    first: int
    stop: int


def survey(paths: Sequence[Path]) -> tuple[list[TextFile], dict[str, str]]:
    """Read files once: which of them are text, and why the others are not.

    Returns:
        The files in order, and the reason by the path of each that is left out.

    Raises:
        TrainingError: if none is left, or a path does not exist.
    """
    found: list[TextFile] = []
    left_out: dict[str, str] = {}
    for path in paths:
        if not path.exists():
            raise TrainingError(f"{path}: no such file")
        try:
            file, blank = _survey(path)
        except UnicodeDecodeError as error:
            left_out[str(path)] = f"not UTF-8 ({error.reason})"
            continue
        except OSError as error:
            left_out[str(path)] = "a directory" if path.is_dir() else (error.strerror or str(error)).lower()
            continue
        if blank:
            left_out[str(path)] = "empty"
            continue
        found.append(file)
    if not found:
        why = "; ".join(f"{path} is {reason}" for path, reason in left_out.items())
        raise TrainingError(f"there is no text: {why}")
    return found, left_out


def _survey(path: Path) -> tuple[TextFile, bool]:
    """A file and whether it is blank; reads it whole, a block at a time."""
    digest, decoder, blank, size = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), True, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            blank = not decoder.decode(block).strip("\ufeff \t\r\n") and blank
        decoder.decode(b"", final=True)
    return TextFile(path, size, digest.hexdigest()), blank


def split(file: TextFile, fraction: float) -> tuple[Section, Section]:
    """The beginning of a file to learn from, and so large a part at its end for validation."""
    cut = int(file.size * (1 - fraction))
    return Section(file.path, 0, cut), Section(file.path, cut, file.size)


def chunks(section: Section) -> Iterator[str]:
    """The text of a section, a part at a time, cut where a tokenizer would cut as well."""
    held = ""
    for text in _decoded(section):
        held += text
        places = [match.start() for match in _CUT.finditer(held)]
        if places or len(held) > _MOST:
            place = places[-1] if places else len(held)
            yield held[:place]
            held = held[place:]
    if held:
        yield held


def _decoded(section: Section) -> Iterator[str]:
    """Blocks of a section as text. What is left of a character that began before is not part of it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with section.path.open("rb") as file:
        file.seek(section.first)
        place, begun = section.first, False
        while place < section.stop:
            block = file.read(min(_BLOCK, section.stop - place))
            if not block:
                raise TrainingError(f"{section.path} has become shorter since it was read first")
            place += len(block)
            if not begun:
                begun = True
                rest = next((i for i, byte in enumerate(block) if byte & 0xC0 != 0x80), len(block))
                block = block[rest:]
                if section.first == 0:
                    block = block.removeprefix(codecs.BOM_UTF8)
            yield decoder.decode(block)
        while decoder.getstate()[0] and (byte := file.read(1)):  # the rest of a character that began in the section
            yield decoder.decode(byte)


def write_ids(path: Path, parts: Iterable[Sequence[int]], vocab_size: int) -> None:
    """Write ids one after another, two or four bytes each, whole or not at all.

    Args:
        path: of the file; beside it a .json is written that says what the file holds.
        parts: ids, some at a time.
        vocab_size: all ids are below.

    Raises:
        StorageError: if it cannot be written.
    """
    kind = np.uint16 if vocab_size <= 2**16 else np.uint32
    total = 0
    try:
        with replacing(path) as part, part.open("xb") as file:
            for ids in parts:
                file.write(np.asarray(ids, dtype=kind).tobytes())
                total += len(ids)
            file.flush()
        about = {"dtype": np.dtype(kind).name, "total": total}
        write_atomically(path.with_suffix(".json"), json.dumps(about).encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


def read_ids(path: Path) -> Ids:
    """The ids of a file that `write_ids` wrote, mapped into memory.

    Raises:
        TrainingError: if it is missing or damaged.
    """
    try:
        about = json.loads(path.with_suffix(".json").read_bytes())
        kind, total = {"uint16": np.uint16, "uint32": np.uint32}[about["dtype"]], about["total"]
        if path.stat().st_size != total * np.dtype(kind).itemsize:
            raise ValueError("it is of another length")
        return np.memmap(path, dtype=kind, mode="r", shape=(total,)) if total else np.empty(0, kind)
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is damaged: {error}") from error


def encoded(sections: Sequence[Section], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of sections, each ended by the tokenizer's end piece where there is one."""
    for section in sections:
        for text in chunks(section):
            yield tokenizer.encode_batch([text], specials=False)[0]
        if tokenizer.eos is not None:
            yield [tokenizer.eos]
