"""Whisper (arXiv 2212.04356): 30 seconds of sound in, the text that is spoken in them out.

Notable: two convolutions over the log-mel spectrogram, the second of which halves its frames; a sinusoidal table of
positions for them, which checkpoints keep, and learned positions for the text; pre-norm blocks whose keys have no bias;
no mask over the sound, whose silence at the end is heard, too. What the decoder reads first says the language and the
task. The embedding of pieces also makes the scores.

    B  | batch entries    M  | mel bins        d | d_model
    B' | B, or B * beams  T  | frames, 2 * Ls  V | vocab_size
    Ls | positions of the sound                Lt | target length
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.attention.position import LearnedPositions
from regard.models.encoder_decoder import EncoderDecoderModel, check_ids
from regard.models.family import ACTIVATIONS, Family, Head, Settings
from regard.models.rules import Join, Rename, Rule, Tie
from regard.transformer import Block, Decoder, Encoder, FeedForward, LayerNorm, MultiHeadAttention
from regard.transformer.linear import linear


@dataclass(frozen=True)
class WhisperConfig:
    """The sizes of a `Whisper`."""

    vocab_size: int
    mels: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_feed_forward: int  # hidden widths
    decoder_feed_forward: int
    source_positions: int  # of the sound, half as many as it has frames
    max_positions: int  # of the text
    decoder_start: int  # first input of the decoder
    activation: str = "gelu"

    def __post_init__(self) -> None:
        for heads in (self.encoder_heads, self.decoder_heads):
            if self.d_model % heads:
                raise ValueError(f"d_model is {self.d_model}: it must be a multiple of the {heads} heads")
        if not 0 <= self.decoder_start < self.vocab_size:
            raise ValueError(
                f"decoder_start_token_id is {self.decoder_start}: it must be an id below {self.vocab_size}"
            )

    @property
    def frames(self) -> int:
        """Of a spectrogram, T."""
        return 2 * self.source_positions


class SoundInput(nn.Module):
    """Spectrograms (B, M, T) → positions (B, Ls, d)."""

    positions: Tensor

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.near = nn.Conv1d(config.mels, config.d_model, 3, padding=1)
        self.halve = nn.Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)
        self.register_buffer("positions", torch.zeros(config.source_positions, config.d_model))  # of the checkpoint

    def forward(self, source: Tensor) -> Tensor:
        """Features of frames that overlap, with the vector of each position."""
        x = F.gelu(self.halve(F.gelu(self.near(source))))  # (B, d, Ls)
        return x.transpose(1, 2) + self.positions


class Whisper(EncoderDecoderModel):
    """Sound in, scores of pieces of text out."""

    config: WhisperConfig
    pads = False  # all positions are heard

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.encoder_input = SoundInput(config)
        self.embedding = nn.Embedding(config.vocab_size, d)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = LearnedPositions(config.max_positions, d)
        sizes = config.encoder_heads, config.encoder_feed_forward
        blocks = [_block(config, *sizes, cross=False) for _ in range(config.encoder_layers)]
        self.encoder = Encoder(blocks, LayerNorm(d))
        sizes = config.decoder_heads, config.decoder_feed_forward
        blocks = [_block(config, *sizes, cross=True) for _ in range(config.decoder_layers)]
        self.decoder = Decoder(blocks, LayerNorm(d))

    def embed_source(self, source: Tensor) -> Tensor:
        """Spectrograms (B, M, T) → (B, Ls, d).

        Args:
            source: of T frames exactly, as `regard.inputs.features.whisper_features` makes them.

        Raises:
            ValueError: if the spectrograms are of another size.
        """
        expected = (self.config.mels, self.config.frames)
        if source.dim() != 3 or source.shape[1:] != expected:
            raise ValueError(
                f"source has shape {tuple(source.shape)}: it must be (batch, {expected[0]}, {expected[1]})"
            )
        return self.encoder_input(source)

    def embed_target(self, target: Tensor, start: int) -> Tensor:
        """Ids (B', Lt) → (B', Lt, d)."""
        stop = start + target.shape[1]
        check_ids(target, "target", self.config.vocab_size, stop=stop, most=self.config.max_positions)
        return self.embedding(target) + self.positions(target.shape[1], start)

    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder states (..., d) → scores of the next piece (..., V), before softmax."""
        return linear(hidden, self.embedding.weight)


