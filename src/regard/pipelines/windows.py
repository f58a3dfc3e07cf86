"""A recording in windows, and where the text of a window is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Recording:
    """A recording that is read as far as it is needed, and forgotten behind that."""

    def __init__(self, blocks: Iterator[Tensor]) -> None:
        self._blocks = blocks
        self._held: list[Tensor] = []
        self._first = 0  # sample at which they begin
        self.length = 0  # samples read so far

    def window(self, first: int, size: int) -> Tensor:
        """At most so many samples from this one on, which is none before the last window's first."""
        while self.length < first + size and (block := next(self._blocks, None)) is not None:
            self._held.append(block)
            self.length += len(block)
        held = torch.cat(self._held)[first - self._first :] if self._held else torch.empty(0)
        self._held, self._first = [held], first
        return held[:size]


@dataclass(frozen=True)
class Stretch:
    """Pieces between two stamps."""

    first: int  # of the window's pieces, the stamps among them
    stop: int
    since: int  # the stamp at which it begins
    until: int | None  # and ends; None is the end of the window


def stretches(ids: Sequence[int], first_stamp: int) -> tuple[list[Stretch], int | None]:
    """The stretches of a window's pieces, and the stamp up to which they were heard to the end.

    Two stamps in a row are the end of one stretch and the beginning of the next. What follows the last pair is cut
    off by the end of the window, unless a single stamp at the end says that nothing follows.

    Args:
        ids: pieces, without the end piece.
        first_stamp: the piece for 0 seconds.

    Returns:
        The stretches in order, and None where the whole window was heard.
    """
    stamps = [i - first_stamp if i >= first_stamp else None for i in ids]
    cuts = [i + 1 for i in range(len(ids) - 1) if stamps[i] is not None and stamps[i + 1] is not None]
    if not cuts:
        known = [stamp for stamp in stamps if stamp]
        return [Stretch(0, len(ids), 0, known[-1] if known else None)], None
    whole = stamps[-1] is not None and stamps[-2] is None
    if whole:
        cuts.append(len(ids))
    found: list[Stretch] = []
    before = 0
    for cut in cuts:
        found.append(Stretch(before, cut, stamps[before] or 0, stamps[cut - 1]))
        before = cut
    return found, None if whole else stamps[before - 1]
