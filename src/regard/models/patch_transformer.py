"""An encoder over patches: of an image, of a spectrogram, or of the frames of a video (arXiv 2010.11929).

The input is cut into a grid of patches; each becomes a vector by one linear map, a convolution that does not overlap
itself (or does, in spectrograms); learned tokens stand before them; pre-norm blocks follow; and a readout makes the
scores of the classes.

    B | batch entries    C | channels    G | patches of the grid    P | tokens before them    L = P + G    d | d_model
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.attention import sinusoidal
from regard.models.rules import Join, Rename, Rule
from regard.transformer import Block, Encoder, FeedForward, LayerNorm, LayerScale, MultiHeadAttention

Pooling = Literal["class", "class and distillation", "both tokens", "class and mean", "mean"]


@dataclass(frozen=True)
class PatchConfig:
    """The sizes of a `PatchTransformer`."""

    channels: int
    size: tuple[int, ...]  # of the input: height and width, mel bins and frames, or frames, height and width
    patch: tuple[int, ...]  # of one patch, in the same order
    stride: tuple[int, ...]  # from one patch to the next
    d_model: int
    layers: int
    heads: int
    feed_forward: int  # hidden width
    activation: str = "gelu"
    gated: bool = False  # SwiGLU in place of one activation
    bias: bool = True  # of query, key and value
    norm_eps: float = 1e-12
    class_token: bool = True
    distillation_token: bool = False
    registers: int = 0  # more tokens, which have no position
    positions: Literal["learned", "sinusoidal"] = "learned"
    resized: Literal["never", "bicubic", "antialiased"] = "never"  # the table of positions for other input sizes
    layer_scale: bool = False
    final_norm: bool = True
    pooling: Pooling = "class"  # what a classifier reads
    pooled_norm: float | None = None  # eps of a norm before the classifier; none without
    labels: tuple[str, ...] = ()  # names of the classes; empty: no classifier

    def __post_init__(self) -> None:
        if self.heads < 1 or self.d_model % self.heads:
            raise ValueError(f"d_model is {self.d_model}: it must be a multiple of the {self.heads} heads")
        if any(n < p for n, p in zip(self.size, self.patch, strict=True)):
            raise ValueError(f"the input is {self.size} and a patch {self.patch}: it must hold one patch at least")

    @property
    def grid(self) -> tuple[int, ...]:
        """How many patches there are along each axis of the input."""
        return self.grid_of(self.size)

    @property
    def prefix(self) -> tuple[str, ...]:
        """The names of the tokens before the patches."""
        names = ["[CLS]"] * self.class_token + ["[DIST]"] * self.distillation_token
        return (*names, *(f"[REG{i + 1}]" for i in range(self.registers)))

    def grid_of(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of an input of this size."""
        return tuple((n - p) // s + 1 for n, p, s in zip(size, self.patch, self.stride, strict=True))


class PatchTransformer(nn.Module):
    """Pixels, or a spectrogram, in; hidden states and scores of classes out.

    Args:
        config: the sizes.
        patches: makes vectors of the patches, (B, C, …) → (B, d, …) with the grid's axes; one convolution by default.
        feed_forward: makes the feed-forward network of a block; as the config says by default.
    """

    sinusoids: Tensor | None

    def __init__(
        self,
        config: PatchConfig,
        *,
        patches: nn.Module | None = None,
        feed_forward: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.patches: nn.Module = _patches(config) if patches is None else patches
        self.class_token = nn.Parameter(torch.zeros(1, 1, d)) if config.class_token else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, d)) if config.distillation_token else None
        self.registers = nn.Parameter(torch.zeros(1, config.registers, d)) if config.registers else None
        placed = config.class_token + config.distillation_token + prod(config.grid)  # registers have no position
        learned = config.positions == "learned"
        self.positions = nn.Parameter(torch.empty(1, placed, d).normal_(std=0.02)) if learned else None
        self.register_buffer("sinusoids", None, persistent=False)
        self.make_buffers()
        norm = LayerNorm(d, eps=config.norm_eps) if config.final_norm else None
        make = partial(_feed_forward, config) if feed_forward is None else feed_forward
        self.encoder = Encoder([_block(config, make()) for _ in range(config.layers)], norm)
        self.readout = Readout(config) if config.labels else None

    def make_buffers(self) -> None:
        """Compute what no checkpoint holds: the sinusoids, (1, G, d)."""
        if self.config.positions == "sinusoidal":
            self.sinusoids = sinusoidal(prod(self.config.grid), self.config.d_model)[None]

    def hidden(self, pixels: Tensor) -> Tensor:
        """The last hidden states.

        Args:
            pixels: (B, C, height, width) for images, (B, C, frames, height, width) for videos, (B, 1, mel bins,
                frames) for spectrograms.

        Returns:
            (B, P + G, d): the tokens before the patches, then the patches, row by row.

        Raises:
            ValueError: the input is of another size than the model takes.
        """
        size = tuple(pixels.shape[2:])
        if pixels.shape[1] != self.config.channels or (size != self.config.size and self.config.resized == "never"):
            wanted = (self.config.channels, *self.config.size)
            raise ValueError(f"the input is of shape {tuple(pixels.shape[1:])}: this model takes {wanted}")
        x = self.patches(pixels).flatten(2).transpose(1, 2)  # (B, G, d)
        tokens = [t.expand(len(x), -1, -1) for t in (self.class_token, self.distillation_token) if t is not None]
        x = torch.cat([*tokens, x], 1) + self._positions(size)
        if self.registers is not None:
            first, rest = x.split((len(tokens), x.shape[1] - len(tokens)), 1)
            x = torch.cat([first, self.registers.expand(len(x), -1, -1), rest], 1)  # (B, P + G, d)
        return self.encoder(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, P + G, d) → scores of the classes (B, labels), before softmax.

        Raises:
            ValueError: the model has no classifier.
        """
        if self.readout is None:
            raise ValueError("this model has no classifier: it makes hidden states alone")
        return self.readout(hidden)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels as for `hidden` → scores of the classes (B, labels), or the hidden states where there are none."""
        x = self.hidden(pixels)
        return x if self.readout is None else self.readout(x)

    def _positions(self, size: tuple[int, ...]) -> Tensor:
        """What is added for the places of tokens and patches: (1, tokens + G, d)."""
        if self.positions is None:
            assert self.sinusoids is not None
            return self.sinusoids
        if size == self.config.size:
            return self.positions
        first = self.positions.shape[1] - prod(self.config.grid)
        tokens, table = self.positions[:, :first], self.positions[:, first:]
        grid = table.transpose(1, 2).unflatten(2, self.config.grid)  # (1, d, rows, columns)
        smooth = self.config.resized == "antialiased"
        resized = F.interpolate(grid.float(), self.config.grid_of(size), mode="bicubic", antialias=smooth)
        return torch.cat([tokens, resized.flatten(2).transpose(1, 2).to(table.dtype)], 1)


