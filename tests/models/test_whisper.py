"""Whisper hears what transformers' does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

from regard.generation import generate_ids, read_settings
from regard.generation.decoding import Sources
from regard.models.checkpoint import read_checkpoint
from regard.models.family import ModelError
from tests.models.parity import assert_round_trip, assert_same, saved

V, FRAMES = 97, 48
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "num_mel_bins": 8,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 64,
    "max_source_positions": FRAMES // 2,
    "max_target_positions": 72,
    "pad_token_id": 2,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
CASES = {
    "whisper": WhisperConfig(**SIZES),
    "other heads, relu": WhisperConfig(
        **SIZES | {"encoder_attention_heads": 2, "decoder_attention_heads": 8, "num_mel_bins": 12},
        activation_function="relu",
    ),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, and ours read from what theirs saved."""
    place = tmp_path_factory.mktemp("whisper")
    theirs, place = saved(place, WhisperForConditionalGeneration, CASES[request.param], scale=3.0)
    with torch.no_grad():
        table = theirs.model.encoder.embed_positions.weight
        table.copy_(table / 3)  # of sines, and fixed
        theirs.model.decoder.embed_positions.weight.mul_(3)  # so that it does not repeat one piece
    theirs.save_pretrained(place)
    return theirs, read_checkpoint(place), place


def sounds(mels: int, frames: int = FRAMES, count: int = 3) -> torch.Tensor:
    return torch.randn(count, mels, frames, generator=torch.Generator().manual_seed(3))


LENGTHS = torch.tensor([FRAMES // 2] * 3)


@torch.no_grad()
def test_same_logits(pair: Any) -> None:
    theirs, ours, _ = pair
    source = sounds(theirs.config.num_mel_bins)
    target = torch.randint(4, V, (3, 21), generator=torch.Generator().manual_seed(4))
    assert_same(ours.model(source, LENGTHS, target), theirs(source, decoder_input_ids=target).logits)


@torch.no_grad()
def test_cached_is_uncached(pair: Any) -> None:
    model = pair[1].model
    source = sounds(model.config.mels)
    target = torch.randint(4, V, (3, 33), generator=torch.Generator().manual_seed(4))
    memory, cache = model.encode(source, LENGTHS), model.cache()
    parts = [
        model.logits(model.decode(target[:, first:stop], memory, LENGTHS, start=first, caches=cache))
        for first, stop in ((0, 9), (9, 10), (10, 26), (26, 27), (27, 33))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), model(source, LENGTHS, target), atol=5e-5, rtol=0)


@torch.no_grad()
def test_greedy_text_is_the_same_over_64_steps(pair: Any) -> None:
    """After what says language and task, without the pieces that generation_config.json suppresses."""
    theirs, ours, _ = pair
    source = sounds(theirs.config.num_mel_bins)
    plain = theirs.generate(
        source, decoder_input_ids=torch.tensor([[3, 5, 7, 9]] * 3), max_new_tokens=64, eos_token_id=None
    )
    often = plain[:, -64:].flatten().bincount().argsort(descending=True)[:2].tolist()
    first = sorted(set(plain[:, -64].tolist()))
    for suppressed in ({}, {"suppress_tokens": often, "begin_suppress_tokens": first}):
        theirs.generation_config.update(**{"suppress_tokens": None, "begin_suppress_tokens": None} | suppressed)
        expected = theirs.generate(
            source, decoder_input_ids=torch.tensor([[3, 5, 7, 9]] * 3), max_new_tokens=64, eos_token_id=None
        )[:, -64:]
        chosen = read_settings({"max_new_tokens": 64} | suppressed, "settings", vocab_size=V, start=1)
        found = generate_ids(ours.model, [[3, 5, 7, 9]] * 3, chosen, sources=Sources(source, LENGTHS))
        assert [list(a.ids) for a in found] == expected.tolist()
        assert len(set(expected[0].tolist())) > 3, "a text of a few pieces shows nothing"
        assert not suppressed or not set(often) & {*expected.flatten().tolist()}
    assert not torch.equal(plain[:, -64:], expected)


@torch.no_grad()
def test_round_trip(pair: Any, tmp_path: Path) -> None:
    theirs, _, place = pair
    assert_round_trip(place, tmp_path / "again")
    read = WhisperForConditionalGeneration.from_pretrained(tmp_path / "again").eval()
    source = sounds(theirs.config.num_mel_bins)
    target = torch.randint(4, V, (3, 11))
    expected = theirs(source, decoder_input_ids=target).logits
    assert torch.equal(read(source, decoder_input_ids=target).logits, expected)


def test_what_does_not_fit(pair: Any, tmp_path: Path) -> None:
    theirs, ours, place = pair
    mels = theirs.config.num_mel_bins
    with pytest.raises(ValueError, match=rf"source has shape \(3, {mels}, 50\): it must be \(batch, {mels}, 48\)"):
        ours.model.encode(sounds(mels, 50), LENGTHS)
    with pytest.raises(ValueError, match="target has 73 positions: this model takes at most 72"):
        ours.model(sounds(mels), LENGTHS, torch.full((3, 73), 5))
    tensors = load_file(place / "model.safetensors")
    tensors["model.decoder.layers.0.self_attn.k_proj.bias"] = torch.zeros(32)
    del tensors["model.encoder.conv2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    settings = json.loads((place / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError) as error:
        read_checkpoint(tmp_path)
    for fault in ("conv2.bias is missing", "decoder.layers.0.self_attn.k_proj.bias is unknown"):
        assert fault in str(error.value)
    for change, match in (
        ({"decoder_start_token_id": V}, "decoder_start_token_id is 97"),
        ({"d_model": 33}, "d_model"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ModelError, match=match):
            read_checkpoint(tmp_path)
