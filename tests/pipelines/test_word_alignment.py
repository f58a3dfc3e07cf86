"""Sentences aligned by hand are read, and a translator's cross-attention is compared with them."""

import re
from pathlib import Path

import pytest

from regard.models import SavedModel
from regard.pipelines import RequestError, TextTooLong, TranslationPipeline
from regard.pipelines.word_alignment import aligned_pairs, read_aligned
from regard.relations import align
from tests.models.small_translator import small_tokenizer, small_translator

ENGLISH = ["two dogs play .", "a man opens the window ."]
GERMAN = ["zwei hunde spielen .", "ein mann öffnet das fenster ."]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "test.en").write_text("\ufeff" + "\n".join(ENGLISH) + "\n", encoding="utf-8")
    (tmp_path / "test.de").write_text("\n".join(GERMAN) + "\n", encoding="utf-8")
    links = ["1 0 0 S", "1 1 1", "1 3 2 P", "2 5 0 S", "2 5 6 S"]  # German, then English
    (tmp_path / "de-en.ref.wa").write_text("\n".join(links) + "\n")
    return tmp_path


@pytest.fixture
def translate(tmp_path: Path) -> TranslationPipeline:
    return TranslationPipeline(SavedModel(small_translator(), small_tokenizer(), {"task": "translation"}, tmp_path))


def test_links_are_of_the_language_that_is_translated_into(corpus: Path):
    text = read_aligned(corpus, "de")
    assert (text.languages, text.source, text.target) == (("en", "de"), tuple(ENGLISH), tuple(GERMAN))
    first, second = text.reference
    assert (first.sure, first.possible) == ({(0, 0), (1, 1)}, {(3, 2)})
    assert (first.target, first.source, second.target, second.source) == (4, 4, 6, 6)
    assert second.sure == {(5, 0)}
    (skipped,) = text.skipped
    assert "de-en.ref.wa, line 5: '2 5 6 S' is left out" in skipped
    other = read_aligned(corpus)
    assert other.languages == ("de", "en") and other.reference[1].sure == {(0, 5)}
    assert other.reference[0].possible == {(2, 3)}
    assert len(text.first(1)) == 1 and text.first(1).source == tuple(ENGLISH[:1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("de-en.ref.wa", b"3 0 0 S", "line 1: '3 0 0 S' is no link of the 2 sentences"),
        ("de-en.ref.wa", b"1 0 0 S\nzero", "line 2: 'zero' is no link"),
        ("de-en.ref.wa", b"1 0 0 X", "line 1: '1 0 0 X' is no link"),
        ("de-fr.ref.wa", b"", "has 2 files X-Y.ref.wa"),
        ("test.en", b"two dogs", "has 1 sentences in en and 2 in de"),
        ("test.en", b"\xff\n\n", "test.en is not UTF-8"),
    ],
)
def test_what_is_wrong_is_one_line(corpus: Path, name: str, content: bytes, message: str):
    (corpus / name).write_bytes(content)
    with pytest.raises(RequestError, match=re.escape(message)) as error:
        read_aligned(corpus, "de")
    assert "\n" not in str(error.value)


def test_what_is_missing(corpus: Path, tmp_path: Path):
    with pytest.raises(RequestError, match="the target language is 'fr': .* is of de and en"):
        read_aligned(corpus, "fr")
    (corpus / "test.de").unlink()
    with pytest.raises(FileNotFoundError):
        read_aligned(corpus, "de")
    (corpus / "de-en.ref.wa").unlink()
    with pytest.raises(RequestError, match=r"has 0 files X-Y\.ref\.wa"):
        read_aligned(corpus, "de")


def test_every_layer_links_the_words_between_spaces(corpus: Path, translate: TranslationPipeline):
    text = read_aligned(corpus, "de")
    pairs = [*aligned_pairs(translate, text)]
    assert [*pairs[0].links] == [
        f"layer {layer}, {where}"
        for layer in (0, 1)
        for where in ("read where the word is written", "read one step later")
    ]
    for pair, reference, source in zip(pairs, text.reference, ENGLISH, strict=True):
        assert pair.words == reference.source == len(source.split())
        for links in pair.links.values():
            assert sorted(t for t, _ in links) == [*range(reference.target)]
            assert {s for _, s in links} <= {*range(reference.source)}
        ids = translate.tokenizer.encode_batch([source])[0]
        spans = [e.span for e in translate.tokenizer.elements(ids, source) if e.span is not None]
        written = [source[first:stop] for first, stop in spans if source[first:stop].strip()]
        assert pair.pieces == len(written) >= pair.words
        assert pair.whole == sum(word in written for word in source.split())
    # in a sentence without punctuation the corpus's words are the library's own
    given = translate.given("two dogs play", "zwei hunde spielen")
    assert (given.source, given.text, given.score) == ("two dogs play", "zwei hunde spielen", 0.0)
    expected = {(t, s) for t, s, _ in align(given.relations, layer=1, shifted=True).links}
    (corpus / "test.en").write_text("two dogs play\n")
    (corpus / "test.de").write_text("zwei hunde spielen\n")
    (corpus / "de-en.ref.wa").write_text("1 0 0\n")
    (alone,) = aligned_pairs(translate, read_aligned(corpus, "de"))
    assert alone.links["layer 1, read one step later"] == expected


def test_a_pair_that_is_too_long_or_empty(translate: TranslationPipeline):
    with pytest.raises(TextTooLong, match="the target of pair 7 has"):
        translate.given("two dogs", "zwei hunde " * 60, "pair 7")
    with pytest.raises(ValueError, match="pair 7 is empty on one side"):
        translate.given("two dogs", " ", "pair 7")
