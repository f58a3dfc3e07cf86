"""T5 (arXiv 1910.10683), and its version 1.1, Flan-T5 and mT5: a task in words in, its answer out.

Notable: no position but a learned bias a head and bucket of distance, which all layers of a stack share; scores are
not scaled; RMS norms before each sublayer; no other biases. The embedding also makes the scores, after a factor
d_model^-½, or, in version 1.1 (with gated feed-forward, arXiv 2002.05202), a matrix of its own does without.

    B  | batch entries    Ls | source length    d | d_model
    B' | B, or B * beams  Lt | target length    V | vocab_size
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from regard.attention.position import LogBuckets, RelativeBias
from regard.models.encoder_decoder import EncoderDecoderModel, check_ids
from regard.models.family import ACTIVATIONS, Family, Head, Settings
from regard.models.rules import Ignore, Join, Rename, Rule, Tie
from regard.transformer import Block, Decoder, Encoder, FeedForward, MultiHeadAttention, RMSNorm
from regard.transformer.linear import Linear, linear


@dataclass(frozen=True)
class T5Config:
    """The sizes of a `T5`."""

    vocab_size: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    head_size: int
    feed_forward: int  # hidden width
    decoder_start: int = 0  # first input of the decoder
    buckets: int = 32  # of distances
    furthest: int = 128  # distance from which on all share a bucket
    norm_eps: float = 1e-6
    activation: str = "relu"
    gated: bool = False
    tied: bool = True  # the embedding also makes the scores
    scaled: bool = True  # what the decoder ends in is divided by √d_model before that

    @property
    def target_size(self) -> int:
        """Pieces of the target's vocabulary, which is the source's."""
        return self.vocab_size

    @property
    def max_positions(self) -> None:
        """There is no limit, although it was trained on 512 positions."""

    def __post_init__(self) -> None:
        if not 0 <= self.decoder_start < self.vocab_size:
            raise ValueError(
                f"decoder_start_token_id is {self.decoder_start}: it must be an id below {self.vocab_size}"
            )
        if self.buckets < 4 or self.buckets % 4 or self.furthest <= self.buckets // 2:
            raise ValueError(
                f"there are {self.buckets} buckets for distances up to {self.furthest}: their number must be a multiple"
                " of 4, and the distance more than half of it"
            )


class T5(EncoderDecoderModel):
    """Source pieces in, scores of target pieces out."""

    config: T5Config

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder_bias, self.decoder_bias = (
            nn.Parameter(torch.empty(config.buckets, config.heads).normal_(std=config.d_model**-0.5)) for _ in range(2)
        )
        norm = partial(RMSNorm, config.d_model, eps=config.norm_eps)
        self.encoder = Encoder([_block(config, cross=False) for _ in range(config.encoder_layers)], norm())
        self.decoder = Decoder([_block(config, cross=True) for _ in range(config.decoder_layers)], norm())
        self.head = None if config.tied else Linear(config.d_model, config.vocab_size, bias=False)

    def embed_source(self, source: Tensor) -> Tensor:
        """Ids (B, Ls) → (B, Ls, d)."""
        check_ids(source, "source", self.config.vocab_size)
        return self.embedding(source)

    def embed_target(self, target: Tensor, start: int) -> Tensor:
        """Ids (B', Lt) → (B', Lt, d), whatever their positions."""
        check_ids(target, "target", self.config.vocab_size)
        return self.embedding(target)

    def biases(self) -> tuple[RelativeBias, RelativeBias]:
        """What the distances of positions add to the scores."""
        sizes = self.config.buckets, self.config.furthest
        return (
            RelativeBias(self.encoder_bias, LogBuckets(*sizes)),
            RelativeBias(self.decoder_bias, LogBuckets(*sizes, bidirectional=False)),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder states (..., d) → scores of the next piece (..., V), before softmax."""
        if self.config.scaled:
            hidden = hidden * self.config.d_model**-0.5
        return linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)


def _block(config: T5Config, *, cross: bool) -> Block:
    attention = partial(
        MultiHeadAttention, config.d_model, config.heads, head_size=config.head_size, bias=False, scale=1.0
    )
    return Block(
        attention(),
        FeedForward(config.d_model, config.feed_forward, activation=config.activation, gated=config.gated, bias=False),
        norm=partial(RMSNorm, config.d_model, eps=config.norm_eps),
        cross_attention=attention(kind="cross") if cross else None,
    )


