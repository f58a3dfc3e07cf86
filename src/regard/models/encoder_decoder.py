"""What every model that writes one sequence from another has in common: the translator, BART, Marian, T5, Whisper."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regard.attention import RelativeBias
from regard.attention.mask import Causal, Mask, Padding
from regard.transformer import Decoder, DecoderCache, Encoder


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


class EncoderDecoderModel(nn.Module, ABC):
    """An `EncoderDecoder` of an encoder's and a decoder's blocks.

    A family says how sources and targets are embedded, and how scores are made; the rest is here. Its `config` has
    `decoder_layers`, `decoder_start`, the first input of the decoder, and `max_positions`, that a source of pieces and
    a target may have at most; None where there is no limit.
    """

    config: Any
    encoder: Encoder
    decoder: Decoder
    pads = True
    """Whether the lengths say what of a source is real; else all of it is read."""

    @abstractmethod
    def embed_source(self, source: Tensor) -> Tensor:
        """What `encode` reads, ids (B, Ls) for example, → (B, Ls, d).

        Raises:
            ValueError: if the source is longer than the model takes, or holds an id outside the vocabulary.
        """

    @abstractmethod
    def embed_target(self, target: Tensor, start: int) -> Tensor:
        """Ids (B', Lt), which stand at start and after it, → (B', Lt, d).

        Raises:
            ValueError: if start + Lt exceeds max_positions, or an id is outside the vocabulary.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder states (..., d) → scores of the next piece (..., V), before softmax."""

    def biases(self) -> tuple[RelativeBias | None, RelativeBias | None]:
        """What is added to the scores of the encoder's and of the decoder's self-attention."""
        return None, None

    @property
    def decoder_start(self) -> int:
        """The first input of the decoder."""
        return self.config.decoder_start

    def cache(self, capacity: int = 0) -> DecoderCache:
        """An empty cache for `decode`."""
        return DecoderCache.empty(self.config.decoder_layers, capacity)

    def encode(self, source: Tensor, source_lengths: Tensor) -> Tensor:
        """Sources, of which source_lengths (B,) positions are real, → memory (B, Ls, d).

        Raises:
            ValueError: as `embed_source`.
        """
        mask = Padding(source_lengths, source_lengths) if self.pads else None
        return self.encoder(self.embed_source(source), mask=mask, bias=self.biases()[0])

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
        """Decoder states (B', Lt, d) after each of the target pieces (B', Lt); see `EncoderDecoder.decode`.

        Right padding never changes a real piece's state; with target_lengths, padded rows are 0 after attention and no
        observer counts them.

        Raises:
            ValueError: as `embed_target`.
        """
        mask: Mask = Causal() if target_lengths is None else Causal() & Padding(target_lengths, target_lengths)
        return self.decoder(
            self.embed_target(target, start),
            memory,
            mask=mask,
            memory_mask=Padding(source_lengths, target_lengths) if self.pads else None,
            bias=self.biases()[1],
            start=start,
            cache=caches,
        )

    def forward(
        self, source: Tensor, source_lengths: Tensor, target: Tensor, target_lengths: Tensor | None = None
    ) -> Tensor:
        """Sources and the targets so far (B, Lt) → scores of each next piece (B, Lt, V).

        Args:
            source: as `encode` reads it, each entry's real positions first.
            source_lengths: (B,).
            target: ids that begin with `decoder_start`.
            target_lengths: (B,), see `decode`.
        """
        memory = self.encode(source, source_lengths)
        return self.logits(self.decode(target, memory, source_lengths, target_lengths=target_lengths))


def check_ids(ids: Tensor, name: str, vocab_size: int, *, stop: int = 0, most: int | None = None) -> None:
    """Refuse what is no piece, or has no position, before it becomes an error deep inside.

    Args:
        ids: of any shape.
        name: what errors call them.
        vocab_size: all ids must be below.
        stop: the position after the last of them.
        most: positions that there are; None: as many as will.

    Raises:
        ValueError: it begins with the name.
    """
    if most is not None and stop > most:
        raise ValueError(f"{name} has {stop} positions: this model takes at most {most}")
    if ids.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"{name} holds the id {wrong}: ids must be in [0, {vocab_size})")
