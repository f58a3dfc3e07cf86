"""What every model that writes one sequence from another has in common: the translator, BART, Marian, T5."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from regard.transformer import DecoderCache


class EncoderDecoder(Protocol):
    """A model that reads a source once and writes a target piece by piece.

    B  | batch entries    Ls | source length    d | width
    B' | B, or B * beams  Lt | target length    V | pieces of the target's vocabulary

    Its `config` has `max_positions`, that a source and a target may have at most; None where there is no limit.
    """

    config: Any

    @property
    def decoder_start(self) -> int:
        """The first input of the decoder."""
        ...

    def cache(self, capacity: int = 0) -> DecoderCache:
        """An empty cache for `decode`."""
        ...

    def encode(self, source: Tensor, source_lengths: Tensor) -> Tensor:
        """Source ids (B, Ls), of which source_lengths (B,) are real, → memory (B, Ls, d)."""
        ...

    def decode(
        self,
        target: Tensor,
        memory: Tensor | None,
        source_lengths: Tensor,
        *,
        start: int = 0,
        caches: DecoderCache | None = None,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        """Decoder states (B', Lt, d) after each of the target pieces (B', Lt).

        Args:
            target: ids that begin with `decoder_start`, or the pieces from position start on, with caches; the
                beams of a sentence stand next to each other.
            memory: (B, Ls, d) from `encode`; not read once caches hold it.
            source_lengths: (B,).
            start: position of the first of these target pieces.
            caches: from `cache`; filled by the call.
            target_lengths: (B,), real pieces of a target without beams or caches.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder states (..., d) → scores of the next piece (..., V), before softmax."""
        ...


def check_ids(ids: Tensor, name: str, vocab_size: int) -> None:
    """Refuse what is no piece, before it becomes an error deep inside.

    Raises:
        ValueError: if an id is outside the vocabulary; it begins with the name.
    """
    if ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"{name} holds the id {wrong}: ids must be in [0, {vocab_size})")
