"""A small random checkpoint that continues text and chats, as a directory: model, byte-level tokenizer, template."""

import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.parity import saved

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def small_checkpoint(directory: Path, **generation: Any) -> Path:
    """Save one; further values go into generation_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["two dogs run over the green grass and a man sees the dogs"] * 5,
        trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in specials])
    config = LlamaConfig(
        vocab_size=320,  # more than there are pieces, as in models whose matrices are filled up
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    _, place = saved(directory, LlamaForCausalLM, config, scale=6.0)
    tokenizer.save(str(place / "tokenizer.json"))
    about = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False}
    about["tokenizer_class"] = "PreTrainedTokenizerFast"
    (place / "tokenizer_config.json").write_text(json.dumps(about))
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": 1} | generation))
    return place
