"""Marian answers as transformers' does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MarianConfig, MarianMTModel

from regard.models.checkpoint import read_checkpoint
from regard.models.family import ModelError
from tests.models import seq2seq
from tests.models.parity import assert_round_trip, saved

PAD = 96
SIZES: dict[str, Any] = {
    "vocab_size": seq2seq.VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 96,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
}
CASES = {
    "opus": MarianConfig(**SIZES, activation_function="swish", scale_embedding=True),
    "two vocabularies": MarianConfig(
        **SIZES | {"vocab_size": 101},
        decoder_vocab_size=seq2seq.VOCABULARY,
        share_encoder_decoder_embeddings=False,
        activation_function="relu",
    ),
    "two vocabularies and a head": MarianConfig(
        **SIZES | {"vocab_size": 101},
        decoder_vocab_size=seq2seq.VOCABULARY,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
    ),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, and ours read from what theirs saved."""
    place = tmp_path_factory.mktemp("marian")
    theirs, place = saved(place, MarianMTModel, CASES[request.param], scale=seq2seq.SCALE)
    seq2seq.vary(theirs)
    for side in (theirs.model.encoder, theirs.model.decoder):  # these are fixed, and not to be changed
        with torch.no_grad():
            side.embed_positions.weight.copy_(side.embed_positions.create_weight())
    theirs.save_pretrained(place)
    return theirs, read_checkpoint(place), place


@torch.no_grad()
def test_same_logits(pair: Any) -> None:
    seq2seq.check_logits(pair[0], pair[1], PAD)


@torch.no_grad()
def test_cached_is_uncached(pair: Any) -> None:
    seq2seq.check_cached(pair[1], PAD)


@torch.no_grad()
def test_greedy_text_is_the_same(pair: Any) -> None:
    seq2seq.check_greedy(pair[0], pair[1], PAD)


@torch.no_grad()
def test_beam_search_is_the_same(pair: Any) -> None:
    seq2seq.check_beams(pair[0], pair[1], PAD)


@torch.no_grad()
def test_round_trip(pair: Any, tmp_path: Path) -> None:
    seq2seq.check_round_trip(pair[0], pair[2], tmp_path / "again", PAD)


def test_tables_of_positions_in_a_file(pair: Any, tmp_path: Path) -> None:
    theirs, _, place = pair
    tensors = load_file(place / "model.safetensors")
    for side, module in (("encoder", theirs.model.encoder), ("decoder", theirs.model.decoder)):
        tensors[f"model.{side}.embed_positions.weight"] = module.embed_positions.weight.detach().clone()
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.json").write_bytes((place / "config.json").read_bytes())
    save_file(tensors, older / "model.safetensors")
    ours = assert_round_trip(older, tmp_path / "again")
    for entrance in (ours.model.encoder_input, ours.model.decoder_input):
        torch.testing.assert_close(entrance.positions, tensors["model.encoder.embed_positions.weight"])


def test_settings_that_are_refused(pair: Any, tmp_path: Path) -> None:
    settings = json.loads((pair[2] / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((pair[2] / "model.safetensors").read_bytes())
    for name, value in (
        ("normalize_embedding", True),
        ("normalize_before", True),
        ("static_position_embeddings", False),
        ("decoder_start_token_id", 97),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | {name: value}))
        with pytest.raises(ModelError, match=name):
            read_checkpoint(tmp_path)
