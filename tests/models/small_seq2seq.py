"""Small random encoder-decoders that answer texts, as directories: model, tokenizer, and how they are to be run."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from regard.inputs.tokenizer import Tokenizer
from tests.inputs.tokenizer.made import byte_backend, template, unigram
from tests.inputs.tokenizer.made import save as save_tokenizer
from tests.inputs.tokenizer.test_sentencepiece import marian as marian_tokenizer

JOBS = {
    "summarization": {
        "prefix": "summarize: ",
        "num_beams": 3,
        "length_penalty": 2.0,
        "min_length": 5,
        "max_length": 12,
    },
    "translation_en_to_de": {"prefix": "translate English to German: ", "early_stopping": True, "num_beams": 4},
}
BART: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip


def bart(directory: Path, **generation: Any) -> Path:
    """It begins with </s>, then <s>, and ends in </s> at its limit, as the real ones do."""
    backend = byte_backend()
    backend.post_processor = template(backend, "<s> $A </s>", "<s> $A </s> $B </s>", "<s>", "</s>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    bos, end, pad = (backend.token_to_id(piece) for piece in ("<s>", "</s>", "<pad>"))
    ids = {"bos_token_id": bos, "eos_token_id": end, "pad_token_id": pad, "decoder_start_token_id": end}
    config = BartConfig(vocab_size=backend.get_vocab_size(), **BART, **ids)
    generation = {"num_beams": 4, "no_repeat_ngram_size": 3, "forced_bos_token_id": bos} | generation
    return _saved(
        directory,
        BartForConditionalGeneration(config),
        save_tokenizer(backend, **names),
        ids | {"max_length": 20, "forced_eos_token_id": end, "early_stopping": True} | generation,
    )


def marian(directory: Path, **generation: Any) -> Path:
    """It begins with the padding, which it never writes."""
    place = marian_tokenizer()
    vocabulary = json.loads((place / "vocab.json").read_text())
    pad, end = vocabulary["<pad>"], vocabulary["</s>"]
    ids = {"eos_token_id": end, "pad_token_id": pad, "decoder_start_token_id": pad}
    config = MarianConfig(vocab_size=len(vocabulary), scale_embedding=True, **BART, **ids)
    generation = {"num_beams": 6, "max_length": 16, "bad_words_ids": [[pad]], "forced_eos_token_id": end} | generation
    return _saved(directory, MarianMTModel(config), place, ids | generation)


def t5(directory: Path, **generation: Any) -> Path:
    """It has two jobs; its matrices have more rows than there are pieces."""
    tokenizer = Tokenizer.from_directory(unigram())
    ids = {"eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad, "decoder_start_token_id": tokenizer.pad}
    config = T5Config(vocab_size=tokenizer.vocab_size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, **ids)
    model = T5ForConditionalGeneration(config)
    model.config.task_specific_params = JOBS
    return _saved(directory, model, unigram(), ids | {"max_length": 14} | generation)


def _saved(directory: Path, model: Any, tokenizer: Path, generation: dict[str, Any]) -> Path:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * (3.0 / parameter.shape[1]) ** 0.5)
        if "final_logits_bias" in dict(model.named_buffers()):
            model.final_logits_bias.normal_(std=0.5)[0, generation["eos_token_id"]] += 2  # so that answers end
    shutil.copytree(tokenizer, directory, dirs_exist_ok=True)
    model.save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory
