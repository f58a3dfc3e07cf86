"""The text of an answer, until a text that stops it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class _Decoder(Protocol):
    def feed(self, piece: int) -> str: ...
    def finish(self) -> str: ...


class StopText:
    """Ids → text, one at a time, up to the first of some texts. What might begin one of them is held back.

    Args:
        decoder: ids → text.
        stops: the texts, none empty; where two begin at the same place, the one that is found first counts.
    """

    def __init__(self, decoder: _Decoder, stops: Sequence[str]) -> None:
        self._decoder = decoder
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, piece: int) -> tuple[str, bool]:
        """The text that is certain after this id, and was not before; and whether it was stopped here."""
        return self._release(self._decoder.feed(piece))

    def finish(self) -> str:
        """The rest, when no id follows; without a text that stops it."""
        text, stopped = self._release(self._decoder.finish())
        if stopped:
            return text
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> tuple[str, bool]:
        held = self._held + text
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self._held = ""
            return held[: min(places)], True
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text are the first of another."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if stop.startswith(text[len(text) - n :])), 0)
