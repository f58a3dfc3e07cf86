"""Many texts through an encoder at once, one after another in one sequence: no work is spent on padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from regard.attention import Watch
from regard.attention.mask import Documents
from regard.elements import Element
from regard.inputs.tokenizer import Tokenizer
from regard.models import Checkpoint, ModelError
from regard.pipelines.texts import RequestError, TextTooLong, name_of, text_sequence
from regard.relations import Relations, observe

PACK = 2048
"""Pieces that are computed together at most, unless one text has more: what is between two products of matrices then
stays in the caches of a processor, and the products are as fast as with more."""
_TOP = 32  # weights kept a row
Progress = Callable[[int], object]
Text = str | tuple[str, str]
Texts = list[str] | tuple[str, ...]


@dataclass(frozen=True)
class Read:
    """A text, or a pair that is read together, as a model reads it.

    Args:
        text: as it was given.
        ids: its pieces.
        types: 0 for the pieces of the first text of a pair, 1 for those of the second; None where all are 0.
        cut: whether the text has more pieces than these.
    """

    text: Text
    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    cut: bool = False


@dataclass(frozen=True)
class Pack:
    """Texts that were computed together.

    Args:
        first: how many texts were computed before.
        lengths: (n,), pieces of each text.
        starts: (n,), where each begins among the rows.
        rows: hidden states of all their pieces, (total, d).
    """

    first: int
    lengths: Tensor
    starts: Tensor
    rows: Tensor


class TextReader:
    """What the pipelines of encoders share: texts in, packs of hidden states out, and relations of a single text.

    Args:
        checkpoint: a model with `hidden` and `head`, as `regard.models.bert.Bert` has them.
        tokenizer: the model's.
        device: where to compute; the CPU by default.
        most: pieces a text may have; the model's positions unless given.
        truncate: whether a text with more is cut off before its last special pieces, instead of an error.

    Raises:
        ModelError: if the model reads no text, or `most` is more than its positions.
        TokenizerError: if the tokenizer has ids that the model has not.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device | None = None,
        most: int | None = None,
        truncate: bool = False,
    ) -> None:
        where = checkpoint.directory
        family = checkpoint.family
        if family.modality != "text" or checkpoint.head not in ("hidden", "fill", "classify"):
            raise ModelError(f"{where} holds a {family.name}: it must be an encoder of text, such as bert")
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.device = torch.device("cpu" if device is None else device)
        self.model: Any = checkpoint.model.to(self.device)
        tokenizer.check_fits(self.model.config.vocab_size)
        positions = self.model.config.max_positions
        self.most = positions if most is None else most
        self.truncate = truncate
        frame = tokenizer.encode("a").texts
        self._suffix = next((i for i, text in enumerate(reversed(frame)) if text is not None), 0)
        least = len(frame)
        if not least <= self.most <= positions:
            raise ModelError(f"{where}: a text may have {self.most} pieces: it must be from {least} to {positions}")

    def read(self, texts: Sequence[Text], names: Sequence[str] | None = None) -> list[Read]:
        """The pieces of each text.

        Args:
            texts: strings or pairs of them.
            names: what messages call them; "text 3 of 8" unless given.

        Raises:
            TextTooLong: one has more pieces than the model takes, and is not to be cut off.
            RequestError: one is empty.
            TypeError: one is no string.
        """
        for i, text in enumerate(texts):
            for part in text if isinstance(text, tuple) else (text,):
                if not isinstance(part, str):
                    raise TypeError(f"{name_of(names, i, len(texts))} is a {type(part).__name__}: it must be a string")
                if not part.strip():
                    raise RequestError(f"{name_of(names, i, len(texts))} is empty: there is nothing to read")
        found = self.tokenizer.encode_batch(texts)
        types: dict[int, tuple[int, ...]] = {}
        cut: set[int] = set()
        for i, text in enumerate(texts):
            if isinstance(text, tuple) and self.model.config.types > 1:
                types[i] = tuple(self.tokenizer.encode(*text).types)
            if len(found[i]) > self.most:
                cut.add(i)
                found[i] = self._cut(found[i], text, name_of(names, i, len(texts)))
        return [Read(text, tuple(found[i]), types.get(i), i in cut) for i, text in enumerate(texts)]

    def packs(self, reads: Sequence[Read], *, pack: int = PACK, progress: Progress | None = None) -> Iterator[Pack]:
        """The hidden states of all texts, in order.

        Args:
            reads: from `read`.
            pack: pieces that are computed together at most; one text is computed whole, however long.
            progress: called with the number of texts done, after every pack.
        """
        first = 0
        for stop in _stops([len(read.ids) for read in reads], pack):
            part = reads[first:stop]
            lengths = torch.tensor([len(read.ids) for read in part])  # (n,)
            starts = lengths.cumsum(0) - lengths
            ids = torch.tensor([i for read in part for i in read.ids])  # (total,)
            positions = torch.arange(len(ids)) - starts.repeat_interleave(lengths)
            types = None
            if any(read.types is not None for read in part):
                types = torch.tensor([t for read in part for t in (read.types or (0,) * len(read.ids))])
            rows = self.hidden(ids, lengths, positions, types)
            yield Pack(first, lengths.to(self.device), starts.to(self.device), rows)
            first = stop
            if progress is not None:
                progress(stop)

    @torch.no_grad()
    def hidden(self, ids: Tensor, lengths: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        """Hidden states (total, d) of texts that stand one after another.

        Args:
            ids: (total,).
            lengths: (n,), pieces of each text.
            positions: (total,), of each piece in its own text.
            types: (total,) or None.
        """
        mask = Documents(lengths) if len(lengths) > 1 else None
        given = {"positions": positions[None].to(self.device), "mask": mask}
        if types is not None:
            given["types"] = types[None].to(self.device)
        return self.model.hidden(ids[None].to(self.device), **given)[0]

    def elements(self, read: Read) -> list[Element]:
        """What each piece of a text stands for; spans are characters of the text that it is of."""
        return self.tokenizer.elements(read.ids, read.text)

    def relate(self, read: Read, task: str) -> Relations:
        """Which piece attended to which, from one pass over one text.

        The text of a pair is the two, with a line feed between.
        """
        text, elements = read.text, self.elements(read)
        if isinstance(text, tuple):
            first, second = text
            offset, text = len(first) + 1, f"{first}\n{second}"
            elements = _shifted(elements, self.tokenizer.encode(first, second).texts, offset)
        sequence = text_sequence("text", "text", text, elements)
        about = {"name": self.checkpoint.directory.name, "task": task, "description": ""}
        ids = torch.tensor(read.ids)
        types = None if read.types is None else torch.tensor(read.types)
        with observe(
            self.model, watch=Watch(top=_TOP), elements={"": sequence}, about=about, this_thread=True
        ) as relations:
            self.hidden(ids, torch.tensor([len(ids)]), torch.arange(len(ids)), types)
        return relations

    def _cut(self, ids: list[int], text: Text, name: str) -> list[int]:
        if not self.truncate:
            raise TextTooLong(
                f"{name} has {len(ids)} pieces, special ones among them: this model takes at most {self.most}"
            )
        if isinstance(text, tuple):
            raise TextTooLong(f"{name} is a pair of {len(ids)} pieces: a pair of more than {self.most} is not cut off")
        return [*ids[: self.most - self._suffix], *ids[len(ids) - self._suffix :]]


@dataclass(frozen=True)
class Answer:
    """What every answer about a text can be asked."""

    read: Read
    _reader: TextReader

    task = "hidden"

    @property
    def text(self) -> Text:
        """The text, or the pair."""
        return self.read.text

    @property
    def ids(self) -> tuple[int, ...]:
        """The pieces that were read."""
        return self.read.ids

    @property
    def cut(self) -> bool:
        """Whether the text has more pieces than were read."""
        return self.read.cut

    @cached_property
    def elements(self) -> list[Element]:
        """What each piece stands for; spans are characters of the text that it is of."""
        return self._reader.elements(self.read)

    @cached_property
    def relations(self) -> Relations:
        """Which piece attended to which: computed on first use, by one pass over this text alone."""
        return self._reader.relate(self.read, self.task)


def _stops(lengths: Sequence[int], pack: int) -> Iterator[int]:
    """Where each pack ends."""
    if pack < 1:
        raise ValueError(f"pack is {pack}: it must be at least 1")
    held = 0
    for i, length in enumerate(lengths):
        if held and held + length > pack:
            yield i
            held = 0
        held += length
    if lengths:
        yield len(lengths)


def _shifted(elements: Sequence[Element], texts: Sequence[int | None], offset: int) -> list[Element]:
    """The elements of a pair, with places in both texts joined."""
    return [
        Element(e.index, e.label, span=(e.span[0] + offset, e.span[1] + offset))
        if isinstance(e.span, tuple) and texts[i] == 1
        else e
        for i, e in enumerate(elements)
    ]
