"""The recurrent translator: a bidirectional LSTM encoder and an LSTM decoder with attention, before Transformers.

Notable: attention (arXiv 1409.0473) is multiplicative, a learned matrix between state and memory (arXiv 1508.04025,
"general"), through `regard.attend`, so that it can be observed; it reads the state of the first decoder layer, and what
it found goes into every layer above it (arXiv 1609.08144), so that the whole target is computed layer by layer. One
embedding for source, target and output, as `regard.models.translator.Translator` has it.

    B  | batch entries    Ls | source length    d | d_model
    B' | B, or B * beams  Lt | target length    V | vocab_size
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.attention.cache import CrossSlot, KVCache, Slot
from regard.attention.mask import Padding
from regard.models.encoder_decoder import check_ids
from regard.training.baselines.recurrent import State, cell_layer, run_cell, run_packed
from regard.training.errors import TrainingError
from regard.transformer import DecoderCache, MultiHeadAttention


@dataclass(frozen=True)
class RecurrentTranslatorConfig:
    """The sizes of a `RecurrentTranslator`."""

    vocab_size: int
    d_model: int = 256  # width of embedding, decoder states and memory; even
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.3  # of embeddings and every layer's output
    max_positions: int = 256  # longest source and longest target, as the translator beside it has
    pad: int = 0
    bos: int = 1
    eos: int = 2


class StateSlot(Slot):
    """One LSTM layer's state (1, B, d) twice, in place of keys and values: always the last one alone."""

    def replace(self, state: State, added: int) -> None:
        """Keep the state after so many more pieces."""
        hidden, cell = (part.transpose(0, 1)[:, None] for part in state)  # (B, 1, 1, d): one head, one element
        self._key, self._value = hidden, cell
        self.length += added
        self.first = self.length - 1

    @property
    def state(self) -> State | None:
        """The state; None before there was a piece."""
        if self._key is None or self._value is None:
            return None
        return tuple(part[:, 0].transpose(0, 1).contiguous() for part in (self._key, self._value))


class RecurrentTranslator(nn.Module):
    """Source pieces in, scores of target pieces out: an `EncoderDecoder`.

    Raises:
        TrainingError: if d_model is odd, or there is no layer on a side.
    """

    def __init__(self, config: RecurrentTranslatorConfig) -> None:
        super().__init__()
        d = config.d_model
        if d < 2 or d % 2 or min(config.encoder_layers, config.decoder_layers) < 1:
            layers = f"{config.encoder_layers} and {config.decoder_layers}"
            raise TrainingError(f"d_model is {d} and layers are {layers}; they may be even, and 1 or more")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, d)
        nn.init.normal_(self.embedding.weight, std=d**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(cell_layer("lstm", d, d // 2, both=True) for _ in range(config.encoder_layers))
        self.encoder_norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(config.encoder_layers + 1))
        widths = [d] + [2 * d] * (config.decoder_layers - 1)  # with the context beside, from the second layer on
        self.decoder = nn.ModuleList(cell_layer("lstm", width, d) for width in widths)
        self.decoder_norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(config.decoder_layers + 1))
        self.begin = nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(config.decoder_layers))
        self.attention = MultiHeadAttention(d, 1, kind="cross", bias=False)
        self.join = nn.Linear(2 * d, d)

    @property
    def decoder_start(self) -> int:
        """The first input of the decoder."""
        return self.config.bos

    def cache(self, capacity: int = 0) -> DecoderCache:
        """An empty cache for `decode`; its size does not grow."""
        slots: list[Slot] = [StateSlot() for _ in range(self.config.decoder_layers)]
        return DecoderCache(own=KVCache(slots), memory=KVCache([CrossSlot()]))

    def encode(self, source: Tensor, source_lengths: Tensor) -> Tensor:
        """Source ids (B, Ls), of which source_lengths (B,) are real, → memory (B, Ls, d), 0 at padding.

        Raises:
            ValueError: if source is longer than max_positions or holds an id outside the vocabulary.
        """
        x = self._embed(source, "source", 0)  # (B, Ls, d)
        for cell, norm in zip(self.encoder, self.encoder_norms, strict=False):
            x = x + self.dropout(run_packed(cell, norm(x), source_lengths))
        real = torch.arange(x.shape[1], device=x.device) < source_lengths[:, None]  # (B, Ls)
        return self.encoder_norms[-1](x).masked_fill(~real[..., None], 0)

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
            target: ids that begin with bos, or the pieces from position start on, with caches; the beams of a
                sentence stand next to each other.
            memory: (B, Ls, d) from `encode`; not read once caches hold it.
            source_lengths: (B,).
            start: position of the first of these target pieces.
            caches: from `cache`; filled by the call.
            target_lengths: (B,), real pieces of a target; rows that are padded are not seen as rows of attention.

        Raises:
            ValueError: if start + Lt exceeds max_positions or an id is outside the vocabulary, or memory is missing at
                the beginning.
        """
        x = self._embed(target, "target", start)  # (B', Lt, d)
        states = self._states(memory, source_lengths, len(target), caches)
        mask = Padding(source_lengths, target_lengths)
        context: Tensor | None = None
        for i, (cell, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=False)):
            y = norm(x)
            y, state = run_cell(cell, y if context is None else torch.cat([y, context], 2), states[i])
            x = x + self.dropout(y)
            if context is None:
                slot = None if caches is None else caches.memory[0]
                context = self.dropout(self.attention(x, memory, mask=mask, cache=slot))
            if caches is not None:
                slot = caches.own[i]
                assert isinstance(slot, StateSlot)
                slot.replace(state, target.shape[1])
        assert context is not None
        return self.decoder_norms[-1](x + torch.tanh(self.join(torch.cat([x, context], 2))))

    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder states (..., d) → scores of the next piece (..., V), before softmax."""
        return F.linear(hidden, self.embedding.weight)

    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor) -> Tensor:
        """Source (B, Ls) and the target so far (B, Lt) → scores of each next piece (B, Lt, V)."""
        return self.logits(self.decode(target, self.encode(source, source_lengths), source_lengths))

    def _states(self, memory: Tensor | None, lengths: Tensor, entries: int, caches: DecoderCache | None) -> list[State]:
        """What every decoder layer begins with: its state so far, or a guess from the mean of the memory."""
        if caches is not None:
            kept = [slot.state for slot in caches.own if isinstance(slot, StateSlot)]
            if all(state is not None for state in kept):
                return [state for state in kept if state is not None]
        if memory is None:
            raise ValueError("memory is None at the beginning of a target: it must be (B, Ls, d)")
        mean = memory.sum(1) / lengths[:, None]  # (B, d)
        mean = mean.repeat_interleave(entries // len(mean), 0)  # (B', d)
        return [tuple(torch.tanh(part(mean)).chunk(2, 1)[k][None].contiguous() for k in (0, 1)) for part in self.begin]

    def _embed(self, ids: Tensor, name: str, start: int) -> Tensor:
        stop, limit = start + ids.shape[-1], self.config.max_positions
        if stop > limit:
            raise ValueError(f"{name} has {stop} positions: this model takes at most {limit}")
        check_ids(ids, name, self.config.vocab_size)
        return self.dropout(self.embedding(ids) * self.config.d_model**0.5)