_FEED_FORWARDS = (
    {name: (activation, False) for name, activation in ACTIVATIONS.items()}
    | {f"gated-{name}": (activation, True) for name, activation in ACTIVATIONS.items()}
    | {"gated-gelu": ("gelu_tanh", True)}  # which its name does not say
)


def read_config(settings: Settings, head: Head) -> T5Config:
    """A `T5Config` from config.json.

    Whether a matrix of its own makes the scores, the tensors say: transformers writes tie_word_embeddings true either
    way from its version 5 on, and keeps beside it whether the states are scaled.
    """
    mt5 = settings.values.get("model_type") == "mt5"
    activation, gated = settings.choice("feed_forward_proj", _FEED_FORWARDS, "gated-gelu" if mt5 else "relu")
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    embedding = next((name for name in names if settings.holds(name)), None)
    layers = settings.whole("num_layers", 8 if mt5 else 6)
    return T5Config(
        vocab_size=settings.whole("vocab_size"),
        d_model=settings.whole("d_model", 512),
        encoder_layers=layers,
        decoder_layers=settings.whole("num_decoder_layers", layers),
        heads=settings.whole("num_heads", 6 if mt5 else 8),
        head_size=settings.whole("d_kv", 64),
        feed_forward=settings.whole("d_ff", 1024 if mt5 else 2048),
        decoder_start=settings.whole("decoder_start_token_id", settings.whole("pad_token_id", 0, least=0), least=0),
        buckets=settings.whole("relative_attention_num_buckets", 32),
        furthest=settings.whole("relative_attention_max_distance", 128),
        norm_eps=settings.number("layer_norm_epsilon", 1e-6),
        activation=activation,
        gated=gated,
        tied=embedding is None or not settings.holds("lm_head.weight", beside=embedding),
        scaled=not mt5 and settings.flag("scale_decoder_outputs", settings.flag("tie_word_embeddings", True)),
    )


def rules(config: T5Config) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters."""
    rows, hidden = config.heads * config.head_size, config.feed_forward
    relative = "SelfAttention.relative_attention_bias.weight"
    table: list[Rule] = [Rename("embedding.weight", "shared.weight")]
    for side, last in (("encoder", 1), ("decoder", 2)):
        layer, block = f"{side}.block.{{}}.layer.", f"{side}.blocks.{{}}."
        own, inner = layer + "0.SelfAttention.", f"{layer}{last}.DenseReluDense."
        table += [
            Tie(f"{side}.embed_tokens.weight", "shared.weight"),
            Rename(f"{side}_bias", f"{side}.block.0.layer.0.{relative}"),
            Join(block + "attention.qkv", (own + "q", own + "k", own + "v"), (rows, rows, rows)),
            Rename(block + "attention.out", own + "o"),
            Rename(block + "attention_norm", layer + "0.layer_norm"),
            Join(block + "feed_forward.up", (inner + "wi_0", inner + "wi_1"), (hidden, hidden))
            if config.gated
            else Rename(block + "feed_forward.up", inner + "wi"),
            Rename(block + "feed_forward.down", inner + "wo"),
            Rename(block + "feed_forward_norm", f"{layer}{last}.layer_norm"),
            Rename(f"{side}.norm", f"{side}.final_layer_norm"),
        ]
    cross, block = "decoder.block.{}.layer.1.EncDecAttention.", "decoder.blocks.{}.cross_attention"
    return [
        *table,
        Rename(block + ".q", cross + "q"),
        Join(block + ".kv", (cross + "k", cross + "v"), (rows, rows)),
        Rename(block + ".out", cross + "o"),
        Rename(block + "_norm", "decoder.block.{}.layer.1.layer_norm"),
        # Older checkpoints keep a bias that no layer reads.
        Ignore(cross + "relative_attention_bias.weight"),
        Tie("lm_head.weight", "shared.weight") if config.tied else Rename("head", "lm_head"),
    ]


FAMILIES = tuple(
    Family(
        name=name,
        modality="text",
        model_types=(name,),
        architectures={f"{title}ForConditionalGeneration": "translate"},
        config=read_config,
        model=T5,
        rules=rules,
    )
    for name, title in (("t5", "T5"), ("mt5", "MT5"))
)
