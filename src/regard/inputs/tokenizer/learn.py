"""Learn a tokenizer from texts: characters, byte pairs (arXiv 1508.07909) or word pieces (arXiv 1609.08144).

What is learnt are the files of a Hugging Face checkpoint, tokenizer.json and tokenizer_config.json, which `Tokenizer`
reads and transformers as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
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


def learn_word_pieces(
    texts: Callable[[], Iterable[str]], vocab_size: int, *, lowercase: bool = True
) -> dict[str, bytes]:
    """Words and parts of words, as BERT has them, with [CLS] before a text and [SEP] after it.

    The same texts give the same pieces. The trainer numbers the letters within words as it meets them, in an order that
    is another in each process, and their numbers decide between pairs that are equally frequent; so they are given
    theirs before.

    Args:
        texts: called twice, for the same texts.
        vocab_size: pieces at most, five special ones among them.
        lowercase: of all texts; accents are taken off as well.

    Raises:
        TokenizerError: if vocab_size is less than 100.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if vocab_size < 100:
        raise TokenizerError(f"vocab_size is {vocab_size}: word pieces need at least 100")
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()
    specials = [*WORD_PIECE_SPECIALS.values()]
    letters: set[str] = set()
    for text in texts():
        letters.update(normalizer.normalize_str(checked_text(text)))
    # punctuation, and what the normaliser puts blanks around, such as Chinese characters, are words of their own
    within = [
        f"##{letter}"
        for letter in sorted(letters)
        if normalizer.normalize_str(letter) == letter and len(pre_tokenizer.pre_tokenize_str(f"a{letter}")) == 1
        if not letter.isspace()
    ]
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizer
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=specials + within, show_progress=False)
    with reporting("a tokenizer could not be learnt"):
        learner.train_from_iterator(texts(), trainer)
    backend = Tokenizer(models.WordPiece(vocab=learner.get_vocab(), unk_token="[UNK]"))
    backend.add_special_tokens(specials)
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    backend.decoder = decoders.WordPiece()
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
