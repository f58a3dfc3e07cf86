"""Tokenizers that are learnt write the texts they were learnt from, and are read by transformers alike."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from regard.inputs.tokenizer import Tokenizer, TokenizerError
from regard.inputs.tokenizer.learn import learn_byte_pairs, learn_characters, learn_word_pieces

TEXTS = ["The café closes at 9.\n\nThe  cat\tsat — on the mat.\n", "Größe, naïveté; 犬 and 🙂\n"] * 4
MAKERS = {
    "characters": learn_characters,
    "byte pairs": lambda texts: learn_byte_pairs(texts, 300),
    "word pieces": lambda texts: learn_word_pieces(lambda: texts, 200),
}


def made(place: Path, kind: str) -> Tokenizer:
    place.mkdir(exist_ok=True)
    for name, content in MAKERS[kind](TEXTS).items():
        (place / name).write_bytes(content)
    return Tokenizer.from_directory(place)


@pytest.mark.parametrize("kind", ["characters", "byte pairs"])
def test_gives_back_what_it_read(tmp_path: Path, kind: str) -> None:
    tokenizer = made(tmp_path, kind)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text
    assert tokenizer.eos is not None and tokenizer.piece(tokenizer.eos) == "<|endoftext|>"
    if kind == "characters":
        ids = tokenizer.encode_batch(["The ẞ"])[0]
        assert len(ids) == 5 and ids[-1] == tokenizer.unk and tokenizer.vocab_size == len({*"".join(TEXTS)}) + 2
    else:
        assert tokenizer.decode(tokenizer.encode_batch(["ẞ never seen"])[0]) == "ẞ never seen"
        assert len(tokenizer.encode_batch([" cat sat"])[0]) < len(" cat sat")


def test_word_pieces_are_framed(tmp_path: Path) -> None:
    tokenizer = made(tmp_path, "word pieces")
    assert (tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask) == (0, 1, 2, 3, 4)
    ids = tokenizer.encode_batch(["The CAFÉ"])[0]
    assert ids[0] == 2 and ids[-1] == 3 and tokenizer.decode(ids) == "the cafe"
    found = tokenizer.encode("the cat", "the mat")
    assert found.ids.count(3) == 2 and sorted({*found.types}) == [0, 1]


@pytest.mark.parametrize("kind", MAKERS)
def test_transformers_cuts_the_same(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = made(tmp_path, kind)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode_batch([text])[0]


@pytest.mark.parametrize("kind", ["byte_pairs", "word_pieces"])
def test_every_process_learns_the_same(kind: str) -> None:
    program = (
        "import hashlib, random; from regard.inputs.tokenizer import learn\n"
        "draw = random.Random(1)\n"
        "texts = [''.join(draw.choices('abcdefghijklmnop \", é, 漢.', k=80)) for _ in range(40)]\n"
        f"made = learn.learn_{kind}(texts if '{kind}' == 'byte_pairs' else lambda: texts, 400)\n"
        "print(hashlib.sha256(made['tokenizer.json']).hexdigest())"
    )
    made = {subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(4)}
    assert len(made) == 1


def test_letters_of_their_own_take_no_place_within_words() -> None:
    pieces = json.loads(learn_word_pieces(lambda: ["漢字 a, bc"] * 3, 100)["tokenizer.json"])["model"]["vocab"]
    assert "漢" in pieces and "##漢" not in pieces and "##," not in pieces and "##c" in pieces


def test_refuses() -> None:
    with pytest.raises(TokenizerError, match="texts are empty"):
        learn_characters([""])
    with pytest.raises(TokenizerError, match="vocab_size is 256"):
        learn_byte_pairs(TEXTS, 256)
    with pytest.raises(TokenizerError, match="vocab_size is 99"):
        learn_word_pieces(lambda: TEXTS, 99)
    for make in MAKERS.values():
        with pytest.raises(TokenizerError, match="half of a surrogate pair"):
            make(["a\ud800"])
