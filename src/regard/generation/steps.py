"""What a search asks of a model: the scores of the next piece, and to follow what becomes of its hypotheses."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from regard.models.translator import Translator
from regard.transformer import DecoderCache


class Steps(Protocol):
    """A decoder being run one piece at a time, for N hypotheses of S sentences.

    The hypotheses of a sentence stand next to each other, and all sentences have equally many: N = S * K.
    """

    def scores(self, pieces: Tensor, position: int) -> Tensor:
        """Scores (N, V) before softmax of what follows `pieces` (N,), the pieces at `position`."""
        ...

    def follow(self, rows: Tensor) -> None:
        """Hypothesis i is from now on a continuation of hypothesis rows[i]; rows (N',) may repeat or leave out."""
        ...

    def keep(self, sentences: Tensor) -> None:
        """Only these of the S sentences go on; called after `follow` has left out the others' hypotheses."""
        ...


class TranslatorSteps:
    """`Steps` of a `Translator`, on a cache: each piece is computed once, each source once.

    Args:
        model: in evaluation mode.
        source: ids (S, Ls).
        source_lengths: (S,).
        cached: False computes everything anew at every step; the result is the same.
    """

    def __init__(self, model: Translator, source: Tensor, source_lengths: Tensor, *, cached: bool = True) -> None:
        self._model = model
        self._lengths = source_lengths
        self._memory = model.encode(source, source_lengths)  # (S, Ls, d)
        self._cache = DecoderCache.empty(model.config.decoder_layers) if cached else None
        self._written: Tensor | None = None  # (N, pieces so far), without a cache

    def scores(self, pieces: Tensor, position: int) -> Tensor:
        """See `Steps.scores`."""
        target, start = pieces[:, None], position
        if self._cache is None:
            self._written = target if self._written is None else torch.cat([self._written, target], dim=1)
            target, start = self._written, 0
        hidden = self._model.decode(target, self._memory, self._lengths, start=start, caches=self._cache)
        return self._model.logits(hidden[:, -1])  # (N, V)

    def follow(self, rows: Tensor) -> None:
        """See `Steps.follow`."""
        if self._cache is not None:
            self._cache.own.reorder(rows)
        elif self._written is not None:
            self._written = self._written[rows]

    def keep(self, sentences: Tensor) -> None:
        """See `Steps.keep`."""
        self._lengths = self._lengths[sentences]
        self._memory = self._memory[sentences]
        if self._cache is not None:
            self._cache.memory.reorder(sentences)
