"""Small tokenizers of every kind, trained here, and saved as transformers saves them."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The window was open, and a cold wind came in; nobody closed it.",
    "Größe, naïve façade, déjà vu: 12 345 things don't fit, isn't it? I'm sure.",
    "Die Fenster öffnen sich nicht! Wir haben's versucht.",
    "def main(argument):\n    return argument ** 2  # 日本語 и русский 👍",
    "unaffable, unwindable, rewinding, windows and winds",
]

characters = st.characters(exclude_categories=["Cs"])
tricky = st.sampled_from(
    ["e\u0301", "A\u030a", "한", "👩‍👩‍👧", "👍🏽", "ﬁ", "₂", "▁", "Ġ", "\u0301", "\r\n", "\x00", "\ufffd", "##", "日本",
     "</s>", "<pad>", "<|endoftext|>", "[MASK]", "[SEP]", "<mask>", " ", "  ", "\t",
     "don't", " n't", " .", " ' ", "<0x41>", "İ", "ß", "\u2028"]
)  # fmt: skip
texts = st.lists(st.one_of(characters, tricky, st.sampled_from(TEXTS)), max_size=10).map("".join)


_KEPT: list[TemporaryDirectory[str]] = []  # until the tests end


def fresh() -> Path:
    """An empty directory."""
    _KEPT.append(TemporaryDirectory(prefix="regard-tokenizer-"))
    return Path(_KEPT[-1].name)


def save(backend: Tokenizer, **settings: Any) -> Path:
    """The directory of a PreTrainedTokenizerFast."""
    from transformers import PreTrainedTokenizerFast

    path = fresh()
    PreTrainedTokenizerFast(tokenizer_object=backend, **settings).save_pretrained(path)
    return path


def template(backend: Tokenizer, single: str, pair: str, *pieces: str) -> Any:
    ids = [(piece, backend.token_to_id(piece)) for piece in pieces]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


@cache
def wordpiece() -> Path:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=180, special_tokens=specials, show_progress=False)
    )
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    backend.post_processor = template(backend, "[CLS]:0 $A:0 [SEP]:0", pair, "[CLS]", "[SEP]")
    backend.enable_truncation(5)  # as some checkpoints have it
    backend.enable_padding(length=12)
    names = {f"{s[1:-1].lower()}_token": s for s in specials}
    return save(backend, **names, clean_up_tokenization_spaces=True)


def byte_backend(alphabet: bool = True) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    specials = ["<|endoftext|>", "<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=letters, show_progress=False),
    )
    return backend


@cache
def byte_level() -> Path:
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    return save(byte_backend(), **names, clean_up_tokenization_spaces=True)


@cache
def llama3() -> Path:
    backend = byte_backend()
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    pattern += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bos = template(backend, "<s> $A", "<s> $A <s>:1 $B:1", "<s>")
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), bos])
    return save(backend, bos_token="<s>", eos_token="</s>", extra_special_tokens=["<|extra|>"])


@cache
def unigram() -> Path:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False),
    )
    backend.post_processor = template(backend, "$A </s>", "$A </s> $B </s>", "</s>")
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return save(backend, **names, clean_up_tokenization_spaces=True)


@cache
def byte_fallback() -> Path:
    """Like Llama 2: pieces of characters, and a piece for each byte of what has none."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [*specials, *(f"<0x{b:02X}>" for b in range(256)), *"▁abcdehilnorstuw,.", "▁t", "he", "▁the", "in", "▁w"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n"), ("▁", "w")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(specials)
    backend.post_processor = template(backend, "<s> $A", "<s> $A <s>:1 $B:1", "<s>")
    return save(backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


KINDS = {
    "wordpiece": wordpiece, "byte-level": byte_level, "llama3": llama3, "unigram": unigram,
    "byte-fallback": byte_fallback,
}  # fmt: skip


def edited(path: Path, into: Path, file: str = "tokenizer_config.json", **changes: Any) -> Path:
    """A copy of a directory with other values in one of its JSON files; None takes a value out."""
    into.mkdir(exist_ok=True)
    for source in path.iterdir():
        (into / source.name).write_bytes(source.read_bytes())
    content = json.loads((into / file).read_text(encoding="utf-8"))
    content |= changes
    content = {key: value for key, value in content.items() if value is not None}
    (into / file).write_text(json.dumps(content), encoding="utf-8")
    return into
