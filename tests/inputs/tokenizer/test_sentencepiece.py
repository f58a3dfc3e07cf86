"""SentencePiece files: read as the protocol buffers are, and cut as the likeliest of all ways to cut a text."""

import base64
import json
import math
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.inputs.tokenizer import Tokenizer, TokenizerError
from regard.inputs.tokenizer.sentencepiece import Kind, read_model
from tests.inputs.tokenizer.made import fresh, texts
from tests.inputs.tokenizer.test_parity import check_places

SOURCE = {"▁": -3.0, "▁the": -2.5, "the": -4.5, "t": -6.0, "h": -6.2, "e": -5.0, "w": -6.1, "in": -4.0, "▁w": -4.1,
          "i": -6.5, "n": -6.3, "d": -6.4, "dow": -5.5, "o": -6.6, "s": -5.9, ".": -4.4, "wind": -7.0}  # fmt: skip
TARGET = {
    "▁": -3.0,
    "▁das": -2.5,
    "a": -4.0,
    "d": -4.2,
    "s": -4.4,
    "ö": -6.0,
    "fen": -5.0,
    "▁f": -4.0,
    "e": -4.0,
    "n": -4.4,
}


def proto(pieces: list[tuple[str, float, int]], **normalizer: Any) -> bytes:
    """The file of a model, written by the protocol buffers themselves."""
    from transformers.utils import sentencepiece_model_pb2_new as pb

    model = pb.ModelProto()
    for text, score, kind in pieces:
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.model_type = 1
    model.trainer_spec.unk_id = next(i for i, (_, _, kind) in enumerate(pieces) if kind == Kind.UNKNOWN)
    model.trainer_spec.vocab_size = len(pieces)
    model.trainer_spec.input_sentence_size = 2**40
    for name, value in normalizer.items():
        setattr(model.normalizer_spec, name, value)
    return model.SerializeToString()


def spm(scores: dict[str, float], **normalizer: Any) -> bytes:
    special = [("<unk>", 0.0, Kind.UNKNOWN), ("<s>", 0.0, Kind.CONTROL), ("</s>", 0.0, Kind.CONTROL)]
    return proto([*special, *((text, score, Kind.NORMAL) for text, score in scores.items())], **normalizer)


@cache
def marian() -> Path:
    path = fresh()
    (path / "source.spm").write_bytes(spm(SOURCE))
    (path / "target.spm").write_bytes(spm(TARGET))
    # As in real ones, the order is another, a piece of the source is missing, and the specials are at both ends.
    pieces = ["</s>", "<unk>", *sorted({*SOURCE, *TARGET} - {"dow"}), ">>deu<<", "<pad>"]
    (path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), encoding="utf-8")
    config = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def likeliest(text: str, scores: dict[str, float]) -> float:
    """The score of the best way to cut a text, each unknown character 10 below the worst piece."""
    best = [0.0] + [-math.inf] * len(text)
    for stop in range(1, len(text) + 1):
        for first in range(stop):
            if text[first:stop] in scores:
                best[stop] = max(best[stop], best[first] + scores[text[first:stop]])
        if text[stop - 1] not in scores:
            best[stop] = max(best[stop], best[stop - 1] + min(scores.values()) - 10)
    return best[-1]


letters = st.text(st.sampled_from("thewindo s.öXfa  \t"), max_size=25)


@given(text=letters)
def test_marian_takes_the_likeliest_pieces(text: str):
    ours = Tokenizer.from_directory(marian())
    found = ours.encode(text)
    assert found.ids[-1] == ours.eos and found.elements[-1].span is None
    written = " ".join(text.replace("\t", "\0").split(" ")).strip(" ")  # a tabulator is no space without a table
    while "  " in written:
        written = written.replace("  ", " ")
    expected = "▁" + written.replace("\0", "\t").replace(" ", "▁") if written.strip() else ""
    vocab = json.loads((marian() / "vocab.json").read_text(encoding="utf-8"))
    backing = ours._backend.encode(text, add_special_tokens=False).tokens
    if written.strip() == written.replace("\0", "\t").strip():
        assert "".join(backing) == expected
        floor = min(SOURCE.values()) - 10
        score = sum(SOURCE.get(p, floor * len(p)) for p in backing)
        assert score == pytest.approx(likeliest(expected, SOURCE))
    assert found.ids[:-1] == [vocab.get(p, vocab["<unk>"]) for p in backing]
    known = all(c in "thewindo s.öfa" and p != "dow" for p in backing for c in p.replace("▁", ""))
    if known and ours.unk not in found.ids:
        assert ours.decode(found.ids) == " ".join(text.split())


def test_marian_pieces_and_places():
    ours = Tokenizer.from_directory(marian())
    found = ours.encode("the  windows.")
    assert [(e.label, e.span) for e in found.elements] == [
        ("the", (0, 3)), ("w", (5, 6)), ("in", (6, 8)), ("<unk>", (8, 11)), ("s", (11, 12)), (".", (12, 13)),
        ("</s>", None),
    ]  # fmt: skip
    coded = ours.encode(">>deu<< the")
    assert [(e.label, e.span) for e in coded.elements] == [(">>deu<<", (0, 7)), ("the", (8, 11)), ("</s>", None)]
    assert ours.encode(">>xyz<<").ids == [ours.unk, ours.eos]
    # ö is in the target's model alone, but in the vocabulary of both: Marian looks a piece up by its characters.
    assert ours.piece(ours.encode("ö").ids[1]) == "ö"
    assert ours.encode_batch(["the", ("the", "in")]) == [ours.encode("the").ids, ours.encode("the", "in").ids]
    assert ours.elements(found.ids, "the  windows.") == found.elements
    target = Tokenizer.from_directory(marian(), target=True)
    assert [target.piece(i) for i in target.encode("das fen").ids] == ["▁das", "▁", "fen", "</s>"]
    assert (ours.pad, ours.eos, ours.unk, ours.bos) == (ours.vocab_size - 1, 0, 1, None)


