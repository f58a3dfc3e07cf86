"""What writing asks of a model: the scores of the next piece, and to follow what becomes of its hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from regard.models.encoder_decoder import EncoderDecoder


class Steps(Protocol):
    """A decoder being run one piece at a time, for N hypotheses of S sentences.

    The hypotheses of a sentence stand next to each other, and all sentences have equally many: N = S * K.
    """

    def prompt_scores(self) -> Tensor:
        """Scores (S, V) before softmax of what follows each sentence's prompt: the first call."""
        ...

    def scores(self, pieces: Tensor, position: int) -> Tensor:
        """Scores (N, V) of what follows `pieces` (N,), the pieces at `position` of the answers, from 0 on."""
        ...

    def follow(self, rows: Tensor) -> None:
        """Hypothesis i is from now on a continuation of hypothesis rows[i]; rows (N',) may repeat or leave out."""
        ...

    def keep(self, sentences: Tensor) -> None:
        """Only these of the S sentences go on; called after `follow` has left out the others' hypotheses."""
        ...


class EncoderDecoderSteps:
    """`Steps` of a model such as the translator, on a cache: each piece is computed once, each source once.

    Args:
        model: in evaluation mode.
        source: what the model's `encode` reads: ids (S, Ls) for example.
        source_lengths: (S,).
        prompts: what the decoder reads first, equally much of each sentence; the model's `decoder_start` unless given.
        memory: (S, Ls, d), what the model's `encode` makes of the source; computed unless given.
        vocabulary: ids from here on, which some models have to fill up their matrices, get no scores.
        cached: False computes everything anew at every step; the result is the same.

    Raises:
        ValueError: if the prompts are of unequal length.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        source: Tensor,
        source_lengths: Tensor,
        prompts: Sequence[Sequence[int]] | None = None,
        *,
        memory: Tensor | None = None,
        vocabulary: int | None = None,
        cached: bool = True,
    ) -> None:
        prompts = [[model.decoder_start]] * len(source) if prompts is None else prompts
        if len({len(prompt) for prompt in prompts}) > 1:
            raise ValueError("prompts are of unequal length: those of a decoder that reads sources must be of one")
        self._model = model
        self._vocabulary = vocabulary
        self._prompts = torch.tensor([[*prompt] for prompt in prompts], device=source_lengths.device)  # (S, P)
        self._length = self._prompts.shape[-1]
        self._lengths = source_lengths
        self._memory = model.encode(source, source_lengths) if memory is None else memory
        self._cache = model.cache() if cached else None
        self._written: Tensor | None = None  # (N, pieces so far), without a cache

    def prompt_scores(self) -> Tensor:
        """See `Steps.prompt_scores`."""
        return self._scores(self._prompts, 0)

    def scores(self, pieces: Tensor, position: int) -> Tensor:
        """See `Steps.scores`."""
        return self._scores(pieces[:, None], self._length + position)

    def _scores(self, target: Tensor, start: int) -> Tensor:
        if self._cache is None:
            self._written = target if self._written is None else torch.cat([self._written, target], dim=1)
            target, start = self._written, 0
        hidden = self._model.decode(target, self._memory, self._lengths, start=start, caches=self._cache)
        return self._model.logits(hidden[:, -1])[:, : self._vocabulary]  # (N, V)

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
