"""BART (arXiv 1910.13461): an encoder-decoder that was trained to mend texts, and summarises or translates.

Notable: post-norm blocks; learned positions, in a table whose first two rows no position has; a norm of the embeddings;
one embedding for source, target and scores, to which a fixed bias may be added. Marian is built of the same parts.

    B  | batch entries    Ls | source length    d | d_model
    B' | B, or B * beams  Lt | target length    V | vocab_size
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from regard.attention.position import LearnedPositions
from regard.models.encoder_decoder import EncoderDecoderModel, check_ids
from regard.models.family import ACTIVATIONS, Family, Head, Settings
from regard.models.rules import Ignore, Join, Rename, Rule, Tie
from regard.transformer import Block, Decoder, Encoder, FeedForward, LayerNorm, MultiHeadAttention
from regard.transformer.linear import Linear, linear

_OFFSET = 2  # the first rows of the table of positions stand for no position


@dataclass(frozen=True)
class BartConfig:
    """The sizes of a `Bart`, or of a `Marian`."""

    vocab_size: int  # of the source, and of the target unless it has its own
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_feed_forward: int  # hidden widths
    decoder_feed_forward: int
    max_positions: int
    decoder_start: int  # first input of the decoder
    activation: str = "gelu"
    scaled: bool = False  # embeddings are multiplied by √d_model
    target_vocab_size: int | None = None  # of a target with an embedding of its own; None: the source's serves both
    tied: bool = True  # the target's embedding also makes the scores
    logits_bias: bool = True  # the checkpoint has a bias of the scores

    def __post_init__(self) -> None:
        for heads in (self.encoder_heads, self.decoder_heads):
            if self.d_model % heads:
                raise ValueError(f"d_model is {self.d_model}: it must be a multiple of the {heads} heads")
        if not 0 <= self.decoder_start < self.target_size:
            raise ValueError(
                f"decoder_start_token_id is {self.decoder_start}: it must be an id below {self.target_size}"
            )

    @property
    def target_size(self) -> int:
        """Pieces of the target's vocabulary."""
        return self.vocab_size if self.target_vocab_size is None else self.target_vocab_size


class LearnedInput(nn.Module):
    """Embeddings, with a learned vector for every position, normed."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__()
        self.positions = LearnedPositions(config.max_positions + _OFFSET, config.d_model)
        self.norm = LayerNorm(config.d_model)

    def forward(self, x: Tensor, start: int) -> Tensor:
        """x (B, L, d), which stand at start and after it, → (B, L, d)."""
        return self.norm(x + self.positions(x.shape[1], start + _OFFSET))


class Bart(EncoderDecoderModel):
    """Source pieces in, scores of target pieces out.

    Args:
        config: the sizes.
        entrance: makes what embeddings (B, L, d) pass on the way in, given the position of the first of them; called
            for the encoder and for the decoder.
    """

    config: BartConfig
    logits_bias: Tensor | None

    def __init__(self, config: BartConfig, entrance: Callable[[BartConfig], nn.Module] = LearnedInput) -> None:
        super().__init__()
        self.config = config
        d, own = config.d_model, config.target_vocab_size
        self.embedding = _embedding(config.vocab_size, d)
        self.target_embedding = None if own is None else _embedding(own, d)
        self.encoder_input, self.decoder_input = entrance(config), entrance(config)
        sizes = config.encoder_heads, config.encoder_feed_forward
        self.encoder = Encoder([_block(config, *sizes, cross=False) for _ in range(config.encoder_layers)])
        sizes = config.decoder_heads, config.decoder_feed_forward
        self.decoder = Decoder([_block(config, *sizes, cross=True) for _ in range(config.decoder_layers)])
        self.head = None if config.tied else Linear(d, config.target_size, bias=False)
        self.register_buffer("logits_bias", torch.zeros(1, config.target_size) if config.logits_bias else None)

    def embed_source(self, source: Tensor) -> Tensor:
        """Ids (B, Ls) → (B, Ls, d)."""
        return self._embed(source, "source", self.embedding, self.encoder_input, start=0)

    def embed_target(self, target: Tensor, start: int) -> Tensor:
        """Ids (B', Lt) → (B', Lt, d)."""
        return self._embed(target, "target", self._of_targets, self.decoder_input, start=start)

    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder states (..., d) → scores of the next piece (..., V), before softmax."""
        scores = linear(hidden, self._of_targets.weight) if self.head is None else self.head(hidden)
        return scores if self.logits_bias is None else scores + self.logits_bias[0]

    @property
    def _of_targets(self) -> nn.Embedding:
        return self.embedding if self.target_embedding is None else self.target_embedding

    def _embed(self, ids: Tensor, name: str, embedding: nn.Embedding, entrance: nn.Module, start: int) -> Tensor:
        stop = start + ids.shape[1]
        check_ids(ids, name, embedding.num_embeddings, stop=stop, most=self.config.max_positions)
        x = embedding(ids)  # (B, L, d)
        return entrance(x * math.sqrt(self.config.d_model) if self.config.scaled else x, start)