def _block(config: WhisperConfig, heads: int, feed_forward: int, *, cross: bool) -> Block:
    attention = partial(MultiHeadAttention, config.d_model, heads)
    return Block(
        attention(),
        FeedForward(config.d_model, feed_forward, activation=config.activation),
        norm=partial(LayerNorm, config.d_model),
        cross_attention=attention(kind="cross") if cross else None,
    )


def read_config(settings: Settings, head: Head) -> WhisperConfig:
    """A `WhisperConfig` from config.json."""
    settings.refuse("tie_word_embeddings", True)
    settings.refuse("scale_embedding", False)
    return WhisperConfig(
        vocab_size=settings.whole("vocab_size", 51865),
        mels=settings.whole("num_mel_bins", 80),
        d_model=settings.whole("d_model", 384),
        encoder_layers=settings.whole("encoder_layers", 4),
        decoder_layers=settings.whole("decoder_layers", 4),
        encoder_heads=settings.whole("encoder_attention_heads", 6),
        decoder_heads=settings.whole("decoder_attention_heads", 6),
        encoder_feed_forward=settings.whole("encoder_ffn_dim", 1536),
        decoder_feed_forward=settings.whole("decoder_ffn_dim", 1536),
        source_positions=settings.whole("max_source_positions", 1500),
        max_positions=settings.whole("max_target_positions", 448),
        decoder_start=settings.whole("decoder_start_token_id", 50257, least=0),
        activation=settings.choice("activation_function", ACTIVATIONS, "gelu"),
    )


def rules(config: WhisperConfig) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters."""
    d = config.d_model
    table: list[Rule] = [
        Rename("encoder_input.near", "model.encoder.conv1"),
        Rename("encoder_input.halve", "model.encoder.conv2"),
        Rename("encoder_input.positions", "model.encoder.embed_positions.weight"),
        Rename("embedding", "model.decoder.embed_tokens"),
        Rename("positions", "model.decoder.embed_positions"),
        Tie("proj_out.weight", "model.decoder.embed_tokens.weight"),
    ]
    for side in ("encoder", "decoder"):
        layer, block = f"model.{side}.layers.{{}}.", f"{side}.blocks.{{}}."
        q, k, v = (f"{layer}self_attn.{name}_proj" for name in "qkv")
        table += [
            Join(block + "attention.qkv.weight", (q + ".weight", k + ".weight", v + ".weight"), (d, d, d)),
            Join(block + "attention.qkv.bias", (q + ".bias", None, v + ".bias"), (d, d, d)),
            Rename(block + "attention.out", layer + "self_attn.out_proj"),
            Rename(block + "attention_norm", layer + "self_attn_layer_norm"),
            Rename(block + "feed_forward.up", layer + "fc1"),
            Rename(block + "feed_forward.down", layer + "fc2"),
            Rename(block + "feed_forward_norm", layer + "final_layer_norm"),
            Rename(f"{side}.norm", f"model.{side}.layer_norm"),
        ]
    cross, block = "model.decoder.layers.{}.encoder_attn", "decoder.blocks.{}.cross_attention"
    return [
        *table,
        Rename(block + ".q", cross + ".q_proj"),
        Join(block + ".kv.weight", (cross + ".k_proj.weight", cross + ".v_proj.weight"), (d, d)),
        Join(block + ".kv.bias", (None, cross + ".v_proj.bias"), (d, d)),
        Rename(block + ".out", cross + ".out_proj"),
        Rename(block + "_norm", cross + "_layer_norm"),
    ]


FAMILIES = (
    Family(
        name="whisper",
        modality="audio",
        model_types=("whisper",),
        architectures={"WhisperForConditionalGeneration": "transcribe"},
        config=read_config,
        model=Whisper,
        rules=rules,
    ),
)
