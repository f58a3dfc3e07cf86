"""The tokenizer: nothing of a text is lost, and every piece knows its characters."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regard.inputs import TextTokenizer
from tests.models.small_translator import TEXTS, small_tokenizer

characters = st.characters(exclude_categories=["Cs"])
marked = st.sampled_from(["e\u0301", "A\u030a", "\u1112\u1161\u11ab", "한", "q\u0323\u0307", "q\u0307\u0323", "\u0344"])
emoji = st.sampled_from(["👩‍👩‍👧", "👍🏽", "❤️", "🇩🇪", "ﬁ", "₂", "</s>", "<pad>", "▁", "Ġ", "\u0301", "\r\n", "\x00"])
texts = st.lists(st.one_of(characters, marked, emoji, st.sampled_from([" ", "  ", *TEXTS])), max_size=12).map("".join)


@given(text=texts)
@example(text="")
@example(text=" leading, trailing ")
@example(text="a </s> b")
def test_nothing_is_lost(text: str):
    tokenizer = small_tokenizer()
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert ids[-1] == tokenizer.eos
    assert not set(ids[:-1]) & {tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk}


@given(text=texts)
@example(text="")
@example(text="a\u0301\u0323 x")
def test_spans_cover_the_original(text: str):
    encoded = small_tokenizer().encode(text)
    *pieces, end = encoded.elements
    assert (end.label, end.span) == ("</s>", None)
    assert [e.index for e in encoded.elements] == list(range(len(encoded.ids)))
    covered: set[int] = set()
    before = 0
    for piece in pieces:
        first, stop = piece.span
        assert 0 <= first <= stop <= len(text)
        assert first >= before or stop >= before  # in order
        before = max(before, first)
        covered |= set(range(first, stop))
    assert all(text[i].isspace() for i in set(range(len(text))) - covered)


@given(text=texts)
def test_labels_are_the_characters(text: str):
    for piece in small_tokenizer().encode(text).elements[:-1]:
        first, stop = piece.span
        if not piece.label.startswith("<") or piece.label == text[first:stop]:
            assert piece.label == text[first:stop] or (piece.label == "␣" and not text[first:stop].strip())


def labels(text: str) -> list[tuple[str, tuple[int, int] | None]]:
    return [(e.label, e.span) for e in small_tokenizer().encode(text).elements]


def test_a_word_is_the_same_pieces_everywhere():
    assert labels("window")[:-1] == [("window", (0, 6))]
    assert labels("the window.") == [("the", (0, 3)), ("window", (4, 10)), (".", (10, 11)), ("</s>", None)]
    assert labels("öffnet das")[:-1] == [("öffnet", (0, 6)), ("das", (7, 10))]


def test_decomposed_text_has_the_same_pieces_and_its_own_spans():
    composed, decomposed = "Ein Mann öffnet", unicodedata.normalize("NFD", "Ein Mann öffnet")
    assert small_tokenizer().encode(composed).ids == small_tokenizer().encode(decomposed).ids
    assert labels(decomposed)[-2] == ("o\u0308ffnet", (9, 16))


def test_pieces_of_one_character_share_its_span():
    assert labels("a 👍")[-5:-1] == [("<F0>", (2, 3)), ("<9F>", (2, 3)), ("<91>", (2, 3)), ("<8D>", (2, 3))]


def test_written_text_has_elements_too():
    tokenizer = small_tokenizer()
    ids = tokenizer.encode("the window.").ids
    written = [(e.label, e.span) for e in tokenizer.elements([tokenizer.bos, *ids])]
    assert written == [("<s>", None), *labels("the window.")]
    half = tokenizer.encode("👍").ids[1:3]  # no characters, but no error either
    assert tokenizer.decode(half) == "\ufffd\ufffd"
    assert [e.span for e in tokenizer.elements(half)] == [(0, 1), (1, 2)]


def test_batches_and_dropout():
    tokenizer = small_tokenizer()
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text).ids for text in TEXTS]
    assert tokenizer.encode_batch([]) == []
    (cut,) = tokenizer.encode_batch(TEXTS[:1], dropout=1.0)
    assert len(cut) == len(TEXTS[0]) + 2  # every byte by itself, the space before the text, the end
    cuts = {tuple(ids) for ids in tokenizer.encode_batch(TEXTS[1:2] * 20, dropout=0.3)}
    assert len(cuts) > 1
    assert {tokenizer.decode(ids) for ids in cuts} == {TEXTS[1]}
    assert tokenizer.encode_batch(TEXTS[:1])[0] == tokenizer.encode(TEXTS[0]).ids  # off again


def test_training_from_files_and_strings_is_the_same(tmp_path: Path):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    from_file = TextTokenizer.train_bpe([file], vocab_size=300)
    assert from_file.to_json() == TextTokenizer.train_bpe(TEXTS, vocab_size=300).to_json()
    assert from_file.vocab_size == 300
    assert (from_file.pad, from_file.bos, from_file.eos, from_file.unk) == (0, 1, 2, 3)


def test_json_round_trip(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(small_tokenizer().to_json(), encoding="utf-8")
    for read in (TextTokenizer.from_json(path), TextTokenizer.from_json(small_tokenizer().to_json())):
        text = "A </s> man ö 👍"
        assert read.encode(text) == small_tokenizer().encode(text)


def test_other_tokenizers_are_refused():
    from tokenizers import Tokenizer, models

    with pytest.raises(ValueError, match="the tokenizer has no piece <pad>"):
        TextTokenizer(Tokenizer(models.BPE({"a": 0}, [])))
    specials = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    with pytest.raises(ValueError, match="256 of the 256 bytes have no piece"):
        TextTokenizer(Tokenizer(models.BPE(specials, [])))
    without_normalizer = small_tokenizer().to_json().replace('"type":"Prepend","prepend":" "', '"type":"Lowercase"')
    with pytest.raises(ValueError, match="it must lose nothing of a text"):
        TextTokenizer.from_json(without_normalizer)
    with pytest.raises(ValueError, match="not a tokenizer"):
        TextTokenizer.from_json("{}")


def test_what_is_no_text():
    tokenizer = small_tokenizer()
    with pytest.raises(ValueError, match=r"character 2 of the text is U\+D83D, half of a surrogate pair"):
        tokenizer.encode("a \ud83d")
    with pytest.raises(ValueError, match=r"id is 361: it must be in \[0, 361\)"):
        tokenizer.decode([361])
    with pytest.raises(ValueError, match=r"ids write 'a', which is not the text 'b'"):
        tokenizer.elements(tokenizer.encode("a").ids, "b")
    with pytest.raises(ValueError, match=r"dropout is 2: it must be in \[0, 1\]"):
        tokenizer.encode_batch(["a"], dropout=2)
    with pytest.raises(ValueError, match=r"vocab_size is 100: .* need at least 260"):
        TextTokenizer.train_bpe(TEXTS, vocab_size=100)
