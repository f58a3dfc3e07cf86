"""Pieces that may come next, copied from where the text was the same before (arXiv 2304.04487).

A model that writes one text spends its time on reading its weights. So it is asked about several pieces at once: a
guess, of which it keeps as many as it would have written itself. A wrong guess costs little, a right one saves whole
steps, and the answer is the same. Texts repeat themselves: names, quotations, code, and what small models write.
"""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = (3, 2, 1)
"""Pieces that must be the same for what followed them to be guessed; the longest that is found counts."""
_FEW, _MANY = 3, 7
"""Pieces of a guess, and of one after a guess that was right as a whole. A step with four rows takes 1.1 times as long
as with one, with eight 1.7, with sixteen 3.0 (SmolLM2-135M, one thread)."""


class Lookup:
    """Guesses how a text goes on.

    Args:
        ids: the text so far.

    >>> lookup = Lookup([7, 8, 9, 5, 7, 8])
    >>> lookup.guess(4)  # after 7, 8 there was 9, then 5, then 7
    [9, 5, 7]
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where the text goes on after the last time of these pieces
        self._length = _FEW
        for piece in ids:
            self.feed(piece)

    def feed(self, piece: int) -> None:
        """The text goes on with this piece."""
        end = len(self._ids)
        for size in _SIZES:
            if end >= size:
                self._after[tuple(self._ids[-size:])] = end
        self._ids.append(piece)

    def guess(self, most: int) -> list[int]:
        """At most so many pieces that may come next; none where the text has been nothing like this before."""
        starts = (self._after.get(tuple(self._ids[-size:])) for size in _SIZES)
        start = next((start for start in starts if start is not None), None)
        if start is None:
            return []
        text = [*self._ids]
        for at in range(start, start + min(most, self._length)):  # the guess may go on with itself
            text.append(text[at])
        return text[len(self._ids) :]

    def judge(self, guess: Sequence[int], right: int) -> None:
        """Of a guess so many pieces were right: guess more, or few again."""
        if guess:
            self._length = _MANY if right == len(guess) else _FEW
