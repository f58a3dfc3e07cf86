"""Learn a tokenizer from texts: characters, byte pairs (arXiv 1508.07909) or word pieces (arXiv 1609.08144).

What is learnt are the files of a Hugging Face checkpoint, tokenizer.json and tokenizer_config.json, which `Tokenizer`
reads and transformers as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from regard.inputs.tokenizer.errors import TokenizerError, checked_text, reporting

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

END, UNKNOWN = "<|endoftext|>", "<unk>"
WORD_PIECE_SPECIALS: Mapping[str, str] = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip


def learn_characters(texts: Iterable[str]) -> dict[str, bytes]:
    """A piece for every character that occurs, one for all others, and one that ends a text.

    Args:
        texts: read once.

    Returns:
        The content of the two files, by name.

    Raises:
        TokenizerError: if there is no character.
    """
    from tokenizers import Tokenizer, decoders, models

    found: set[str] = set()
    for text in texts:
        found.update(checked_text(text))
    if not found:
        raise TokenizerError("the texts are empty: a tokenizer is learnt from at least one character")
    vocabulary = {piece: i for i, piece in enumerate([UNKNOWN, END, *sorted(found)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    backend.add_special_tokens([UNKNOWN, END])
    backend.decoder = decoders.Fuse()
    return _files(backend, {"unk_token": UNKNOWN, "eos_token": END})


def learn_byte_pairs(texts: Iterable[str], vocab_size: int) -> dict[str, bytes]:
    """The pieces that write these texts shortest; every byte has one, so that no text is unknown.

    Args:
        texts: read once.
        vocab_size: pieces at most, the 256 bytes and the one that ends a text among them.

    Raises:
        TokenizerError: if vocab_size is less than 257.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise TokenizerError(f"vocab_size is {vocab_size}: the 256 bytes and the end need at least 257")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with reporting("a tokenizer could not be learnt"):
        backend.train_from_iterator(map(checked_text, texts), trainer)
    return _files(backend, {"eos_token": END})


def learn_word_pieces(texts: Iterable[str], vocab_size: int, *, lowercase: bool = True) -> dict[str, bytes]:
    """Words and parts of words, as BERT has them, with [CLS] before a text and [SEP] after it.

    Args:
        texts: read once.
        vocab_size: pieces at most, five special ones among them.
        lowercase: of all texts; accents are taken off as well.

    Raises:
        TokenizerError: if vocab_size is less than 100.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if vocab_size < 100:
        raise TokenizerError(f"vocab_size is {vocab_size}: word pieces need at least 100")
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = [*WORD_PIECE_SPECIALS.values()]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    with reporting("a tokenizer could not be learnt"):
        backend.train_from_iterator(map(checked_text, texts), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(piece, specials.index(piece)) for piece in ("[CLS]", "[SEP]")],
    )
    return _files(backend, {**WORD_PIECE_SPECIALS, "do_lower_case": lowercase})


def _files(backend: Backend, config: Mapping[str, Any]) -> dict[str, bytes]:
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    return {
        "tokenizer.json": backend.to_str(pretty=False).encode(),
        "tokenizer_config.json": json.dumps(about, indent=2).encode() + b"\n",
    }
