"""The same ids, places and text as transformers, on any text."""

from functools import cache
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regard.inputs.tokenizer import Tokenizer
from tests.inputs.tokenizer.made import KINDS, TEXTS, texts


@cache
def both(kind: str) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    return Tokenizer.from_directory(KINDS[kind]()), AutoTokenizer.from_pretrained(KINDS[kind]())


def check_places(ours: Tokenizer, theirs: Any, text: str, pair: str | None) -> None:
    """Ids, types and places of one text or pair."""
    found = ours.encode(text, pair)
    expected = theirs(
        text, pair, return_offsets_mapping=True, return_special_tokens_mask=True, return_token_type_ids=True
    )
    assert found.ids == expected["input_ids"]
    assert found.types == expected["token_type_ids"]
    rows = zip(found.elements, found.texts, expected["offset_mapping"], expected["special_tokens_mask"], strict=True)
    for element, source, (first, stop), special in rows:
        assert (element.span is None) == (source is None) == bool(special)
        if element.span is not None:
            inside = (text, pair)[source][first:stop]
            assert (text, pair)[source][slice(*element.span)] == (inside.strip() or inside)
            assert first <= element.span[0] <= element.span[1] <= stop


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, pair=st.none() | texts.filter(bool))
@example(text="", pair=None)
@example(text=" ".join(TEXTS), pair=" \n x")
def test_encodes_the_same(kind: str, text: str, pair: str | None):
    ours, theirs = both(kind)
    check_places(ours, theirs, text, pair)
    plain = theirs(text, pair, add_special_tokens=False)["input_ids"]
    assert ours.encode(text, pair, specials=False).ids == plain
    assert ours.encode_batch([text if pair is None else (text, pair)], specials=False) == [plain]


@pytest.mark.parametrize("kind", KINDS)
@given(batch=st.lists(texts, max_size=4))
def test_encodes_a_batch_as_it_encodes_one(kind: str, batch: list[str]):
    ours, theirs = both(kind)
    assert ours.encode_batch(batch) == [ours.encode(text).ids for text in batch]
    if batch:
        assert ours.encode_batch(batch) == theirs(batch)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), skip=st.booleans())
def test_decodes_the_same_and_streams_what_it_decodes(kind: str, data: st.DataObject, skip: bool):
    ours, theirs = both(kind)
    known = ours.encode(data.draw(texts)).ids
    ids = known + data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    text = ours.decode(ids, skip_specials=skip)
    assert text == theirs.decode(ids, skip_special_tokens=skip)
    stream = ours.stream(skip_specials=skip)
    parts = [stream.feed(i) for i in ids]
    for n in range(len(parts)):
        assert text.startswith("".join(parts[: n + 1]))  # what was given out stands
    assert "".join(parts) + stream.finish() == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_elements_of_what_was_encoded(kind: str, text: str):
    ours, _ = both(kind)
    found = ours.encode(text)
    assert ours.elements(found.ids, text) == found.elements
    without = ours.elements(ours.encode(text, specials=False).ids, text)
    assert [(e.label, e.span) for e in without] == [(e.label, e.span) for e in found.elements if e.span is not None]
    alone = ours.elements(found.ids)
    decoded = ours.decode(found.ids)
    places = [e.span for e in alone if e.span is not None]
    assert all(0 <= first <= stop <= len(decoded) for first, stop in places)
    covered = {i for span in places for i in range(*span)}
    assert all(decoded[i].isspace() for i in set(range(len(decoded))) - covered)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_special_pieces(kind: str):
    ours, theirs = both(kind)
    for role in ("pad", "bos", "eos", "unk", "cls", "sep", "mask"):
        assert getattr(ours, role) == getattr(theirs, f"{role}_token_id"), role
    assert ours.vocab_size == len(theirs)
    assert ours.special_ids == set(theirs.all_special_ids) | {
        i for i, t in theirs.added_tokens_decoder.items() if t.special
    }
    assert all(ours.piece(i) == theirs.convert_ids_to_tokens(i) for i in range(ours.vocab_size))


def test_text_arrives_when_it_is_certain():
    ours, _ = both("byte-level")
    stream = ours.stream()
    parts = [stream.feed(i) for i in ours.encode("x 👩 y").ids]
    assert "".join(parts) == "x 👩 y"  # nothing was left for finish
    assert sum("👩" in part for part in parts) == 1
    ours, _ = both("byte-fallback")
    stream = ours.stream()
    parts = [stream.feed(i) for i in ours.encode("the ö the").ids]
    assert "".join(parts) == "the ö the"
    assert parts[1] == "the"


def test_bytes_of_one_character_share_its_place():
    ours, _ = both("byte-level")
    rows = [(e.label, e.span) for e in ours.encode("x 𝄞y").elements]
    assert rows[0] == ("x", (0, 1)) and rows[-1] == ("y", (3, 4))
    assert {span for _, span in rows[1:-1]} <= {(2, 3), (1, 2)}
    assert " ".join(label.strip("<>") for label, _ in rows[1:-1] if label != "␣") == "F0 9D 84 9E"
    assert [(e.label, e.span) for e in ours.elements(ours.encode("x 𝄞y").ids)] == rows
    ours, _ = both("byte-fallback")
    rows = [(e.label, e.span) for e in ours.encode("a 𝄞b").elements[1:]]
    assert rows[:2] == [("␣", (0, 1)), ("a", (0, 1))] and rows[-1] == ("b", (3, 4))
    assert rows[2] == ("␣", (1, 2))
    assert rows[3:-1] == [(label, (2, 3)) for label in ("<F0>", "<9D>", "<84>", "<9E>")]
    assert [(e.label, e.span) for e in ours.elements(ours.encode("a 𝄞b").ids)[1:]] == rows
