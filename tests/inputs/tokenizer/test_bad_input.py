"""What is no tokenizer, or no text, is said in one line; settings that would cut texts do nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regard.inputs.tokenizer import Tokenizer, TokenizerError
from tests.inputs.tokenizer.made import TEXTS, byte_level, edited, unigram, wordpiece


def refused(path: Path, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_directory(path)
    assert "\n" not in str(caught.value)


def test_truncation_padding_and_dropout_do_not_act(tmp_path: Path):
    ours = Tokenizer.from_directory(wordpiece())
    content = json.loads((wordpiece() / "tokenizer.json").read_text())
    assert content["truncation"]["max_length"] == 5 and content["padding"]
    assert len(ours.encode(TEXTS[0]).ids) > 12
    assert len(ours.encode("a").ids) == 3
    assert [len(ids) for ids in ours.encode_batch(["a", ""])] == [3, 2]
    model = json.loads((byte_level() / "tokenizer.json").read_text())["model"]
    dropping = edited(byte_level(), tmp_path / "a", "tokenizer.json", model={**model, "dropout": 0.5})
    plain = Tokenizer.from_directory(byte_level()).encode(TEXTS[0]).ids
    assert all(Tokenizer.from_directory(dropping).encode(TEXTS[0]).ids == plain for _ in range(5))


def test_no_tokenizer(tmp_path: Path):
    refused(tmp_path, "has no tokenizer: it must hold tokenizer.json, vocab.txt")
    refused(tmp_path / "missing", "is no directory")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 3000))
def test_truncated_json(tmp_path: Path, cut: int):
    path = edited(wordpiece(), tmp_path / "a")
    content = (path / "tokenizer.json").read_bytes()
    (path / "tokenizer.json").write_bytes(content[: len(content) - 2 - cut % (len(content) - 2)])
    refused(path, "tokenizer.json is no (tokenizer|text)")


@pytest.mark.parametrize("part", ["model", "normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens"])
@pytest.mark.parametrize("value", [5, "x", [1], {"type": "Odd"}])
def test_tampered_parts(tmp_path: Path, part: str, value: Any):
    refused(edited(unigram(), tmp_path / "a", "tokenizer.json", **{part: value}), "tokenizer.json is no tokenizer")


def test_a_table_of_characters_that_makes_the_library_panic(tmp_path: Path):
    bad = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    refused(edited(unigram(), tmp_path / "a", "tokenizer.json", normalizer=bad), "tokenizer.json is no tokenizer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_token": 5}, "pad_token is 5"),
        ({"pad_token": {"x": 1}}, "pad_token is {'x': 1}"),
        ({"clean_up_tokenization_spaces": "yes"}, "clean_up_tokenization_spaces is 'yes': it must be true or false"),
        ({"chat_template": 5}, "chat_template is a int"),
        ({"chat_template": [{"name": "a"}]}, "a chat_template must have a name and a template"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder is a list"),
        ({"added_tokens_decoder": {"a": {"content": "x"}}}, "has the key 'a': it must be an id"),
        ({"added_tokens_decoder": {"7": {"content": "x", "lstrip": 1}}}, "lstrip is 1"),
        ({"added_tokens_decoder": {"7": {"content": "<new>"}}}, "'<new>' is listed as id 7, but would get id 120"),
        ({"extra_special_tokens": "x"}, "extra_special_tokens is a str"),
        ({"extra_special_tokens": [5]}, r"extra_special_tokens\[0\] is 5"),
    ],
)
def test_tampered_settings(tmp_path: Path, changes: dict[str, Any], message: str):
    size = Tokenizer.from_directory(unigram()).vocab_size
    refused(edited(unigram(), tmp_path / "a", **changes), message.replace("120", str(size)))


def test_settings_that_are_no_mapping(tmp_path: Path):
    path = edited(unigram(), tmp_path / "a")
    (path / "tokenizer_config.json").write_text("[]")
    refused(path, "tokenizer_config.json is a list: it must be a mapping")
    (path / "tokenizer_config.json").write_text('{"a": ')
    refused(path, "tokenizer_config.json is no JSON")
    (path / "tokenizer_config.json").write_bytes(b'{"a": "\xff"}')
    refused(path, "tokenizer_config.json is no text: byte 7 is not UTF-8")


def test_texts_that_are_none():
    ours = Tokenizer.from_directory(byte_level())
    half = r"character 1 of text is U\+D800, half of a surrogate pair"
    with pytest.raises(TokenizerError, match=half):
        ours.encode("a\ud800")
    with pytest.raises(TokenizerError, match=r"character 0 of texts\[1\]\[1\] is U\+DC00"):
        ours.encode_batch(["a", ("b", "\udc00")])
    with pytest.raises(TokenizerError, match="text is 5: it must be a string"):
        ours.encode(5)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="texts is a string"):
        ours.encode_batch("ab")


@pytest.mark.parametrize("index", [-1, 10**6, 2**40, "a", 1.0])
def test_ids_outside_the_vocabulary(index: Any):
    ours = Tokenizer.from_directory(byte_level())
    for use in (ours.piece, lambda i: ours.decode([i]), lambda i: ours.elements([i]), ours.stream().feed):
        with pytest.raises(TokenizerError, match=r"id is .*: it must be in \[0, "):
            use(index)


def test_ids_of_another_text():
    ours = Tokenizer.from_directory(byte_level())
    ids = ours.encode("window").ids
    with pytest.raises(TokenizerError, match="which is not the next piece of the text"):
        ours.elements(ids, "wind came")
    assert ours.elements([ours.pad, *ids], "window and")[0].span is None


def test_a_model_with_too_few_embeddings():
    ours = Tokenizer.from_directory(byte_level())
    ours.check_fits(ours.vocab_size)
    ours.check_fits(ours.vocab_size + 64)
    last = ours.vocab_size - 1
    with pytest.raises(TokenizerError, match=f"as id {last}, and 1 ids of {last} or more.*do not belong together"):
        ours.check_fits(last)
