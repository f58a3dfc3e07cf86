"""BART answers as transformers' does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration

from regard.models.checkpoint import read_checkpoint
from regard.models.family import ModelError
from tests.models import seq2seq
from tests.models.parity import assert_round_trip, assert_same, saved

SIZES: dict[str, Any] = {
    "vocab_size": seq2seq.VOCABULARY,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 96,
}
CASES = {
    "bart": BartConfig(**SIZES),
    "scaled, other heads, relu": BartConfig(
        **SIZES
        | {"encoder_attention_heads": 2, "decoder_attention_heads": 8, "decoder_ffn_dim": 80, "encoder_layers": 1},
        scale_embedding=True,
        activation_function="relu",
        decoder_start_token_id=0,
    ),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, and ours read from what theirs saved."""
    place = tmp_path_factory.mktemp("bart")
    theirs, place = saved(place, BartForConditionalGeneration, CASES[request.param], scale=seq2seq.SCALE)
    seq2seq.vary(theirs)
    theirs.save_pretrained(place)
    return theirs, read_checkpoint(place), place


@torch.no_grad()
def test_same_logits(pair: Any) -> None:
    seq2seq.check_logits(pair[0], pair[1], pad=1)


@torch.no_grad()
def test_cached_is_uncached(pair: Any) -> None:
    seq2seq.check_cached(pair[1], pad=1)


@torch.no_grad()
def test_greedy_text_is_the_same(pair: Any) -> None:
    seq2seq.check_greedy(pair[0], pair[1], pad=1)


@torch.no_grad()
def test_beam_search_is_the_same(pair: Any) -> None:
    seq2seq.check_beams(pair[0], pair[1], pad=1)


@torch.no_grad()
def test_round_trip(pair: Any, tmp_path: Path) -> None:
    seq2seq.check_round_trip(pair[0], pair[2], tmp_path / "again", pad=1)


@torch.no_grad()
def test_what_a_file_may_leave_out_or_repeat(pair: Any, tmp_path: Path) -> None:
    theirs, _, place = pair
    tensors = load_file(place / "model.safetensors")
    embedding = tensors["model.shared.weight"]
    repeated = {
        name: embedding.clone()
        for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    }
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.json").write_bytes((place / "config.json").read_bytes())
    source, mask = seq2seq.sources(1)
    expected = theirs(source, attention_mask=mask, decoder_input_ids=source).logits
    bias = tensors.pop("final_logits_bias")
    for held, added in ((tensors | repeated, bias), (tensors, bias)):
        save_file(held, older / "model.safetensors")
        ours = assert_round_trip(older, tmp_path / "again")
        assert_same(ours.model(source, seq2seq.LENGTHS, source) + added, expected)
    save_file(repeated | {n: t for n, t in tensors.items() if t is not embedding}, older / "model.safetensors")
    ours = assert_round_trip(older, tmp_path / "again")
    assert_same(ours.model(source, seq2seq.LENGTHS, source) + bias, expected)


def test_tensors_that_do_not_fit(pair: Any, tmp_path: Path) -> None:
    place = pair[2]
    tensors = load_file(place / "model.safetensors")
    del tensors["model.decoder.layers.1.encoder_attn.v_proj.bias"]
    tensors["model.encoder.embed_positions.weight"] = tensors["model.encoder.embed_positions.weight"][2:].clone()
    tensors["model.encoder.layer_norm.weight"] = torch.ones(64)
    tensors["lm_head.weight"] = tensors["model.shared.weight"] + 1
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "config.json").write_bytes((place / "config.json").read_bytes())
    save_file(tensors, wrong / "model.safetensors")
    with pytest.raises(ModelError) as error:
        read_checkpoint(wrong)
    for fault in (
        "model.decoder.layers.1.encoder_attn.v_proj.bias is missing",
        "model.encoder.embed_positions.weight has shape (96, 64) instead of (98, 64)",
        "model.encoder.layer_norm.weight is unknown",
        "lm_head.weight differs from model.shared.weight, which it must repeat",
    ):
        assert fault in str(error.value)


def test_what_is_refused(pair: Any) -> None:
    model = pair[1].model
    with pytest.raises(ValueError, match="source has 97 positions: this model takes at most 96"):
        model.encode(torch.zeros(1, 97, dtype=torch.int64), torch.tensor([97]))
    with pytest.raises(ValueError, match=r"target holds the id 97: ids must be in \[0, 97\)"):
        model.decode(torch.tensor([[97]]), None, torch.tensor([1]))
