"""SentencePiece models (arXiv 1808.06226): their file, a protocol buffer, and the tokenizers that are in it."""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.inputs.tokenizer.errors import TokenizerError, reporting
from regard.inputs.tokenizer.families import template

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SPACE = "▁"
_UNIGRAM = 1


class Kind(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary: its characters, with ▁ for a space, and its log-probability."""

    text: str
    score: float = 0.0
    kind: Kind = Kind.NORMAL


@dataclass(frozen=True)
class Model:
    """What a SentencePiece file says, as far as it matters for cutting texts."""

    pieces: Sequence[Piece]
    unk: int = 0
    byte_fallback: bool = False
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_spaces: bool = True


def read_model(path: Path) -> Model:
    """Read a SentencePiece file: its unigram model.

    Raises:
        TokenizerError: if it is none, is damaged, or holds another kind of model.
        OSError: if it cannot be read.
    """
    try:
        return _model(path.read_bytes())
    except TokenizerError as error:
        raise TokenizerError(f"{path.name}: {error}") from error
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise TokenizerError(f"{path.name} is no SentencePiece model, or is damaged") from error


def build_t5(path: Path, extra_ids: int) -> Backend:
    """T5's: `spiece.model`, and pieces that stand for what was left out, the first one last.

    Raises:
        TokenizerError: if it is not such a model, or has no end of text.
    """
    from tokenizers import AddedToken, pre_tokenizers

    model = read_model(path)
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    blanks = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
    backend = unigram(path.name, [*pieces, *((blank, 0.0) for blank in blanks)], model)
    if model.charsmap:
        backend.normalizer = charsmap(path.name, model.charsmap)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")]
    )
    special = [p.text for p in model.pieces if p.kind in {Kind.CONTROL, Kind.UNKNOWN}] + blanks
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    users = [AddedToken(p.text, normalized=False) for p in model.pieces if p.kind is Kind.USER_DEFINED]
    backend.add_tokens(users)
    end = backend.token_to_id("</s>")
    if end is None:
        raise TokenizerError(f"{path.name} has no piece '</s>', which ends every text of T5")
    backend.post_processor = template("$A:0 </s>:0", "$A:0 </s>:0 $B:0 </s>:0", {"</s>": end})
    return backend


def build_sentences(name: str, model: Model) -> Backend:
    """A unigram model that treats white space as SentencePiece itself does, and no text as a special piece."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    # Pieces that are no text must not be found in one: no text holds the NUL that goes before them here.
    matched = {Kind.NORMAL, Kind.USER_DEFINED}
    pieces = [(p.text if p.kind in matched else f"\0{p.text}", p.score) for p in model.pieces]
    backend = unigram(name, pieces, model)
    steps: list[Any] = [charsmap(name, model.charsmap)] if model.charsmap else []
    if model.remove_extra_spaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)
    # A piece that goes on after a space is found only if the text is not cut there before.
    across = any(SPACE in p.text[1:] for p in model.pieces if p.kind in matched)
    scheme = "always" if model.dummy_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=not across)
    return backend


def unigram(name: str, pieces: Sequence[tuple[str, float]], model: Model) -> Backend:
    """A tokenizer of the model alone, with the decoder that all of them share."""
    from tokenizers import Tokenizer, decoders, models

    with reporting(name):
        backend = Tokenizer(models.Unigram(list(pieces), model.unk, model.byte_fallback))
    backend.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    return backend


def charsmap(name: str, table: bytes) -> Any:
    """The normaliser of a precompiled table of characters."""
    from tokenizers.normalizers import Precompiled

    with reporting(f"{name}: the table of characters"):
        return Precompiled(table)


def _model(data: bytes) -> Model:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(dict(_fields(value))))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise TokenizerError("no SentencePiece model, or damaged: it has no pieces")
    kind = trainer.get(3, _UNIGRAM)
    if kind != _UNIGRAM:
        names = {2: "byte-pair encoding", 3: "words", 4: "characters"}
        raise TokenizerError(f"a model of {names.get(kind, f'kind {kind}')}: it must be a unigram model")
    unknown = trainer.get(40, 0)
    if not isinstance(unknown, int) or unknown >= len(pieces):
        raise TokenizerError(f"the id of the unknown piece is {unknown}: it must be below {len(pieces)}")
    table = normalizer.get(2, b"")
    if not isinstance(table, bytes):
        raise TokenizerError("the table of characters must be bytes")
    return Model(
        pieces,
        unknown,
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=table,
        dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_spaces=bool(normalizer.get(4, 1)),
    )


def _piece(fields: dict[int, Any]) -> Piece:
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0\0\0\0"), fields.get(3, 1)
    if not isinstance(text, bytes) or not text or kind not in set(Kind):
        raise TokenizerError("a piece must have characters and a known kind")
    return Piece(text.decode(), struct.unpack("<f", score)[0], Kind(kind))


def _fields(data: bytes) -> Generator[tuple[int, Any]]:
    """The fields of a message of the protocol buffers: numbers as int, anything longer as bytes."""
    place = 0
    while place < len(data):
        key, place = _number(data, place)
        wire = key & 7
        if wire == 0:
            value, place = _number(data, place)
        else:
            if wire == 2:
                size, place = _number(data, place)
            elif wire in {1, 5}:
                size = 8 if wire == 1 else 4
            else:
                raise TokenizerError(f"byte {place} begins a field of kind {wire}, which there is not")
            if place + size > len(data):
                raise TokenizerError(f"it ends inside a field of {size} bytes that begins at byte {place}")
            value, place = data[place : place + size], place + size
        yield key >> 3, value


def _number(data: bytes, place: int) -> tuple[int, int]:
    """The number that begins here, seven bits a byte, and where the next one begins."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise TokenizerError(f"byte {place} is in a number of more than ten bytes")
