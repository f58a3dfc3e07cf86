"""Llama, Mistral, Qwen2 and Qwen3 answer as transformers' do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from regard.models.checkpoint import read_checkpoint
from tests.models.parity import assert_round_trip, assert_same, saved

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "llama biased, tied, scaled": (
        LlamaForCausalLM,
        LlamaConfig(
            **SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=24, rope_parameters=LLAMA3
        ),
    ),
    "mistral windowed": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=7)),
    "mistral": (MistralForCausalLM, MistralConfig(**(SIZES | {"num_key_value_heads": 4}), sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen2 windowed": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=16)),
    "qwen3 biased": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=24, attention_bias=True)),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, and ours read from what theirs saved."""
    theirs, place = saved(tmp_path_factory.mktemp("llama"), *CASES[request.param], scale=4.0)
    return theirs, read_checkpoint(place), place


@torch.no_grad()
def test_same_logits(pair: Any) -> None:
    theirs, ours, _ = pair
    ids = torch.randint(3, 97, (2, 40))
    assert_same(ours.model(ids), theirs(ids).logits)


@torch.no_grad()
def test_left_padding(pair: Any) -> None:
    theirs, ours, _ = pair
    padding = torch.tensor([0, 9, 4])
    ids = torch.randint(3, 97, (3, 21))
    real = torch.arange(21) >= padding[:, None]
    expected = theirs(ids.where(real, 0), attention_mask=real.long()).logits
    assert_same(ours.model(ids.where(real, 0), padding=padding)[real], expected[real])


@torch.no_grad()
def test_cached_is_uncached(pair: Any) -> None:
    _, ours, _ = pair
    ids, padding = torch.randint(3, 97, (2, 33)), torch.tensor([0, 6])
    for pads in (None, padding):
        cache, parts = ours.model.cache(padded=pads is not None), []
        for first, stop in ((0, 9), (9, 10), (10, 26), (26, 27), (27, 33)):
            parts.append(ours.model(ids[:, first:stop], start=first, padding=pads, cache=cache))
        real = torch.arange(33) >= (0 if pads is None else pads[:, None])
        real = real.expand(2, 33)
        assert_same(torch.cat(parts, 1)[real], ours.model(ids, padding=pads)[real], 2e-5)


def test_round_trip(pair: Any, tmp_path: Path) -> None:
    theirs, _, place = pair
    assert_round_trip(place, tmp_path / "again")
    ids = torch.randint(3, 97, (1, 12))
    with torch.no_grad():
        again = type(theirs).from_pretrained(tmp_path / "again").eval()
        torch.testing.assert_close(again(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)
