"""Many texts at once: those of like length together, in batches whose memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from regard.generation.beam import Hypothesis, beam_search
from regard.generation.constraints import Constraints
from regard.generation.steps import EncoderDecoderSteps
from regard.inputs.text import TextTokenizer
from regard.models.encoder_decoder import EncoderDecoder

BATCH_TOKENS = 2048
"""Source positions, padding among them, that are computed together at most."""

BATCH_PIECES = 2**15
"""Pieces that may be written together at most: texts times beams times the pieces each may have. The caches grow with
it: with 4 layers of width 128 to 128 MiB, and as much again where hypotheses are reordered."""


class SentenceTranslator(EncoderDecoder, Protocol):
    """An `EncoderDecoder` with one vocabulary for source and target."""

    embedding: nn.Embedding


@torch.inference_mode()
def translate_ids(
    model: SentenceTranslator,
    tokenizer: TextTokenizer,
    sources: Sequence[Sequence[int]],
    *,
    beams: int = 5,
    alpha: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
    batch_pieces: int = BATCH_PIECES,
) -> list[Hypothesis]:
    """The best hypothesis of every source, in order.

    A hypothesis may have twice the pieces of its source and ten more, but no more than the model has positions.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        sources: ids, each source ended by the end piece and no longer than the model's positions.
        beams: see `beam_search`.
        alpha: the same.
        batch_tokens: see `BATCH_TOKENS`. One source is always computed, whatever the budgets.
        batch_pieces: see `BATCH_PIECES`.
    """
    device = model.embedding.weight.device
    lengths = [len(ids) for ids in sources]
    limits = [min(2 * length + 10, model.config.max_positions) for length in lengths]
    found: dict[int, Hypothesis] = {}
    for batch in plan(lengths, limits, beams=beams, batch_tokens=batch_tokens, batch_pieces=batch_pieces):
        rows = [torch.tensor(sources[i]) for i in batch]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad)
        hypotheses = beam_search(
            EncoderDecoderSteps(model, padded.to(device), torch.tensor([lengths[i] for i in batch], device=device)),
            torch.tensor([limits[i] for i in batch], device=device),
            eos=tokenizer.eos,
            beams=beams,
            alpha=alpha,
            constraints=Constraints(banned=(tokenizer.pad, tokenizer.bos, tokenizer.unk)),
        )
        found |= zip(batch, hypotheses, strict=True)
    return [found[i] for i in range(len(sources))]


def plan(
    lengths: Sequence[int], limits: Sequence[int], *, beams: int, batch_tokens: int, batch_pieces: int
) -> Iterator[list[int]]:
    """Indices of texts that are computed together, the shortest first.

    Args:
        lengths: pieces of each source.
        limits: pieces that each answer may have, in the order of the lengths.
        beams: hypotheses a text.
        batch_tokens: texts times longest source, at most.
        batch_pieces: texts times beams times longest answer, at most.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        size = len(batch) + 1
        if batch and (size * lengths[i] > batch_tokens or size * beams * limits[i] > batch_pieces):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
