"""T5 and mT5 answer as transformers' do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from regard.models.checkpoint import read_checkpoint
from regard.models.family import ModelError
from tests.models import seq2seq
from tests.models.parity import assert_round_trip, assert_same, measure

SIZES: dict[str, Any] = {
    "vocab_size": seq2seq.VOCABULARY,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
V1_1: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 2}
CASES = {
    "t5": (T5ForConditionalGeneration, T5Config(**SIZES)),
    "t5 1.1, few buckets": (
        T5ForConditionalGeneration,
        T5Config(
            **SIZES | {"d_kv": 12},
            **V1_1,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            layer_norm_epsilon=1e-4,
        ),
    ),
    "t5 gated silu, tied": (T5ForConditionalGeneration, T5Config(**SIZES, feed_forward_proj="gated-silu")),
    "mt5": (MT5ForConditionalGeneration, MT5Config(**SIZES)),
}


def made(directory: Path, kind: Any, config: Any) -> tuple[Any, Path]:
    """A random model with biases that count, and with a head of its own in the second of the cases."""
    torch.manual_seed(0)
    theirs = kind(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "relative_attention_bias" in name:
                parameter.normal_(std=2.0)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "shared" not in name:
                parameter.mul_(2.0)
            elif kind is MT5ForConditionalGeneration:  # whose scores are not scaled
                parameter.mul_(0.1)
    if not getattr(config, "scale_decoder_outputs", True):
        theirs.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(seq2seq.VOCABULARY, 64))
        theirs.all_tied_weights_keys.pop("lm_head.weight", None)
    theirs.save_pretrained(directory)
    measure(config.model_type)
    return theirs, directory


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, and ours read from what theirs saved."""
    theirs, place = made(tmp_path_factory.mktemp("t5"), *CASES[request.param])
    return theirs, read_checkpoint(place), place


@torch.no_grad()
def test_same_logits(pair: Any) -> None:
    seq2seq.check_logits(pair[0], pair[1], pad=0, length=150)  # longer than the furthest distance


@torch.no_grad()
def test_cached_is_uncached(pair: Any) -> None:
    seq2seq.check_cached(pair[1], pad=0)


@torch.no_grad()
def test_greedy_text_is_the_same(pair: Any) -> None:
    seq2seq.check_greedy(pair[0], pair[1], pad=0)


@torch.no_grad()
def test_beam_search_is_the_same(pair: Any) -> None:
    seq2seq.check_beams(pair[0], pair[1], pad=0)


@torch.no_grad()
def test_round_trip(pair: Any, tmp_path: Path) -> None:
    seq2seq.check_round_trip(pair[0], pair[2], tmp_path / "again", pad=0)


@torch.no_grad()
def test_configurations_of_before_version_5(tmp_path: Path) -> None:
    """They say with tie_word_embeddings what newer ones say with scale_decoder_outputs, and repeat tensors."""
    theirs, place = made(tmp_path / "t5", *CASES["t5 1.1, few buckets"])
    settings = json.loads((place / "config.json").read_text())
    assert settings.pop("scale_decoder_outputs") is False
    (place / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    tensors = load_file(place / "model.safetensors")
    for side in ("encoder", "decoder"):
        tensors[f"{side}.embed_tokens.weight"] = tensors["shared.weight"].clone()
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(8, 4)
    save_file(tensors, place / "model.safetensors")
    ours = assert_round_trip(place, tmp_path / "again")
    source, mask = seq2seq.sources(0)
    expected = theirs(source, attention_mask=mask, decoder_input_ids=source).logits
    assert_same(ours.model(source, seq2seq.LENGTHS, source), expected)
    del tensors["shared.weight"], tensors["decoder.embed_tokens.weight"]
    save_file(tensors, place / "model.safetensors")
    ours = assert_round_trip(place, tmp_path / "again")
    assert_same(ours.model(source, seq2seq.LENGTHS, source), expected)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    _, place = made(tmp_path / "t5", *CASES["t5"])
    tensors = load_file(place / "model.safetensors")
    del tensors["decoder.block.2.layer.2.DenseReluDense.wo.weight"]
    tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = torch.zeros(16, 4)
    tensors["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"] = torch.zeros(32, 4)
    save_file(tensors, place / "model.safetensors")
    with pytest.raises(ModelError) as error:
        read_checkpoint(place)
    for fault in (
        "decoder.block.2.layer.2.DenseReluDense.wo.weight is missing",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight has shape (16, 4) instead of (32, 4)",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight is unknown",
    ):
        assert fault in str(error.value)


def test_settings_that_are_refused(tmp_path: Path) -> None:
    _, place = made(tmp_path / "t5", *CASES["t5"])
    settings = json.loads((place / "config.json").read_text())
    for change, match in (
        ({"feed_forward_proj": "gated-elu"}, "feed_forward_proj is 'gated-elu'"),
        ({"decoder_start_token_id": 97}, "decoder_start_token_id is 97"),
        ({"relative_attention_num_buckets": 6}, "there are 6 buckets"),
    ):
        (place / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ModelError, match=match):
            read_checkpoint(place)
