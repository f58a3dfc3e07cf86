"""The older files: the tokenizer is the one that transformers makes of the same vocabulary."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.inputs.tokenizer import Tokenizer, TokenizerError
from tests.inputs.tokenizer.made import byte_backend, fresh, texts, wordpiece
from tests.inputs.tokenizer.test_parity import check_places

WHISPER = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>", "<|0.00|>", "<|0.02|>"]


def write(files: dict[str, Any]) -> Path:
    path = fresh()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name).write_text(text, encoding="utf-8")
    return path


@cache
def byte_files() -> dict[str, Any]:
    model = json.loads(byte_backend().to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""])
    return {"vocab.json": model["vocab"], "merges.txt": merges}


@cache
def bert(**options: Any) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    vocab = json.loads((wordpiece() / "tokenizer.json").read_text())["model"]["vocab"]
    lines = "\n".join(sorted(vocab, key=vocab.__getitem__)) + "\n"
    path = write({"vocab.txt": lines, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", **options}})
    return Tokenizer.from_directory(path), AutoTokenizer.from_pretrained(path)


@cache
def byte_level(name: str, **options: Any) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    files = {**byte_files(), "tokenizer_config.json": {"tokenizer_class": name, **options}}
    if name == "WhisperTokenizer":
        size = len(files["vocab.json"])
        files["added_tokens.json"] = {piece: size + i for i, piece in enumerate(WHISPER)}
    path = write(files)
    return Tokenizer.from_directory(path), AutoTokenizer.from_pretrained(path)


BERTS = [
    {}, {"do_lower_case": False}, {"strip_accents": False}, {"strip_accents": True, "do_lower_case": False},
    {"tokenize_chinese_chars": False},
]  # fmt: skip
LEVELS = [
    ("GPT2Tokenizer", {}), ("GPT2Tokenizer", {"add_prefix_space": True}), ("RobertaTokenizer", {}),
    ("RobertaTokenizer", {"add_prefix_space": True, "trim_offsets": False}), ("BartTokenizer", {}),
    ("WhisperTokenizer", {}),
]  # fmt: skip


@pytest.mark.parametrize("options", BERTS, ids=str)
@given(text=texts, pair=st.none() | texts.filter(bool))
def test_bert(options: dict[str, Any], text: str, pair: str | None):
    ours, theirs = bert(**options)
    check_places(ours, theirs, text, pair)
    ids = ours.encode(text, pair).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(("name", "options"), LEVELS, ids=str)
@given(text=texts, pair=st.none() | texts.filter(bool))
def test_byte_level(name: str, options: dict[str, Any], text: str, pair: str | None):
    ours, theirs = byte_level(name, **options)
    check_places(ours, theirs, text, pair)
    ids = ours.encode(text, pair).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_special_pieces_that_only_the_family_names():
    ours, theirs = bert()
    assert (ours.cls, ours.sep, ours.mask, ours.bos) == (
        theirs.cls_token_id,
        theirs.sep_token_id,
        theirs.mask_token_id,
        None,
    )
    ours, theirs = byte_level("RobertaTokenizer")
    assert (ours.cls, ours.pad, ours.mask) == (theirs.cls_token_id, theirs.pad_token_id, theirs.mask_token_id)
    ours, _ = byte_level("WhisperTokenizer")
    times = [ours.id_of("<|0.00|>"), *ours.encode("hi", specials=False).ids, ours.id_of("<|0.02|>")]
    assert ours.decode(times) == "hi"
    assert ours.decode(times, skip_specials=False) == "<|0.00|>hi<|0.02|>"


def test_the_family_is_also_known_by_the_model():
    named, _ = byte_level("RobertaTokenizer")
    path = write({**byte_files(), "config.json": {"model_type": "bart"}})
    assert Tokenizer.from_directory(path).encode("a b", "c").ids == named.encode("a b", "c").ids
    guessed = Tokenizer.from_directory(write(byte_files()))
    assert guessed.encode("a b").ids == named.encode("a b").ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab.json": []}, "vocab.json must be a mapping"),
        ({"vocab.json": {"a": "b"}}, "the id of 'a' is 'b'"),
        ({"vocab.json": {"a": 0, "b": 0}}, "'a' and 'b' have the same id 0"),
        ({"vocab.json": {"a": 0}}, "vocab.json"),
        ({"merges.txt": "#version\na b c\n"}, "merges.txt: line 2 is 'a b c'"),
        ({"added_tokens.json": {"<x>": "y"}}, "the id of '<x>' is 'y'"),
        (
            {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": 3}},
            "add_prefix_space is 3",
        ),
        ({"special_tokens_map.json": {"pad_token": 7}}, "special_tokens_map.json: pad_token is 7"),
    ],
)
def test_damaged_files(changes: dict[str, Any], message: str):
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_directory(write({**byte_files(), **changes}))
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_its_special_pieces():
    with pytest.raises(TokenizerError, match=r"vocab.txt: the unk piece '\[UNK\]' is not in it"):
        Tokenizer.from_directory(write({"vocab.txt": "a\nb\n"}))