@given(data=st.data(), skip=st.booleans())
def test_marian_streams_what_it_decodes(data: st.DataObject, skip: bool):
    ours = Tokenizer.from_directory(marian())
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=15))
    stream = ours.stream(skip_specials=skip)
    assert "".join(stream.feed(i) for i in ids) + stream.finish() == ours.decode(ids, skip_specials=skip)


def test_marian_decodes_to_sentences():
    ours = Tokenizer.from_directory(marian())
    ids = [ours.id_of(p) for p in ("▁the", "▁w", "in", "</s>", "▁the", "<pad>")]
    assert ours.decode(ids) == "the win the"
    assert ours.decode(ids, skip_specials=False) == "the win</s> the<pad>"


def test_separate_vocabularies(tmp_path: Path):
    for file in marian().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"separate_vocabs": true}')
    (tmp_path / "target_vocab.json").write_text('{"<unk>": 0, "▁das": 1, "</s>": 2, "<pad>": 3}', encoding="utf-8")
    assert Tokenizer.from_directory(tmp_path, target=True).encode("das").ids == [1, 2]
    (tmp_path / "target.spm").unlink()
    with pytest.raises(TokenizerError, match="has no target.spm"):
        Tokenizer.from_directory(tmp_path, target=True)


@cache
def t5() -> tuple[Tokenizer, Any]:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0, Kind.CONTROL), ("</s>", 0.0, Kind.CONTROL), ("<unk>", 0.0, Kind.UNKNOWN)]
    pieces += [(text, score, Kind.NORMAL) for text, score in SOURCE.items()]
    path = fresh()
    (path / "spiece.model").write_bytes(proto(pieces))
    vocab = [(text, struct.unpack("<f", struct.pack("<f", score))[0]) for text, score, _ in pieces]
    blanks = [f"<extra_id_{i}>" for i in reversed(range(100))]
    theirs = T5Tokenizer(vocab=vocab + [(b, 0.0) for b in blanks], additional_special_tokens=blanks)
    return Tokenizer.from_directory(path), theirs


@given(text=letters | texts | st.just("the <extra_id_0> in <extra_id_99>"), pair=st.none() | letters.filter(bool))
def test_t5(text: str, pair: str | None):
    ours, theirs = t5()
    check_places(ours, theirs, text, pair)
    ids = ours.encode(text, pair).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.id_of("<extra_id_0>") == ours.vocab_size - 1


def test_what_is_read_is_what_was_written(tmp_path: Path):
    pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", -1.5, 3),
        ("▁a", -2.25, 1),
        ("user", 0.5, 4),
        ("old", -9.0, 5),
        ("<0x0A>", 0.0, 6),
    ]
    written = proto(pieces, precompiled_charsmap=b"\x01\x02", add_dummy_prefix=False, remove_extra_whitespaces=False)
    (tmp_path / "x.spm").write_bytes(written)
    model = read_model(tmp_path / "x.spm")
    assert [(p.text, p.score, p.kind) for p in model.pieces] == pieces
    assert (model.charsmap, model.dummy_prefix, model.remove_extra_spaces, model.unk) == (b"\x01\x02", False, False, 0)


def test_a_table_of_characters(tmp_path: Path):
    from tokenizers.normalizers import Precompiled

    table = base64.b64decode(TABLE)
    (tmp_path / "source.spm").write_bytes(spm(SOURCE, precompiled_charsmap=table))
    for name in ("vocab.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((marian() / name).read_bytes())
    ours = Tokenizer.from_directory(tmp_path)
    assert Precompiled(table).normalize_str("T") == "t"
    assert ours.encode("The").ids == Tokenizer.from_directory(marian()).encode("the").ids
    assert ours.encode("The").elements[0].label == "The"
    (tmp_path / "source.spm").write_bytes(spm(SOURCE, precompiled_charsmap=b"\xff\xff\xff\xff"))
    with pytest.raises(TokenizerError, match="source.spm: the table of characters"):
        Tokenizer.from_directory(tmp_path)


def table() -> str:
    """A table that makes "t" of "T": its size, a double-array trie of one letter, and what that leads to."""
    units = [0] * 512
    offset = 256
    root = offset << 10
    units[0] = root
    place = offset ^ ord("T")
    child = 128
    units[place] = ord("T") | 1 << 8 | (place ^ child) << 10
    units[child] = 1 << 31
    trie = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(trie)) + trie + b"t\0").decode()


TABLE = table()


@given(cut=st.integers(0, 400), place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_damaged_files(cut: int, place: int, byte: int):
    path = fresh()
    for name in ("vocab.json", "tokenizer_config.json"):
        (path / name).write_bytes((marian() / name).read_bytes())
    data = bytearray((marian() / "source.spm").read_bytes())
    data[place % len(data)] = byte
    (path / "source.spm").write_bytes(data[: len(data) - cut % len(data)])
    try:
        Tokenizer.from_directory(path)  # a changed score is still a model
    except TokenizerError as error:
        assert "\n" not in str(error) and "source.spm" in str(error)


def test_models_of_other_kinds(tmp_path: Path):
    from transformers.utils import sentencepiece_model_pb2_new as pb

    model = pb.ModelProto.FromString(spm(SOURCE))
    model.trainer_spec.model_type = 2
    (tmp_path / "x.spm").write_bytes(model.SerializeToString())
    with pytest.raises(TokenizerError, match="x.spm: a model of byte-pair encoding: it must be a unigram model"):
        read_model(tmp_path / "x.spm")
