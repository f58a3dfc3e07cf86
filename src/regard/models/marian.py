"""Marian (arXiv 1804.00344), as the OPUS-MT translators were trained: BART's blocks, with other embeddings.

Notable: a fixed sinusoidal table of positions, sines in its first half and cosines in its second; no norm of the
embeddings; source and target may have vocabularies of their own.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.attention.position import sinusoidal
from regard.models.bart import Bart, BartConfig, block_rules, sizes_of
from regard.models.family import Family, Head, Settings
from regard.models.rules import Ignore, Rename, Rule, Tie


class SinusoidalInput(nn.Module):
    """Embeddings, with the fixed vector of every position."""

    positions: Tensor

    def __init__(self, config: BartConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("positions", self._table(), persistent=False)  # (max_positions, d)

    def make_buffers(self) -> None:
        """Compute what no checkpoint holds."""
        self.positions = self._table()

    def forward(self, x: Tensor, start: int) -> Tensor:
        """x (B, L, d), which stand at start and after it, → (B, L, d)."""
        return x + self.positions[start : start + x.shape[1]].to(x.dtype)

    def _table(self) -> Tensor:
        table = sinusoidal(self.config.max_positions, self.config.d_model)
        return torch.cat((table[:, 0::2], table[:, 1::2]), 1)


class Marian(Bart):
    """Source pieces in, scores of target pieces out."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config, SinusoidalInput)


def read_config(settings: Settings, head: Head) -> BartConfig:
    """A `BartConfig` from config.json."""
    settings.refuse("normalize_embedding", False)
    settings.refuse("static_position_embeddings", True)
    config = sizes_of(settings, decoder_start=58100)
    if settings.flag("share_encoder_decoder_embeddings", True):
        settings.refuse("tie_word_embeddings", True)
        settings.refuse("decoder_vocab_size", config.vocab_size)
        return config
    return replace(
        config,
        target_vocab_size=settings.whole("decoder_vocab_size", config.vocab_size),
        tied=settings.flag("tie_word_embeddings", True),
    )


def rules(config: BartConfig) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters."""
    source, target = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
    table: list[Rule] = []
    if config.target_vocab_size is None:
        shared = "model.shared.weight"
        table += [
            Rename("embedding.weight", shared),
            Tie(source, shared),
            Tie(target, shared),
            Tie("lm_head.weight", shared),
        ]
    else:
        table += [Rename("embedding.weight", source), Rename("target_embedding.weight", target)]
        table.append(Tie("lm_head.weight", target) if config.tied else Rename("head", "lm_head"))
    # Older checkpoints keep the table of positions.
    table += [Ignore(f"model.{side}.embed_positions.weight") for side in ("encoder", "decoder")]
    return table + block_rules(config)


FAMILIES = (
    Family(
        name="marian",
        modality="text",
        model_types=("marian",),
        architectures={"MarianMTModel": "translate"},
        config=read_config,
        model=Marian,
        rules=rules,
    ),
)
