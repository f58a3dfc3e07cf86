"""Ids → text, one id at a time: a part of the text is given out as soon as no later id can change it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Protocol

Decode = Callable[[list[str]], str]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LOCAL = {"WordPiece", "Metaspace", "BPEDecoder", "Replace", "ByteFallback", "Fuse", "Strip"}

# What English loses before it is read again, in this order: the spaces that word pieces leave before punctuation.
CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


class Joiner(Protocol):
    """Pieces → text, one piece at a time."""

    def feed(self, piece: str) -> str:
        """The text that is certain after this piece, and was not before."""
        ...

    def finish(self) -> str:
        """The rest."""
        ...

    @property
    def within(self) -> bool:
        """Whether the last piece ended inside a character."""
        ...


class TextStream:
    """The text that ids write, part by part: `feed` each id, then `finish`; all parts joined are `decode` of all ids.

    Bytes that are not yet a whole character are held back, and so is everything else a later id could change.
    """

    def __init__(self, piece_of: Callable[[int], str | None], joiner: Joiner, *, clean: bool) -> None:
        self._piece_of = piece_of
        self._joiner = joiner
        self._filters = [_Replacing(old, new) for old, new in CLEANED] if clean else []

    def feed(self, piece: int) -> str:
        """The text that is certain after this id, and was not before; often "".

        Raises:
            TokenizerError: if the id is outside the vocabulary.
        """
        written = self._piece_of(piece)
        if written is None:  # a special piece that is left out
            return ""
        return self._filtered(self._joiner.feed(written))

    @property
    def within(self) -> bool:
        """Whether the last piece ended inside a character, whose first bytes are held back."""
        return self._joiner.within

    def settle(self) -> str:
        """What is held back of a run of bytes, by a caller who knows that no byte follows."""
        return self._filtered(self._joiner.finish())

    def finish(self) -> str:
        """The rest of the text; bytes that are no character become U+FFFD."""
        text = self._joiner.finish()
        for step in self._filters:
            text = step.feed(text) + step.finish()
        return text

    def _filtered(self, text: str) -> str:
        for step in self._filters:
            if not text:
                break
            text = step.feed(text)
        return text


def joiner_for(kinds: Sequence[Mapping[str, object]], decode: Decode) -> Joiner:
    """How pieces are joined one at a time where `decode` joins them all.

    Args:
        kinds: the steps of the decoder, as `decoder_steps` reads them.
        decode: the decoder itself: pieces → text.
    """
    names = [str(step.get("type")) for step in kinds]
    if names == ["ByteLevel"]:
        return _Bytes()
    after_fuse = names[names.index("Fuse") + 1 :] if "Fuse" in names else []
    strips_end = any(step.get("type") == "Strip" and step.get("stop") for step in kinds)
    if set(names) <= _LOCAL and not strips_end and set(after_fuse) <= {"Strip"}:
        return _Local(decode, holds_bytes="ByteFallback" in names)
    return _Whole(decode)


def decoder_steps(decoder: object) -> list[Mapping[str, object]]:
    """The steps of a decoder of the `tokenizers` library, from its own JSON; none for None."""
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())  # type: ignore[attr-defined]  # what the library pickles is its JSON
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]


@cache
def byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level piece stands for."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    same = [letter for letter in letters if ord(letter) < 256]  # bytes that print are written as themselves
    other = sorted(set(range(256)) - {ord(letter) for letter in same})
    return {letter: ord(letter) for letter in same} | dict(zip(letters[len(same) :], other, strict=True))


def bytes_of(piece: str) -> bytes:
    """The bytes that a byte-level piece writes; an added piece in other letters writes itself."""
    letters = byte_letters()
    if all(letter in letters for letter in piece):
        return bytes(letters[letter] for letter in piece)
    return piece.encode()


def is_byte(piece: str) -> bool:
    """Whether a piece writes one byte, such as <0xE2>."""
    return _BYTE.fullmatch(piece) is not None


class _Bytes:
    """Byte-level pieces: all bytes in a row are the text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, piece: str) -> str:
        return self._decoder.decode(bytes_of(piece))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)

    @property
    def within(self) -> bool:
        return bool(self._decoder.getstate()[0])


class _Pieces:
    """What ends no piece inside a character."""

    within = False


class _Local(_Pieces):
    """Pieces whose text depends on themselves and on whether another is before them; a run of bytes is one piece."""

    def __init__(self, decode: Decode, *, holds_bytes: bool) -> None:
        self._decode = decode
        self._holds_bytes = holds_bytes  # of a run of bytes, one more may spoil the character that is whole now
        self._before: list[str] = []  # the last piece that was written, which makes the next one not the first
        self._held: list[str] = []

    def feed(self, piece: str) -> str:
        self._held.append(piece)
        return "" if self._holds_bytes and is_byte(piece) else self._release()

    def finish(self) -> str:
        return self._release() if self._held else ""

    def _release(self) -> str:
        text = self._decode([*self._before, *self._held])
        known = self._decode(self._before) if self._before else ""
        self._before, self._held = self._held, []
        return text[len(known) :]


class _Whole(_Pieces):
    """A decoder whose rule is not known: nothing is certain before the end."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._pieces: list[str] = []

    def feed(self, piece: str) -> str:
        self._pieces.append(piece)
        return ""

    def finish(self) -> str:
        return self._decode(self._pieces)


class _Replacing:
    """`text.replace(old, new)`, part by part."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._rest = ""

    def feed(self, text: str) -> str:
        *done, rest = (self._rest + text).split(self._old)
        size = min(len(self._old) - 1, len(rest))
        while size and not self._old.startswith(rest[len(rest) - size :]):
            size -= 1
        self._rest = rest[len(rest) - size :]
        return self._new.join([*done, rest[: len(rest) - size]])

    def finish(self) -> str:
        rest, self._rest = self._rest, ""
        return rest