def _embedding(size: int, d: int) -> nn.Embedding:
    embedding = nn.Embedding(size, d)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def _block(config: BartConfig, heads: int, feed_forward: int, *, cross: bool) -> Block:
    attention = partial(MultiHeadAttention, config.d_model, heads)
    return Block(
        attention(),
        FeedForward(config.d_model, feed_forward, activation=config.activation),
        norm=partial(LayerNorm, config.d_model),
        cross_attention=attention(kind="cross") if cross else None,
        norm_first=False,
    )


def read_config(settings: Settings, head: Head) -> BartConfig:
    """A `BartConfig` from config.json."""
    settings.refuse("tie_word_embeddings", True)
    settings.refuse("normalize_embedding", True)
    return sizes_of(settings, decoder_start=2)


def sizes_of(settings: Settings, decoder_start: int) -> BartConfig:
    """What BART's and Marian's config.json have in common.

    Args:
        settings: the file.
        decoder_start: the default.
    """
    for name in ("normalize_before", "add_final_layer_norm"):
        settings.refuse(name, False)
    return BartConfig(
        vocab_size=settings.whole("vocab_size"),
        d_model=settings.whole("d_model", 1024),
        encoder_layers=settings.whole("encoder_layers", 12),
        decoder_layers=settings.whole("decoder_layers", 12),
        encoder_heads=settings.whole("encoder_attention_heads", 16),
        decoder_heads=settings.whole("decoder_attention_heads", 16),
        encoder_feed_forward=settings.whole("encoder_ffn_dim", 4096),
        decoder_feed_forward=settings.whole("decoder_ffn_dim", 4096),
        max_positions=settings.whole("max_position_embeddings", 1024),
        decoder_start=settings.whole("decoder_start_token_id", decoder_start, least=0),
        activation=settings.choice("activation_function", ACTIVATIONS, "gelu"),
        scaled=settings.flag("scale_embedding", False),
        logits_bias=settings.holds("final_logits_bias"),
    )


def rules(config: BartConfig) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters."""
    table: list[Rule] = [Rename("embedding.weight", "model.shared.weight")]
    for side in ("encoder", "decoder"):
        table += [
            Rename(f"{side}_input.positions", f"model.{side}.embed_positions"),
            Rename(f"{side}_input.norm", f"model.{side}.layernorm_embedding"),
            Tie(f"model.{side}.embed_tokens.weight", "model.shared.weight"),
            Ignore(f"model.{side}.version"),
        ]
    return [*table, Tie("lm_head.weight", "model.shared.weight"), *block_rules(config)]


def block_rules(config: BartConfig) -> list[Rule]:
    """The rules of the blocks, and of the bias of the scores."""
    d = config.d_model
    table: list[Rule] = [Rename("logits_bias", "final_logits_bias")]
    for side in ("encoder", "decoder"):
        layer, block = f"model.{side}.layers.{{}}.", f"{side}.blocks.{{}}."
        own = layer + "self_attn."
        table += [
            Join(block + "attention.qkv", (own + "q_proj", own + "k_proj", own + "v_proj"), (d, d, d)),
            Rename(block + "attention.out", own + "out_proj"),
            Rename(block + "attention_norm", layer + "self_attn_layer_norm"),
            Rename(block + "feed_forward.up", layer + "fc1"),
            Rename(block + "feed_forward.down", layer + "fc2"),
            Rename(block + "feed_forward_norm", layer + "final_layer_norm"),
        ]
    cross, block = "model.decoder.layers.{}.encoder_attn", "decoder.blocks.{}.cross_attention"
    table += [
        Rename(block + ".q", cross + ".q_proj"),
        Join(block + ".kv", (cross + ".k_proj", cross + ".v_proj"), (d, d)),
        Rename(block + ".out", cross + ".out_proj"),
        Rename(block + "_norm", cross + "_layer_norm"),
    ]
    return table


FAMILIES = (
    Family(
        name="bart",
        modality="text",
        model_types=("bart",),
        architectures={"BartForConditionalGeneration": "translate"},
        config=read_config,
        model=Bart,
        rules=rules,
    ),
)
