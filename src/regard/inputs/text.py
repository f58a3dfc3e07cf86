"""Text → pieces: byte-level byte-pair encoding (arXiv 1508.07909), with every piece's place in the original text.

Every byte has a piece of its own, so no character is unknown and none is lost. A text is brought to Unicode's
composed form (NFC), a space is put before it, and it is cut where words, digits and punctuation marks begin;
a word takes the space before it along. So "window" is the same pieces at the start of a text, inside it, and
before a full stop, and decoding gives back the composed text, whatever its spacing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from regard.elements import Element
from regard.inputs.alignment import Span, compose

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
_WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]|\s+(?!\S)|\s+"
_PROBE = "</s> Größe:  \n1é."


@dataclass(frozen=True)
class EncodedText:
    """The pieces of a text: ids, and one element for each."""

    ids: list[int]
    elements: list[Element]


class TextTokenizer:
    """Cuts texts into pieces and puts them together again.

    Args:
        tokenizer: a byte-level one with the pieces `SPECIALS`, as `train_bpe` makes and `from_json` reads it.

    Raises:
        ValueError: if it is another kind of tokenizer: a special piece or a byte's piece is missing, a piece is not
            written in bytes, or a text does not come back as it went in.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "</s>" in a text is four characters, not the end
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self.pad, self.bos, self.eos, self.unk = (self._special(piece) for piece in SPECIALS)
        self._specials = dict(zip((self.pad, self.bos, self.eos, self.unk), SPECIALS, strict=True))
        self._pieces = self._bytes_of_pieces()
        if self.decode(self.encode_batch([_PROBE])[0]) != _PROBE:
            raise ValueError(f"the tokenizer does not give back {_PROBE!r}: it must lose nothing of a text")

    @classmethod
    def from_json(cls, source: str | Path) -> TextTokenizer:
        """Read a tokenizer.json: its content as a string, or its path.

        Raises:
            ValueError: if it is not a tokenizer of this form.
            OSError: if the path cannot be read.
        """
        from tokenizers import Tokenizer

        content = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        try:
            tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not a tokenizer: {error}") from error
        return cls(tokenizer)

    @classmethod
    def train_bpe(cls, texts: Iterable[str | Path], vocab_size: int) -> TextTokenizer:
        """Learn the pieces that write these texts shortest.

        Args:
            texts: strings, or paths of text files (UTF-8, a text a line). Give both languages of a
                translator.
            vocab_size: pieces at most, specials and the 256 bytes among them.

        Raises:
            ValueError: if vocab_size has no room for specials and bytes.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        least = len(SPECIALS) + 256
        if vocab_size < least:
            raise ValueError(f"vocab_size is {vocab_size}: the special pieces and the 256 bytes need at least {least}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Prepend(" ")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=_letters(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_texts(texts), trainer)
        return cls(tokenizer)

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return self._tokenizer.to_str(pretty=False)

    def encode(self, text: str) -> EncodedText:
        """The ids of a text, ended by `</s>`, and what each stands for.

        Raises:
            ValueError: if text holds a lone surrogate, which is no character.
        """
        ids = self.encode_batch([text])[0]
        return EncodedText(ids, self.elements(ids, text))

    def encode_batch(self, texts: Sequence[str], *, dropout: float = 0.0) -> list[list[int]]:
        """The ids of each text, each ended by `</s>`.

        Args:
            texts: any strings.
            dropout: probability of leaving out a merge, so that a text is cut differently every time (BPE
                dropout, arXiv 1910.13267). For training only; the library draws from a generator of its own,
                without a seed.

        Raises:
            ValueError: if a text holds a lone surrogate, or dropout is outside [0, 1].
        """
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}: it must be in [0, 1]")
        composed = [_composed(text) for text in texts]
        model = self._tokenizer.model
        model.dropout = dropout or None
        try:
            encodings = self._tokenizer.encode_batch_fast(composed, add_special_tokens=False)
        finally:
            model.dropout = None
        return [[*encoding.ids, self.eos] for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids write; special pieces write nothing, a byte that is no character becomes U+FFFD.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        return _readable(self._bytes(ids)[1])

    def elements(self, ids: Sequence[int], text: str | None = None) -> list[Element]:
        """What each of the ids stands for.

        Args:
            ids: pieces of a text, special pieces among them.
            text: the original whose pieces these are; without it, spans are places in `decode(ids)`.

        Returns:
            One element an id, with its characters as label and (first, stop) as span, without the space
            before a word. White space is labelled ␣. A piece of a character has that character's span and is
            labelled with its bytes, such as <F0 9F>. A special piece is labelled with its name and has no
            span.

        Raises:
            ValueError: if an id is outside the vocabulary, or the ids do not write text in its composed form.
        """
        pieces, written = self._bytes(ids)
        decoded = _readable(written)
        if text is None:
            text, spans = decoded, [(i, i + 1) for i in range(len(decoded))]
        else:
            composed, spans = compose(text)
            if composed != decoded:
                raise ValueError(f"ids write {decoded!r}, which is not the text {text!r}")
        characters = _characters(written)
        elements: list[Element] = []
        byte = 0
        for index, (piece, data) in enumerate(zip(ids, pieces, strict=True)):
            if piece in self._specials:
                elements.append(Element(index, self._specials[piece]))
                continue
            span = _span(text, spans, characters[byte : byte + len(data)])
            byte += len(data)
            elements.append(Element(index, _label(data, text[slice(*span)]), span=span))
        return elements

    def _bytes(self, ids: Sequence[int]) -> tuple[list[bytes], str]:
        """The bytes of each id, and all of them as a string with a surrogate for each byte that is no character."""
        for piece in ids:
            if not 0 <= piece < self.vocab_size:
                raise ValueError(f"id is {piece}: it must be in [0, {self.vocab_size})")
        pieces = [self._pieces[piece] for piece in ids]
        return pieces, b"".join(pieces).decode("utf-8", errors="surrogateescape")

    def _bytes_of_pieces(self) -> list[bytes]:
        """The bytes that each id writes; none for a special piece."""
        alphabet = {letter: byte for byte, letter in enumerate(_letters())}
        missing = sum(self._tokenizer.token_to_id(letter) is None for letter in alphabet)
        if missing:
            raise ValueError(f"{missing} of the 256 bytes have no piece: the tokenizer must be byte-level")
        pieces: list[bytes] = []
        for i in range(self.vocab_size):
            name = self._tokenizer.id_to_token(i)
            if name is None or (i not in self._specials and any(letter not in alphabet for letter in name)):
                raise ValueError(f"piece {i} is {name!r}: the tokenizer must be byte-level")
            pieces.append(b"" if i in self._specials else bytes(alphabet[letter] for letter in name))
        return pieces

    def _special(self, piece: str) -> int:
        index = self._tokenizer.token_to_id(piece)
        if index is None:
            raise ValueError(f"the tokenizer has no piece {piece}: it must have {', '.join(SPECIALS)}")
        return index


@cache
def _letters() -> list[str]:
    """How byte-level pieces are written: bytes that print as themselves, the others as characters from U+0100 on."""
    letters: list[str] = []
    shifted = 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            letters.append(chr(byte))
        else:
            letters.append(chr(256 + shifted))
            shifted += 1
    return letters


def _texts(texts: Iterable[str | Path]) -> Iterator[str]:
    for item in texts:
        if isinstance(item, Path):
            with item.open(encoding="utf-8") as lines:
                yield from (_composed(line.rstrip("\r\n")) for line in lines)
        else:
            yield _composed(item)


def _composed(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(f"character {error.start} of the text is U+{code:04X}, half of a surrogate pair") from None
    return unicodedata.normalize("NFC", text)


def _readable(written: str) -> str:
    text = "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in written)
    return text.removeprefix(" ")


def _characters(written: str) -> list[int]:
    """For each byte, the character of the text it belongs to; −1 for the space before the text."""
    sizes = [len(c.encode("utf-8", errors="surrogateescape")) for c in written]
    shift = 1 if written.startswith(" ") else 0
    return [i - shift for i, size in enumerate(sizes) for _ in range(size)]


def _span(text: str, spans: Sequence[Span], characters: Sequence[int]) -> Span:
    """The places of these composed characters in the text, without the white space before them."""
    inside = [i for i in characters if i >= 0]
    if not inside:
        return 0, 0  # the space that the tokenizer put there
    first, stop = spans[inside[0]][0], spans[inside[-1]][1]
    blank = len(text[first:stop]) - len(text[first:stop].lstrip())
    return (first + blank, stop) if first + blank < stop else (first, stop)


def _label(data: bytes, characters: str) -> str:
    try:
        data.decode()
    except UnicodeDecodeError:
        return f"<{data.lstrip(b' ').hex(' ').upper()}>"
    return "␣" if not characters or characters.isspace() else characters
