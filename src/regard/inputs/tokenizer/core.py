"""Text ↔ ids, as a Hugging Face checkpoint cuts it, with every piece's place in the text."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.elements import Element
from regard.inputs.tokenizer.chat import Message, render_chat
from regard.inputs.tokenizer.errors import TokenizerError, checked_text, reporting
from regard.inputs.tokenizer.labels import element_of, places
from regard.inputs.tokenizer.stream import CLEANED, Joiner, TextStream, decoder_steps, is_byte, joiner_for
from regard.inputs.tokenizer.values import Encoding, Role, Settings, Text

if TYPE_CHECKING:
    from tokenizers import Encoding as Backing
    from tokenizers import Tokenizer as Backend


class Tokenizer:
    """Cuts texts into pieces as a checkpoint does, and puts them together again.

    Read it with `from_directory` or `from_gguf`. No text is cut off and none is filled up, whatever the checkpoint's
    files say about that: lengths are the caller's.

    Args:
        backend: a tokenizer of the `tokenizers` library, whose truncation, padding and dropout are switched off.
        settings: what the checkpoint says beside it.

    Raises:
        TokenizerError: if a special piece is not in the vocabulary.
    """

    def __init__(self, backend: Backend, settings: Settings) -> None:
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # type: ignore[attr-defined]  # a setting of BPE, for training alone
        self._backend = backend
        self._settings = settings
        self._steps = decoder_steps(backend.decoder)
        self._byte_level = any(step.get("type") == "ByteLevel" for step in self._steps)
        self._piece_of = self._pieces()
        self._id_of = {piece: index for index, piece in self._piece_of.items()}
        for role, piece in settings.specials.items():
            if piece not in self._id_of:
                raise TokenizerError(f"the {role} piece is {piece!r}: it is not in the vocabulary")
        added = backend.get_added_tokens_decoder()
        self._special_ids = {i for i, token in added.items() if token.special} | set(settings.skipped)

    @classmethod
    def from_directory(cls, path: str | Path, *, target: bool = False) -> Tokenizer:
        """Read the tokenizer of a checkpoint in the Hugging Face layout.

        `tokenizer.json` with `tokenizer_config.json` and, where they are, `special_tokens_map.json`,
        `added_tokens.json`, `chat_template.jinja`; without `tokenizer.json` the older files: `vocab.txt` (BERT),
        `vocab.json` with `merges.txt` (GPT-2, RoBERTa, BART, Whisper), `source.spm`, `target.spm` with `vocab.json`
        (Marian), `spiece.model` (T5).

        Args:
            path: the directory.
            target: the tokenizer of the language that is translated into, where a checkpoint has one of its own
                (Marian); elsewhere there is one for both.

        Raises:
            TokenizerError: if there is no tokenizer, or a file of it is not what it should be.
            OSError: if a file cannot be read.
        """
        from regard.inputs.tokenizer.directory import read_directory

        return read_directory(Path(path), target=target)

    @classmethod
    def from_gguf(cls, fields: Mapping[str, object]) -> Tokenizer:
        """The tokenizer that the metadata of a GGUF file describes.

        Args:
            fields: the metadata by key, arrays as lists; keys that do not begin with "tokenizer." are not read.

        Raises:
            TokenizerError: if a field is missing or not what it should be, or names a model or a pre-tokenizer that
                is not known; the message lists those that are.
        """
        from regard.inputs.tokenizer.gguf import read_gguf

        return cls(*read_gguf(fields))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, added pieces among them."""
        return max(self._piece_of, default=-1) + 1

    @property
    def pad(self) -> int | None:
        """The id of the piece that fills up a batch; None where there is none, as for the other roles."""
        return self._role("pad")

    @property
    def bos(self) -> int | None:
        """The id that begins a text."""
        return self._role("bos")

    @property
    def eos(self) -> int | None:
        """The id that ends a text."""
        return self._role("eos")

    @property
    def unk(self) -> int | None:
        """The id of whatever has no piece."""
        return self._role("unk")

    @property
    def cls(self) -> int | None:
        """The id whose place stands for the whole text."""
        return self._role("cls")

    @property
    def sep(self) -> int | None:
        """The id between two texts and after them."""
        return self._role("sep")

    @property
    def mask(self) -> int | None:
        """The id of a piece to be guessed."""
        return self._role("mask")

    @property
    def special_ids(self) -> frozenset[int]:
        """All ids that `decode` leaves out."""
        return frozenset(self._special_ids)

    def piece(self, index: int) -> str:
        """How the vocabulary writes an id.

        Raises:
            TokenizerError: if it is outside the vocabulary.
        """
        return self._piece_of[self._known(index)]

    def id_of(self, piece: str) -> int | None:
        """The id of a piece as the vocabulary writes it; None where there is none."""
        return self._id_of.get(piece)

    def check_fits(self, vocab_size: int) -> None:
        """Make sure that a model has an embedding for every id; it may have more.

        Raises:
            TokenizerError: if one id is beyond the model's embedding.
        """
        beyond = [i for i in self._piece_of if i >= vocab_size]
        if beyond:
            first = min(beyond)
            raise TokenizerError(
                f"the tokenizer has {self._piece_of[first]!r} as id {first}, and {len(beyond)} ids of {vocab_size} or "
                f"more: the model's vocabulary ends at {vocab_size - 1}, so the two do not belong together"
            )

    def encode(self, text: str, pair: str | None = None, *, specials: bool = True) -> Encoding:
        """The pieces of a text, or of two that a model reads together, and what each stands for.

        Args:
            text: any text.
            pair: the second one.
            specials: put in the special pieces that the checkpoint has around a text. One that is written in the
                text is that piece either way, and has its place there.

        Raises:
            TokenizerError: if a text is no string, or holds a lone surrogate.
        """
        checked_text(text)
        if pair is not None:
            checked_text(pair, "pair")
        return self._encode(text, pair, specials=specials)

    def encode_batch(self, texts: Sequence[Text], *, specials: bool = True) -> list[list[int]]:
        """The ids of each text or pair, each of its own length.

        Args:
            texts: strings, or tuples of two strings.
            specials: as for `encode`.

        Raises:
            TokenizerError: if one is neither, or holds a lone surrogate.
        """
        if isinstance(texts, str):
            raise TokenizerError("texts is a string: it must be a list of texts or of pairs")
        for i, text in enumerate(texts):
            if isinstance(text, tuple) and len(text) == 2:
                checked_text(text[0], f"texts[{i}][0]")
                checked_text(text[1], f"texts[{i}][1]")
            else:
                checked_text(text, f"texts[{i}]")
        return self._encode_batch(texts, specials=specials)

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        """The text that ids write; bytes that are no character become U+FFFD.

        Args:
            ids: any of the vocabulary.
            skip_specials: leave the special pieces out.

        Raises:
            TokenizerError: if an id is outside the vocabulary.
        """
        left_out = self._special_ids if skip_specials else ()
        text = self._join([self._piece_of[i] for i in map(self._known, ids) if i not in left_out])
        if self._settings.clean_up:
            for old, new in CLEANED:
                text = text.replace(old, new)
        return text

    def stream(self, *, skip_specials: bool = True) -> TextStream:
        """Decodes ids as they come; all it gives out, joined, is `decode` of all of them."""

        def written(index: int) -> str | None:
            known = self._known(index)
            return None if skip_specials and known in self._special_ids else self._piece_of[known]

        return TextStream(written, self._joiner(), clean=self._settings.clean_up)

    def elements(self, ids: Sequence[int], text: Text | None = None) -> list[Element]:
        """What each of the ids stands for.

        Args:
            ids: pieces of a text or pair, with special ones anywhere among them; they may end before the text does.
            text: the original whose pieces these are; without it, spans are places in `decode(ids)`.

        Returns:
            One element an id, with its characters as label and (first, stop) as span, without the white space around
            a word; pieces of one character share its span, and are labelled with their bytes, such as <F0 9F>. A
            piece that stands for nothing in the text is labelled with its name; its span is None.

        Raises:
            TokenizerError: if an id is outside the vocabulary, or the ids are not the pieces of the text.
        """
        if text is None:
            return self._elements_alone(ids)
        ids = [self._known(i) for i in ids]
        texts = text if isinstance(text, tuple) else (text, None)
        whole = self.encode(*texts)
        if ids == whole.ids:
            return whole.elements
        inside = self.encode(*texts, specials=False)
        found = iter(inside.elements)
        expected = list(inside.ids)
        elements: list[Element] = []
        used = 0
        for index, piece in enumerate(ids):
            name = self._piece_of[piece]
            if used < len(expected) and piece == expected[used]:
                source = next(found)
                elements.append(Element(index, source.label, span=source.span))
                used += 1
            elif piece in self._special_ids:
                elements.append(Element(index, name))
            else:
                raise TokenizerError(f"ids[{index}] is {piece} ({name!r}), which is not the next piece of the text")
        return elements

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        template: str | None = None,
        **variables: object,
    ) -> str:
        """The text that the checkpoint's model reads for a chat; encode it with `specials=False`.

        Args:
            messages: each a mapping with role ("system", "user", "assistant" …) and content (a string, or a list of
                parts for models that take them).
            add_generation_prompt: end with what begins an answer.
            template: the name of one of the checkpoint's templates; "tool_use" where there are tools and it has
                one, else "default".
            variables: what else the template reads: tools (a list of JSON schemas), documents, a date.

        Raises:
            TokenizerError: if the checkpoint has no such template, messages are not of this form, or the template
                does not take them.
        """
        templates = self._settings.chat_templates
        name = template or ("tool_use" if variables.get("tools") and "tool_use" in templates else "default")
        if name not in templates:
            known = ", ".join(sorted(templates)) or "none"
            raise TokenizerError(f"the chat template is {name!r}: the checkpoint has {known}")
        specials = {f"{role}_token": piece for role, piece in self._settings.specials.items()}
        common = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        return render_chat(templates[name], messages, {**common, **specials, **variables})

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """The checkpoint's chat templates by name; empty where it is no chat model's."""
        return self._settings.chat_templates

    # What a tokenizer with other ids than its backend replaces.

    def _pieces(self) -> dict[int, str]:
        return {index: piece for piece, index in self._backend.get_vocab(with_added_tokens=True).items()}

    def _encode(self, text: str, pair: str | None, *, specials: bool) -> Encoding:
        with reporting("the tokenizer does not take this text"):
            found = self._backend.encode(text, pair, add_special_tokens=specials)
        return Encoding(found.ids, self._elements_of(found, text, pair), found.type_ids, found.sequence_ids)

    def _encode_batch(self, texts: Sequence[Text], *, specials: bool) -> list[list[int]]:
        with reporting("the tokenizer does not take these texts"):
            return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=specials)]

    def _join(self, pieces: list[str]) -> str:
        decoder = self._backend.decoder
        return " ".join(pieces) if decoder is None else decoder.decode(pieces)

    def _joiner(self) -> Joiner:
        return joiner_for(self._steps, self._join)

    def _elements_of(self, found: Backing, text: str, pair: str | None) -> list[Element]:
        rows = zip(found.ids, found.tokens, found.offsets, found.sequence_ids, strict=True)
        unknown = self.unk
        elements: list[Element] = []
        for index, (piece, name, span, source) in enumerate(rows):
            if source is None:
                elements.append(Element(index, name))
                continue
            inside = text if source == 0 or pair is None else pair
            label = self.piece(piece) if piece == unknown else None
            elements.append(element_of(index, name, inside, span, byte_level=self._byte_level, label=label))
        return elements

    def _elements_alone(self, ids: Sequence[int]) -> list[Element]:
        text = self.decode(ids)
        ids = [self._known(i) for i in ids]
        stream = self.stream()
        written = [index for index, i in enumerate(ids) if i not in self._special_ids]
        parts: list[str | None] = [None] * len(ids)
        within = [False] * len(ids)
        for index, after in zip(written, [*written[1:], None], strict=True) if written else ():
            part = stream.feed(ids[index])
            if not part and is_byte(self.piece(ids[index])) and (after is None or not is_byte(self.piece(ids[after]))):
                part = stream.settle()
            parts[index], within[index] = part, stream.within
        spans = places(parts, within, len(text))
        return [
            element_of(index, name, text, span, byte_level=self._byte_level, label=None)
            if span
            else Element(index, name)
            for index, (name, span) in enumerate(zip(map(self.piece, ids), spans, strict=True))
        ]

    def _known(self, index: int) -> int:
        try:
            known = operator.index(index)
        except TypeError:
            raise TokenizerError(f"id is {index!r}: it must be in [0, {self.vocab_size})") from None
        if known not in self._piece_of:
            allowed = "no piece has it" if 0 <= known < self.vocab_size else f"it must be in [0, {self.vocab_size})"
            raise TokenizerError(f"id is {known}: {allowed}")
        return known

    def _role(self, role: Role) -> int | None:
        piece = self._settings.specials.get(role)
        return None if piece is None else self._id_of[piece]
