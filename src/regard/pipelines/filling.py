"""Masked words: texts with gaps in, the likeliest pieces for each gap out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from regard.inputs.tokenizer import Tokenizer
from regard.models import ModelError
from regard.models.checkpoint import Checkpoint
from regard.pipelines.packing import PACK, Answer, Progress, Read, TextReader, Texts
from regard.pipelines.texts import RequestError, name_of

_ROWS = 256  # gaps whose scores of the whole vocabulary are held at a time


@dataclass(frozen=True)
class Guess:
    """What may stand in a gap."""

    id: int
    piece: str  # as it is written, without the space that may go before it
    probability: float


@dataclass(frozen=True)
class Filling(Answer):
    """A text with gaps, and the likeliest pieces for each gap, the likeliest first."""

    gaps: tuple[tuple[Guess, ...], ...]
    filled: str  # the text, as the pieces write it, with the likeliest piece in every gap
    task = "fill"

    def to_dict(self) -> dict[str, Any]:
        """Text, guesses and the filled text as data."""
        gaps = [[{"piece": g.piece, "id": g.id, "probability": g.probability} for g in gap] for gap in self.gaps]
        return {"text": self.text, "gaps": gaps, "filled": self.filled}

    def report(self) -> dict[str, Any]:
        """Text, answer and relations as data."""
        return self.relations.to_dict() | {"input": self.text, "answer": self.filled, "alignment": None}


class FillingPipeline:
    """Guesses masked words; see `pipeline`. Each gap is guessed by itself, whatever stands in the others.

    Args:
        checkpoint: with the head "fill".
        tokenizer: the model's.
        device: where to compute; the CPU by default.
        top: guesses for each gap.

    Raises:
        ModelError: if the model has another head, or its tokenizer no piece for a gap.
        TokenizerError: if the tokenizer does not fit the model.
        RequestError: if top is less than 1 or more than the vocabulary.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device | None = None,
        top: int = 5,
    ) -> None:
        if checkpoint.head != "fill":
            raise ModelError(f"{checkpoint.directory} has the head {checkpoint.head!r}: it must be 'fill'")
        if tokenizer.mask is None:
            raise ModelError(f"{checkpoint.directory}: its tokenizer has no piece for a masked word")
        self.reader = TextReader(checkpoint, tokenizer, device=device)
        self.mask = tokenizer.mask
        self.most_top = min(tokenizer.vocab_size, self.reader.model.config.vocab_size)
        self.top = self._checked(top)

    @property
    def gap(self) -> str:
        """How a gap is written in a text, for example [MASK]."""
        return self.reader.tokenizer.piece(self.mask)

    def has_gap(self, text: str) -> bool:
        """Whether there is something to guess in a text."""
        return self.mask in self.reader.tokenizer.encode(text).ids

    @overload
    def __call__(self, text: str, *, top: int | None = None) -> Filling: ...
    @overload
    def __call__(
        self,
        text: Texts,
        *,
        top: int | None = None,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> list[Filling]: ...
    def __call__(
        self,
        text: str | Texts,
        *,
        top: int | None = None,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Filling | list[Filling]:
        """Guess the gaps of a text, or of several.

        Args:
            text: one or several, each with at least one gap, written as `gap` says.
            top: guesses for each gap; the pipeline's own number unless given.
            names: what messages call the texts, such as "line 3".
            progress: called with the number of texts done.

        Raises:
            TextTooLong: if a text has more pieces than the model has positions; nothing is computed then.
            RequestError: if a text is empty or has no gap, or top is not what it may be.
            TypeError: if one is no string.
        """
        texts = [text] if isinstance(text, str) else text
        count = self.top if top is None else self._checked(top)
        reads = self.reader.read(texts, names)
        for i, read in enumerate(reads):
            if self.mask not in read.ids:
                name = name_of(names, i, len(reads))
                raise RequestError(f"{name} has no gap: write {self.gap} where a word is to be guessed")
        places = torch.tensor([i == self.mask for read in reads for i in read.ids])  # (all pieces,)
        rows, first = [], 0
        for pack in self.reader.packs(reads, pack=PACK, progress=progress):
            stop = first + len(pack.rows)
            rows.append(pack.rows[places[first:stop].to(pack.rows.device)])
            first = stop
        guesses = iter(self._guesses(torch.cat(rows), count) if rows else [])
        found = [self._filling(read, [next(guesses) for i in read.ids if i == self.mask]) for read in reads]
        return found[0] if isinstance(text, str) else found

    @torch.no_grad()
    def _guesses(self, rows: Tensor, count: int) -> list[tuple[Guess, ...]]:
        """The likeliest pieces for each of the gaps whose rows these are, (gaps, d)."""
        found: list[tuple[Guess, ...]] = []
        for part in rows.split(_ROWS):
            scores = self.reader.model.head(part).float()  # (gaps, V)
            top = scores.topk(count)
            probabilities = (top.values - scores.logsumexp(-1, keepdim=True)).exp()
            for ids, shares in zip(top.indices.tolist(), probabilities.tolist(), strict=True):
                found.append(tuple(Guess(i, self._piece(i), p) for i, p in zip(ids, shares, strict=True)))
        return found

    def _piece(self, index: int) -> str:
        """A piece as a person reads it."""
        tokenizer = self.reader.tokenizer
        if index >= tokenizer.vocab_size:
            return f"<{index}>"  # a row of the embedding beyond the vocabulary
        return tokenizer.decode([index], skip_specials=False).strip() or tokenizer.piece(index)

    def _filling(self, read: Read, gaps: Sequence[tuple[Guess, ...]]) -> Filling:
        best = iter(gap[0].id for gap in gaps)
        ids = [next(best) if i == self.mask else i for i in read.ids]
        known = [i for i in ids if i < self.reader.tokenizer.vocab_size]
        return Filling(read, self.reader, tuple(gaps), self.reader.tokenizer.decode(known))

    def _checked(self, top: int) -> int:
        if not 1 <= top <= self.most_top:
            raise RequestError(f"top is {top}: it must be from 1 to {self.most_top}")
        return top
