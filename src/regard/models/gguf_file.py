"""GGUF files, the form of llama.cpp, read without trusting one: the metadata, and where each tensor lies.

The header is read here, and not by the package `gguf`, because every length in it is checked against the file before
anything of that length is looped over or allocated.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.models.family import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class Stored:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]  # outermost first, as PyTorch has it; the file has it the other way round
    kind: int  # the number of its quantisation
    offset: int  # of its first byte in the file


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file, and its bytes."""

    path: Path
    fields: dict[str, Any]  # numbers, texts, and lists of them
    tensors: dict[str, Stored]
    data: NDArray[np.uint8]  # the whole file, mapped into memory


def open_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF file.

    Raises:
        ModelError: it is none, is cut off or damaged, of another version or of the other byte order.
    """
    import numpy as np

    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    reader = _Reader(path, data.data)
    if reader.bytes(4) != b"GGUF":
        raise ModelError(f"{path} is no GGUF file: it does not begin with GGUF")
    version = reader.number("I")
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        why = ", of the other byte order" if swapped else ""
        raise ModelError(f"{path} is GGUF version {version}{why}: known are {known}, little-endian")
    tensor_count, field_count = reader.number("Q"), reader.number("Q")
    reader.check_count(tensor_count, 24, "tensors")
    reader.check_count(field_count, 13, "fields")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        name = reader.string("the name of a field")
        if name in fields:
            raise ModelError(f"{path} has the field {name!r} twice")
        fields[name] = reader.value(reader.number("I"), name)
    infos = [reader.tensor() for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ModelError(f"{path}: general.alignment is {alignment!r}: it must be a power of two")
    begin = reader.place + -reader.place % alignment
    tensors: dict[str, Stored] = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise ModelError(f"{path} has the tensor {name!r} twice")
        if offset % alignment:
            raise ModelError(f"{path}: {name} begins at {offset}: it must be a multiple of {alignment}")
        tensors[name] = Stored(name, shape, kind, begin + offset)
    return GGUFFile(path, fields, tensors, data)


class _Reader:
    """Takes numbers and texts from the bytes of a file, one after another."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.place = 0
        self._data = data

    def bytes(self, count: int) -> bytes:
        if count > len(self._data) - self.place:
            raise ModelError(
                f"{self.path} is cut off or damaged: {count} bytes are to follow byte {self.place} of {len(self._data)}"
            )
        self.place += count
        return self._data[self.place - count : self.place].tobytes()

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)))[0]

    def string(self, what: str) -> str:
        data = self.bytes(self.number("Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{self.path}: {what} is not UTF-8: {error.reason}") from None

    def check_count(self, count: int, least: int, what: str) -> None:
        """So many items of at least so many bytes must fit into the rest of the file."""
        if count * least > len(self._data) - self.place:
            raise ModelError(
                f"{self.path} is cut off or damaged: {count} {what} do not fit into {len(self._data)} bytes"
            )

    def value(self, kind: int, name: str) -> Any:
        if kind == _STRING:
            return self.string(name)
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ModelError(f"{self.path}: {name} is of the unknown kind {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner == _STRING:
            self.check_count(count, 8, f"texts in {name}")
            return [self.string(name) for _ in range(count)]
        if inner not in _SCALARS:
            raise ModelError(f"{self.path}: {name} is a list of the unknown kind {inner}")
        form = _SCALARS[inner]
        self.check_count(count, struct.calcsize("<" + form), f"numbers in {name}")
        return list(struct.unpack(f"<{count}{form}", self.bytes(count * struct.calcsize("<" + form))))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string("the name of a tensor")
        dimensions = self.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ModelError(f"{self.path}: {name} has {dimensions} dimensions: it must have 1 to {_MOST_DIMENSIONS}")
        sizes = [self.number("Q") for _ in range(dimensions)]
        if 0 in sizes or math.prod(sizes) >= 2**48:
            raise ModelError(f"{self.path}: {name} has the shape {tuple(reversed(sizes))}, which cannot be")
        return name, tuple(reversed(sizes)), self.number("I"), self.number("Q")
