"""Small random encoders of text with their tokenizers, as directories, for pipelines and commands."""

import json
from pathlib import Path
from typing import Any

import transformers

from tests.models.parity import saved

KNOWN = "a the man two dogs run over green grass and sees window open it was good bad very not film . , !"
TEXTS = [
    "Two dogs run over the green grass.",
    "good",
    "The film was not very good, and it was not very bad, and the man sees it.",
    "A man!",
    "the the the the the the",
]
POSITIONS = 40


def small_bert(directory: Path, head: str = "Model", **config: Any) -> Path:
    """Save a BERT with this head and a tokenizer of word pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [p + c for p in ("", "##") for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*specials, *KNOWN.split(), *letters]))}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    sizes: dict[str, Any] = {
        "vocab_size": len(vocab) + 3,  # more than there are pieces, as in models whose matrices are filled up
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    kind = getattr(transformers, f"Bert{head}")
    _, place = saved(directory, kind, transformers.BertConfig(**(sizes | config)), scale=6.0)
    names = {f"{piece[1:-1].lower()}_token": piece for piece in specials}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(place)
    about = json.loads((place / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps(about | {"tokenizer_class": "BertTokenizer"}))
    return place


def small_roberta(directory: Path, head: str = "ForMaskedLM", **config: Any) -> Path:
    """Save a RoBERTa with this head and a tokenizer of bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    sizes: dict[str, Any] = {
        "vocab_size": backend.get_vocab_size(),
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1,
    }  # fmt: skip
    kind = getattr(transformers, f"Roberta{head}")
    _, place = saved(directory, kind, transformers.RobertaConfig(**(sizes | config)), scale=6.0)
    names = {f"{piece.strip('<>/')}_token": piece for piece in ("<pad>", "<unk>", "<mask>")}
    names |= {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(place)
    return place


def as_sentence_encoder(
    place: Path, *, pooling: dict[str, Any] | None = None, normalize: bool = False, most: int | None = None, **more: Any
) -> Path:
    """Add the files of sentence-transformers to a checkpoint; `more` goes into config_sentence_transformers.json."""
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    (place / "modules.json").write_text(json.dumps(modules))
    (place / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True} if pooling is None else pooling
    (place / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | pooling))
    if most is not None:
        (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": most, "do_lower_case": False}))
    if more:
        (place / "config_sentence_transformers.json").write_text(json.dumps(more))
    return place
