"""GPT-2: a decoder of pre-norm blocks that writes text, piece after piece.

Notable: learned positions, which count from each entry's first real piece; biases everywhere; the embedding also makes
the scores. Checkpoints keep their matrices as (in, out). Some models scale scores by their layer too (Mistral's GPT-2
and other models trained in half precision).

    B | batch entries    L | positions of a call    d | d_model    V | vocab_size
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from regard.attention import Causal, KVCache
from regard.attention.mask import Mask, Padding
from regard.attention.position import LearnedPositions
from regard.models.family import ACTIVATIONS, Family, Head, Settings
from regard.models.rules import Ignore, Prefix, Rename, Rule, Tie
from regard.transformer import Block, Decoder, FeedForward, LayerNorm, MultiHeadAttention
from regard.transformer.linear import Linear, linear


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a `GPT2`."""

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    feed_forward: int  # hidden width
    max_positions: int
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"
    scaled: bool = True  # scores are divided by the root of the head size
    scaled_by_layer: bool = False  # and by the layer's number, which begins at 1
    tied: bool = True  # the embedding also makes the scores


class GPT2(nn.Module):
    """Pieces in, scores of the next piece out."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = LearnedPositions(config.max_positions, config.d_model)
        norm = partial(LayerNorm, config.d_model, eps=config.norm_eps)
        self.decoder = Decoder([_block(config, layer) for layer in range(config.layers)], norm())
        self.head = None if config.tied else Linear(config.d_model, config.vocab_size, bias=False)

    def cache(self, capacity: int = 0, *, padded: bool = False) -> KVCache:
        """An empty cache; entries that are padded on the left need no other."""
        return KVCache.dense(self.config.layers, capacity)

    def hidden(
        self,
        ids: Tensor,
        *,
        start: int = 0,
        padding: Tensor | None = None,
        cache: KVCache | None = None,
        last: int | None = None,
    ) -> Tensor:
        """The last hidden states.

        Args:
            ids: (B, L), the pieces from position start on.
            start: how many pieces the cache holds already, padding among them.
            padding: (B,), how many pieces at the beginning of each entry are none; they are never seen, and
                positions count from the first piece after them.
            cache: from `cache`; filled by the call.
            last: how many positions at the end are wanted; by default all.

        Returns:
            (B, L, d); (B, last, d) where last is given.

        Raises:
            ValueError: if an entry has more pieces than there are learned positions.
        """
        x = self.embedding(ids) + self._positions(start, ids.shape[1], padding)  # (B, L, d)
        mask: Mask = Causal()
        if padding is not None:
            mask = mask & Padding((start + ids.shape[1] - padding).clamp(min=0), left=True)
        return self.decoder(x, mask=mask, start=start, cache=cache, last=last)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., d) → scores of the next piece (..., V), before softmax."""
        return linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def forward(
        self, ids: Tensor, *, start: int = 0, padding: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Ids (B, L) → scores of each next piece (B, L, V); the arguments are those of `hidden`."""
        return self.logits(self.hidden(ids, start=start, padding=padding, cache=cache))

    def _positions(self, start: int, length: int, padding: Tensor | None) -> Tensor:
        """The vectors of `length` positions from start on: (L, d), or (B, L, d) with padding."""
        if padding is None:
            return self.positions(length, start)
        rows = torch.arange(start, start + length, device=padding.device) - padding[:, None]  # (B, L)
        last = int(rows.max()) if rows.numel() else 0
        if last >= self.config.max_positions:
            raise ValueError(f"an entry has {last + 1} pieces: this model takes at most {self.config.max_positions}")
        return self.positions.weight[rows.clamp(min=0)]  # what a piece that is none gets is never seen


def _block(config: GPT2Config, layer: int) -> Block:
    scale = (config.d_model // config.heads) ** -0.5 if config.scaled else 1.0
    return Block(
        MultiHeadAttention(
            config.d_model, config.heads, scale=scale / (layer + 1) if config.scaled_by_layer else scale
        ),
        FeedForward(config.d_model, config.feed_forward, activation=config.activation),
        norm=partial(LayerNorm, config.d_model, eps=config.norm_eps),
    )


def read_config(settings: Settings, head: Head) -> GPT2Config:
    """A `GPT2Config` from config.json.

    `reorder_and_upcast_attn` changes nothing here: scores are computed in float32 at least, whatever it says.
    """
    settings.refuse("add_cross_attention", False)
    d_model = settings.whole("n_embd", 768)
    return GPT2Config(
        vocab_size=settings.whole("vocab_size", 50257),
        d_model=d_model,
        layers=settings.whole("n_layer", 12),
        heads=settings.whole("n_head", 12),
        feed_forward=settings.whole("n_inner", 4 * d_model),
        max_positions=settings.whole("n_positions", 1024),
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        activation=settings.choice("activation_function", ACTIVATIONS, "gelu_new"),
        scaled=settings.flag("scale_attn_weights", True),
        scaled_by_layer=settings.flag("scale_attn_by_inverse_layer_idx", False),
        tied=settings.flag("tie_word_embeddings", True),
    )


def rules(config: GPT2Config) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters."""
    layer, block = "transformer.h.{}.", "decoder.blocks.{}."
    table: list[Rule] = [
        Prefix("transformer."),  # the first checkpoints have none
        Rename("embedding", "transformer.wte"),
        Rename("positions", "transformer.wpe"),
        Rename(block + "attention.qkv", layer + "attn.c_attn", transposed=True),
        Rename(block + "attention.out", layer + "attn.c_proj", transposed=True),
        Rename(block + "attention_norm", layer + "ln_1"),
        Rename(block + "feed_forward.up", layer + "mlp.c_fc", transposed=True),
        Rename(block + "feed_forward.down", layer + "mlp.c_proj", transposed=True),
        Rename(block + "feed_forward_norm", layer + "ln_2"),
        Rename("decoder.norm", "transformer.ln_f"),
        Ignore(layer + "attn.bias"),  # older checkpoints keep the causal mask
        Ignore(layer + "attn.masked_bias"),
    ]
    table.append(Tie("lm_head.weight", "transformer.wte.weight") if config.tied else Rename("head", "lm_head"))
    return table


FAMILIES = (
    Family(
        name="gpt2",
        modality="text",
        model_types=("gpt2",),
        architectures={"GPT2LMHeadModel": "generate"},
        config=read_config,
        model=GPT2,
        rules=rules,
    ),
)
