"""Inputs that lie one after another, in memory or in a file of which no more than a batch is ever in memory.

n | inputs    N | samples of one recording
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regard.training.data import Ints, offsets_of
from regard.training.errors import TrainingError

Values = npt.NDArray[Any]
Load = Callable[[], Values]
"""Gives the array: one in memory as it is, one on disk mapped for as long as it is used."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Inputs of one shape.

    Args:
        load: gives an array (n, …).
        count: n.
    """

    load: Load
    count: int

    @classmethod
    def read(cls, path: Path, count: int, shape: Sequence[int], kind: type[np.generic]) -> Stack:
        """Those of a file that holds so many of this shape.

        Raises:
            TrainingError: if the file is missing or of another length.
        """
        return cls(mapped(path, (count, *shape), kind), count)

    def __getitem__(self, chosen: Ints) -> Values:
        return self.load()[chosen]  # a copy: nothing of the map stays

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True, eq=False)
class Clips:
    """Recordings of any lengths.

    Args:
        load: gives the samples of all (total,).
        offsets: (n + 1,): recording i is samples offsets[i] to offsets[i + 1].
    """

    load: Load
    offsets: Ints

    @classmethod
    def of(cls, recordings: Sequence[Values]) -> Clips:
        """Those in memory, (N,) float32 each."""
        samples = np.concatenate([np.zeros(0, np.float32), *recordings]).astype(np.float32)
        return cls(lambda: samples, offsets_of(np.array([len(r) for r in recordings], dtype=np.int64)))

    @classmethod
    def read(cls, path: Path, lengths: Ints) -> Clips:
        """Those of a file of float32, of these lengths (n,).

        Raises:
            TrainingError: if the file is missing or of another length.
        """
        return cls(mapped(path, (int(lengths.sum()),), np.float32), offsets_of(lengths))

    def __getitem__(self, chosen: Ints) -> list[Values]:
        samples = self.load()
        firsts, stops = self.offsets[chosen], self.offsets[1:][chosen]
        return [np.array(samples[first:stop]) for first, stop in zip(firsts, stops, strict=True)]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def mapped(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> Load:
    """What maps a file into memory each time it is called.

    A map that is kept holds on to every page that was read of it: after an epoch, to all.

    Raises:
        TrainingError: if the file is missing or of another length.
    """
    size = path.stat().st_size if path.is_file() else -1
    if size != int(np.prod(shape)) * np.dtype(kind).itemsize:
        raise TrainingError(f"{path} is damaged: it does not hold {' × '.join(map(str, shape))} numbers")
    return lambda: np.memmap(path, dtype=kind, mode="r", shape=shape)
