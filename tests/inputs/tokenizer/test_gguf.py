"""GGUF metadata: the same pieces as the tokenizer it was made of."""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from regard.inputs.tokenizer import Tokenizer, TokenizerError
from regard.inputs.tokenizer.gguf import PRE_TOKENIZERS
from tests.inputs.tokenizer.made import byte_fallback, byte_level, llama3, texts


@cache
def fields(pre: str = "gpt-2") -> dict[str, Any]:
    """What a converter writes of the byte-level tokenizer."""
    content = json.loads((byte_level() / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {token["content"] for token in content["added_tokens"]}
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index("</s>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<pad>"),
    }


@given(text=texts)
def test_byte_level(text: str):
    ours, source = Tokenizer.from_gguf(fields()), Tokenizer.from_directory(byte_level())
    assert ours.encode(text).ids == source.encode(text).ids
    assert ours.decode(ours.encode(text).ids) == source.decode(source.encode(text).ids)


@given(text=texts, pair=st.none() | texts)
def test_llama3(text: str, pair: str | None):
    ours, source = Tokenizer.from_gguf(fields("llama-bpe")), Tokenizer.from_directory(llama3())
    found, expected = ours.encode(text, pair), source.encode(text, pair)
    assert (found.ids, found.types, found.texts) == (expected.ids, expected.types, expected.texts)


def test_each_pre_tokenizer_cuts_as_it_should():
    text = "I'LL pay 1234 €,\n\n  don't/HTTPServer"
    cuts = {
        "gpt-2": ["I", "'", "LL", " pay", " 1234", " €,", "\n\n ", " don", "'t", "/", "HTTPServer"],
        "smollm": ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", " €,", "\n\n ", " don", "'t", "/", "HTTPServer"],
        "llama-bpe": ["I", "'LL", " pay", " ", "123", "4", " €,\n\n", " ", " don", "'t", "/HTTPServer"],
        "qwen2": ["I", "'LL", " pay", " ", "1", "2", "3", "4", " €,\n\n", " ", " don", "'t", "/HTTPServer"],
        "tekken": ["I", "'LL", " pay", " ", "1", "2", "3", "4", " €,\n\n", " ", " don", "'t", "/HTTPServer"],
        "gpt-4o": ["I'LL", " pay", " ", "123", "4", " €,\n\n", " ", " don't", "/HTTPServer"],
    }
    for name, expected in cuts.items():
        backend = Tokenizer.from_gguf(fields(name))._backend
        pieces = [text[slice(*span)] for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
        assert pieces == expected, name
    assert all(Tokenizer.from_gguf(fields(name)).encode("x 1").ids for name in PRE_TOKENIZERS)


def test_what_the_pieces_are_for():
    tokens = [*fields()["tokenizer.ggml.tokens"], "<think>"]
    kinds = [*fields()["tokenizer.ggml.token_type"], 4]
    ours = Tokenizer.from_gguf(
        fields()
        | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.add_eos_token": True}
    )
    assert ours.encode("<think>").ids == [len(tokens) - 1, ours.eos]
    assert ours.decode(ours.encode("<think>").ids) == "<think>"
    assert (ours.bos, ours.eos, ours.pad, ours.mask) == (2, 3, 1, None)
    assert ours.vocab_size == len(tokens)


def test_chat_templates():
    ours = Tokenizer.from_gguf(
        fields() | {"tokenizer.chat_template": "{{ bos_token }}A", "tokenizer.chat_template.tool_use": "B"}
    )
    chat = [{"role": "user", "content": "x"}]
    assert ours.apply_chat_template(chat) == "<s>A"
    assert ours.apply_chat_template(chat, tools=[{"name": "f"}]) == "B"


@cache
def sentences() -> dict[str, Any]:
    """What a converter writes of the tokenizer with a piece a byte."""
    backend = Backend.from_file(str(byte_fallback() / "tokenizer.json"))
    tokens = [str(backend.id_to_token(i)) for i in range(backend.get_vocab_size())]
    merged = ["▁t", "he", "▁the", "in", "▁w"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(merged.index(t)) if t in merged else -1e4 for t in tokens],
        "tokenizer.ggml.token_type": [
            2 if t == "<unk>" else 3 if t in {"<s>", "</s>"} else 6 if "<0x" in t else 1 for t in tokens
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@given(text=texts)
def test_sentences(text: str):
    ours, source = Tokenizer.from_gguf(sentences()), Tokenizer.from_directory(byte_fallback())
    found, expected = ours.encode(text), source.encode(text)
    assert (found.ids, found.elements) == (expected.ids, expected.elements)
    assert ours.decode(found.ids) == source.decode(found.ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer.ggml.model is 'rwkv': it must be one of gpt2, llama"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model is missing"),
        ({"tokenizer.ggml.pre": "future"}, "tokenizer.ggml.pre is 'future': it must be one of codeshell, .*smollm"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is missing: it must be a string, one of .*llama-bpe"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": ["a", 5]}, r"tokenizer.ggml.tokens\[1\] is 5"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "has 'a' twice"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type must be a list of"),
        ({"tokenizer.ggml.merges": ["a"]}, r"tokenizer.ggml.merges\[0\] is 'a'"),
        ({"tokenizer.ggml.merges": ["日 本"]}, "tokenizer.ggml.tokens and tokenizer.ggml.merges"),
        ({"tokenizer.ggml.bos_token_id": -1}, r"bos_token_id is -1: it must be an id in \[0, "),
        ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token is 1: it must be true or false"),
        ({"tokenizer.chat_template": 5}, "tokenizer.chat_template is a int"),
    ],
)
def test_damaged_fields(changes: dict[str, Any], message: str):
    given_fields = {key: value for key, value in (fields() | changes).items() if value is not None}
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_gguf(given_fields)
    assert "\n" not in str(caught.value)
    with pytest.raises(TokenizerError, match="scores must be a list"):
        Tokenizer.from_gguf(sentences() | {"tokenizer.ggml.scores": [1]})