class Readout(nn.Module):
    """What a classifier reads of the hidden states, and its scores."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.pooling: Pooling = config.pooling
        self.prefix = len(config.prefix)
        d, count = config.d_model, len(config.labels)
        self.norm = None if config.pooled_norm is None else LayerNorm(d, eps=config.pooled_norm)
        self.scores = nn.Linear(2 * d if config.pooling == "class and mean" else d, count)
        self.distilled = nn.Linear(d, count) if config.pooling == "class and distillation" else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, P + G, d) → scores (B, labels)."""
        if self.distilled is not None:
            return (self.scores(hidden[:, 0]) + self.distilled(hidden[:, 1])) / 2
        if self.pooling == "class":
            pooled = hidden[:, 0]
        elif self.pooling == "both tokens":
            pooled = hidden[:, :2].mean(1)
        else:
            pooled = hidden[:, self.prefix :].mean(1)
            if self.pooling == "class and mean":
                pooled = torch.cat([hidden[:, 0], pooled], -1)
        return self.scores(pooled if self.norm is None else self.norm(pooled))


def _patches(config: PatchConfig) -> nn.Module:
    convolution: Any = nn.Conv2d if len(config.patch) == 2 else nn.Conv3d
    return convolution(config.channels, config.d_model, config.patch, config.stride)


def _feed_forward(config: PatchConfig) -> FeedForward:
    return FeedForward(config.d_model, config.feed_forward, activation=config.activation, gated=config.gated)


def _block(config: PatchConfig, feed_forward: nn.Module) -> Block:
    d = config.d_model
    return Block(
        MultiHeadAttention(d, config.heads, bias=config.bias, out_bias=True),
        feed_forward,
        norm=partial(LayerNorm, d, eps=config.norm_eps),
        branch=partial(LayerScale, d) if config.layer_scale else None,
    )


def encoder_rules(config: PatchConfig, prefix: str, *, key_bias: bool = True) -> list[Rule]:
    """The rules that the families over patches have in common, as ViT's checkpoints name things.

    Args:
        config: of the model.
        prefix: before all names but the classifier's, such as "vit.".
        key_bias: whether the bias of the keys is in the checkpoint, and queries' and values' are named like it.
    """
    layer, block = prefix + "encoder.layer.{}.", "encoder.blocks.{}."
    kept = layer + "attention.attention."
    rows = (config.d_model,) * 3
    biases = tuple(f"{kept}{n}.bias" for n in ("query", "key", "value"))
    return [
        Rename("patches", prefix + "embeddings.patch_embeddings.projection"),
        Rename("class_token", prefix + "embeddings.cls_token"),
        Rename("distillation_token", prefix + "embeddings.distillation_token"),
        Rename("registers", prefix + "embeddings.register_tokens"),
        Rename("positions", prefix + "embeddings.position_embeddings"),
        Join(block + "attention.qkv.weight", tuple(f"{kept}{n}.weight" for n in ("query", "key", "value")), rows),
        Join(block + "attention.qkv.bias", biases if key_bias else (kept + "q_bias", None, kept + "v_bias"), rows),
        Rename(block + "attention.out", layer + "attention.output.dense"),
        Rename(block + "attention_norm", layer + "layernorm_before"),
        Rename(block + "feed_forward.up", layer + "intermediate.dense"),
        Rename(block + "feed_forward.down", layer + "output.dense"),
        Rename(block + "feed_forward_norm", layer + "layernorm_after"),
        Rename("encoder.norm", prefix + "layernorm"),
        Rename("readout.scores", "classifier"),
    ]
