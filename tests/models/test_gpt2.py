"""GPT-2 answers as transformers' does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from regard.models.checkpoint import read_checkpoint
from regard.models.family import ModelError
from tests.models.parity import assert_round_trip, assert_same, saved

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CASES = {
    "gpt2": GPT2Config(**SIZES),
    "scaled by layer, relu, narrow": GPT2Config(
        **SIZES,
        activation_function="relu",
        n_inner=80,
        scale_attn_by_inverse_layer_idx=True,
        reorder_and_upcast_attn=True,
        layer_norm_epsilon=1e-3,
        attn_implementation="eager",
    ),
    "not scaled, gelu, own head": GPT2Config(
        **SIZES, activation_function="gelu", scale_attn_weights=False, tie_word_embeddings=False
    ),
    "tanh": GPT2Config(**SIZES, activation_function="tanh"),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their model, and ours read from what theirs saved."""
    theirs, place = saved(tmp_path_factory.mktemp("gpt2"), GPT2LMHeadModel, CASES[request.param], scale=6.0)
    with torch.no_grad():  # a piece whose own embedding outweighs the rest is answered with itself
        theirs.transformer.wte.weight.mul_(0.05)
    theirs.save_pretrained(place)
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
    positions = (torch.arange(21) - padding[:, None]).clamp(min=0)
    expected = theirs(ids.where(real, 0), attention_mask=real.long(), position_ids=positions).logits
    assert_same(ours.model(ids.where(real, 0), padding=padding)[real], expected[real])
    for i, pads in enumerate(padding.tolist()):
        assert_same(ours.model(ids.where(real, 0), padding=padding)[i, pads:], ours.model(ids[i : i + 1, pads:])[0])


@torch.no_grad()
def test_cached_is_uncached(pair: Any) -> None:
    _, ours, _ = pair
    ids, padding = torch.randint(3, 97, (2, 33)), torch.tensor([0, 12])
    for pads in (None, padding):
        cache, parts = ours.model.cache(padded=pads is not None), []
        for first, stop in ((0, 9), (9, 10), (10, 26), (26, 27), (27, 33)):
            parts.append(ours.model(ids[:, first:stop], start=first, padding=pads, cache=cache))
        real = (torch.arange(33) >= (0 if pads is None else pads[:, None])).expand(2, 33)
        assert_same(torch.cat(parts, 1)[real], ours.model(ids, padding=pads)[real], 5e-5)


@torch.no_grad()
def test_greedy_text_is_the_same(pair: Any) -> None:
    theirs, ours, _ = pair
    padding = torch.tensor([0, 5])
    ids = torch.randint(3, 97, (2, 11))
    real = torch.arange(11) >= padding[:, None]
    ids = ids.where(real, 0)
    expected = theirs.generate(
        ids, attention_mask=real.long(), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    cache, written, read, start = ours.model.cache(padded=True), ids, ids, 0
    for _ in range(64):
        scores = ours.model.logits(ours.model.hidden(read, start=start, padding=padding, cache=cache)[:, -1])
        start += read.shape[1]
        read = scores.argmax(-1, keepdim=True)
        written = torch.cat([written, read], 1)
    assert torch.equal(written, expected)
    assert len(set(written[0, 11:].tolist())) > 2, "a text of one piece alone shows nothing"


def test_round_trip(pair: Any, tmp_path: Path) -> None:
    theirs, _, place = pair
    assert_round_trip(place, tmp_path / "again")
    ids = torch.randint(3, 97, (1, 12))
    with torch.no_grad():
        again = GPT2LMHeadModel.from_pretrained(
            tmp_path / "again", attn_implementation=theirs.config._attn_implementation
        ).eval()
        torch.testing.assert_close(again(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_names_of_older_files(tmp_path: Path) -> None:
    theirs, place = saved(tmp_path, GPT2LMHeadModel, CASES["gpt2"], scale=4.0)
    tensors = load_file(place / "model.safetensors")
    older = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    for layer in range(3):
        older[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128).tril().to(torch.uint8)
        older[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    ids = torch.randint(3, 97, (1, 12))
    for head in ({}, {"lm_head.weight": older["wte.weight"].clone()}):
        save_file(older | head, place / "model.safetensors", {"format": "pt"})
        ours = assert_round_trip(place, tmp_path / "again")
        assert_same(ours.model(ids), theirs(ids).logits)
    wrong = older | {"lm_head.weight": older["wte.weight"] + 1}
    save_file(wrong, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from wte\.weight"):
        read_checkpoint(place)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    _, place = saved(tmp_path, GPT2LMHeadModel, CASES["gpt2"])
    tensors = load_file(place / "model.safetensors")
    del tensors["transformer.h.1.ln_2.bias"]
    tensors["transformer.h.0.attn.c_attn.weight"] = tensors["transformer.h.0.attn.c_attn.weight"].t().contiguous()
    tensors["transformer.h.3.ln_1.bias"] = torch.zeros(64)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as error:
        read_checkpoint(place)
    for fault in (
        "transformer.h.1.ln_2.bias is missing",
        "transformer.h.0.attn.c_attn.weight has shape (192, 64) instead of (64, 192)",
        "transformer.h.3.ln_1.bias is unknown",
    ):
        assert fault in str(error.value)


def test_too_many_pieces(pair: Any) -> None:
    _, ours, _ = pair
    with pytest.raises(ValueError, match=r"positions 0 … 128 are asked for"):
        ours.model(torch.zeros(1, 129, dtype=torch.int64))
    padding = torch.tensor([1, 0])
    ours.model(torch.zeros(1, 129, dtype=torch.int64), padding=padding[:1])
    with pytest.raises(ValueError, match="an entry has 129 pieces: this model takes at most 128"):
        ours.model(torch.zeros(2, 129, dtype=torch.int64), padding=padding)


def test_settings_that_are_refused(tmp_path: Path) -> None:
    _, place = saved(tmp_path, GPT2LMHeadModel, CASES["gpt2"])
    settings = json.loads((place / "config.json").read_text())
    for name, value in {"add_cross_attention": True, "activation_function": "quick_gelu", "n_head": 0}.items():
        (place / "config.json").write_text(json.dumps(settings | {name: value}))
        with pytest.raises(ModelError, match=name):
            read_checkpoint(place)
