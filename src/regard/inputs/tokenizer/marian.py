"""Marian's tokenizer: one SentencePiece model a language, and a vocabulary of its own for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.elements import Element
from regard.inputs.tokenizer.core import Tokenizer
from regard.inputs.tokenizer.errors import TokenizerError, reporting
from regard.inputs.tokenizer.families import need, read_vocabulary
from regard.inputs.tokenizer.labels import element_of
from regard.inputs.tokenizer.sentencepiece import SPACE, build_sentences, read_model
from regard.inputs.tokenizer.stream import Joiner
from regard.inputs.tokenizer.values import Encoding, Role, Settings, Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


def read_marian(path: Path, settings: Settings, *, separate: bool, target: bool) -> MarianTokenizer:
    """Read `source.spm` or `target.spm`, and `vocab.json`, or `target_vocab.json` where vocabularies are separate.

    Raises:
        TokenizerError: if a file is not what it should be, or the vocabulary has no unknown or no end piece.
        OSError: if one cannot be read.
    """
    from tokenizers import AddedToken

    spm = path / ("target.spm" if target else "source.spm")
    vocab = path / ("target_vocab.json" if target and separate else "vocab.json")
    for file in (spm, vocab):
        if not file.exists():
            raise TokenizerError(f"{path} has no {file.name}, which the tokenizer of a Marian model needs")
    backend = build_sentences(spm.name, read_model(spm))
    vocabulary = read_vocabulary(vocab)
    for role in ("unk", "eos"):
        need(vocab.name, vocabulary, settings.specials, role)
    pieces = sorted(set(settings.specials.values()))
    backend.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in pieces])
    specials: dict[Role, str] = {role: piece for role, piece in settings.specials.items() if piece in vocabulary}
    settings = Settings(specials, (), settings.clean_up, settings.chat_templates)
    return MarianTokenizer(backend, settings, vocabulary)


class MarianTokenizer(Tokenizer):
    """A SentencePiece model cuts the text; the ids of its pieces are those of the vocabulary of both languages.

    A text may begin with a code such as `>>fra<<`, which says into which language a model of many translates.

    Args:
        backend: the SentencePiece model, with ids of its own.
        settings: what the checkpoint says beside it.
        vocabulary: the ids of pieces; what is not in it is unknown.
    """

    def __init__(self, backend: Backend, settings: Settings, vocabulary: Mapping[str, int]) -> None:
        self._vocabulary = dict(vocabulary)
        super().__init__(backend, settings)
        self._names = set(settings.specials.values())
        self._special_ids = {vocabulary[piece] for piece in self._names}
        self._unknown, self._end = (
            self._vocabulary[settings.specials["unk"]],
            self._vocabulary[settings.specials["eos"]],
        )

    def _pieces(self) -> dict[int, str]:
        return {index: piece for piece, index in self._vocabulary.items()}

    def _encode(self, text: str, pair: str | None, *, specials: bool) -> Encoding:
        elements: list[Element] = []
        ids: list[int] = []
        texts: list[int | None] = []
        for source, part in enumerate((text,) if pair is None else (text, pair)):
            for name, span in self._cut(part):
                index = self._vocabulary.get(name, self._unknown)
                label = self.piece(index) if index == self._unknown else None
                elements.append(element_of(len(ids), name, part, span, byte_level=False, label=label))
                ids.append(index)
                texts.append(source)
        if specials:
            elements.append(Element(len(ids), self.piece(self._end)))
            ids.append(self._end)
            texts.append(None)
        return Encoding(ids, elements, [0] * len(ids), texts)

    def _encode_batch(self, texts: Sequence[Text], *, specials: bool) -> list[list[int]]:
        both = [text if isinstance(text, tuple) else (text, None) for text in texts]
        return [self._encode(text, pair, specials=specials).ids for text, pair in both]

    def _cut(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        """The pieces of a text and their places."""
        size = 0
        if text.startswith(">>") and "<<" in text:
            size = text.index("<<") + 2
        with reporting("the tokenizer does not take this text"):
            found = self._backend.encode(text[size:], add_special_tokens=False)
        cut = [(text[:size], (0, size))] if size else []
        for name, (first, stop) in zip(found.tokens, found.offsets, strict=True):
            cut.append((name, (size + first, size + stop)))
        return cut

    def _join(self, pieces: list[str]) -> str:
        joiner = self._joiner()
        return "".join([*(joiner.feed(piece) for piece in pieces), joiner.finish()])

    def _joiner(self) -> Joiner:
        return _Sentences(self._names)


class _Sentences:
    """Pieces in a row are the text, ▁ a space; a special piece has a space after it, and ends in none or begins."""

    def __init__(self, specials: set[str]) -> None:
        self._specials = specials
        self._first = True  # the space before a sentence is not of the text
        self._begun = False
        self._blank = ""  # white space that is of the text only if something follows

    def feed(self, piece: str) -> str:
        if piece in self._specials:
            text, self._first = f"{piece} ", True
        else:
            text = piece.replace(SPACE, " ")
            if self._first:
                text = text.removeprefix(" ")
            self._first = False
        text = self._blank + text
        if not self._begun:
            text = text.lstrip()
        self._begun = self._begun or bool(text)
        certain = text.rstrip()
        self._blank = text[len(certain) :]
        return certain

    def finish(self) -> str:
        return ""

    @property
    def within(self) -> bool:
        return False
