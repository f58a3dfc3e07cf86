"""Small random models that others wrote, with inputs, and how their attention weights are found without `observe`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
LM = {**SMALL, "vocab_size": 50, "max_position_embeddings": 64}
GROUPED = {**LM, "num_key_value_heads": 2}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [15, 16, 17, 18, 19, 3, 3, 3]])
RIGHT = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])  # padding on the right
LEFT = RIGHT.flip(1)
IMAGE = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16).sin()


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Args:
        make: the model, from the name of an attention implementation.
        inputs: of its forward pass.
        sites: for each field of its output that holds attention weights, the paths of the sites, by layer ("{}").
        implementations: under which it runs.
        double: whether it runs in float64.
    """

    make: Callable[[str], nn.Module]
    inputs: dict[str, Tensor]
    sites: dict[str, str]
    implementations: tuple[str, ...] = ("sdpa", "eager")
    double: bool = True


def of(model: str, config: str, /, **settings: Any) -> Callable[[str], nn.Module]:
    """Makes a model of transformers by the names of its class and its config."""

    def make(implementation: str) -> nn.Module:
        import transformers

        torch.manual_seed(0)
        made = getattr(transformers, config)(**settings)
        found = getattr(transformers, model)._from_config(made, attn_implementation=implementation)
        with torch.no_grad():
            for parameter in found.parameters():  # so that weights are uneven: initial ones are next to nothing
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        return found.eval()

    return make


TEXT = {"input_ids": IDS, "attention_mask": RIGHT}
SEQ2SEQ = {**TEXT, "decoder_input_ids": IDS[:, :5] + 20}
BART = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip

KINDS: dict[str, Kind] = {
    "bert": Kind(of("BertModel", "BertConfig", **LM), TEXT, {"attentions": "encoder.layer.{}.attention.self"}),
    "gpt2": Kind(
        of("GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=2, n_head=4, vocab_size=50, n_positions=64),
        {"input_ids": IDS, "attention_mask": LEFT},
        {"attentions": "transformer.h.{}.attn"},
    ),
    "llama": Kind(of("LlamaForCausalLM", "LlamaConfig", **GROUPED), TEXT, {"attentions": "model.layers.{}.self_attn"}),
    "qwen3": Kind(
        of("Qwen3ForCausalLM", "Qwen3Config", **GROUPED, head_dim=8),
        {"input_ids": IDS, "attention_mask": LEFT},
        {"attentions": "model.layers.{}.self_attn"},
    ),
    "gemma3": Kind(  # a sliding window in one of its layers
        of(
            "Gemma3ForCausalLM", "Gemma3TextConfig", **GROUPED, head_dim=8, sliding_window=3, pad_token_id=0,
            layer_types=["sliding_attention", "full_attention"],
        ),
        TEXT,
        {"attentions": "model.layers.{}.self_attn"},
    ),
    "gemma2": Kind(  # softcap, eager alone
        of("Gemma2ForCausalLM", "Gemma2Config", **GROUPED, head_dim=8, sliding_window=3, attn_logit_softcapping=2.0),
        TEXT,
        {"attentions": "model.layers.{}.self_attn"},
        ("eager",),
    ),
    "gpt_oss": Kind(  # sinks, eager alone
        of(
            "GptOssForCausalLM", "GptOssConfig", **GROUPED, head_dim=8, sliding_window=3, num_local_experts=2,
            num_experts_per_tok=1, pad_token_id=0,
        ),
        TEXT,
        {"attentions": "model.layers.{}.self_attn"},
        ("eager",),
        double=False,
    ),
    "t5": Kind(
        of(
            "T5ForConditionalGeneration", "T5Config", d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4,
            vocab_size=50, decoder_start_token_id=0,
        ),
        SEQ2SEQ,
        {
            "encoder_attentions": "encoder.block.{}.layer.0.SelfAttention",
            "decoder_attentions": "decoder.block.{}.layer.0.SelfAttention",
            "cross_attentions": "decoder.block.{}.layer.1.EncDecAttention",
        },
    ),
    "bart": Kind(
        of("BartForConditionalGeneration", "BartConfig", **BART),
        SEQ2SEQ,
        {
            "encoder_attentions": "model.encoder.layers.{}.self_attn",
            "decoder_attentions": "model.decoder.layers.{}.self_attn",
            "cross_attentions": "model.decoder.layers.{}.encoder_attn",
        },
    ),
    "whisper": Kind(
        of(
            "WhisperForConditionalGeneration", "WhisperConfig", **BART, num_mel_bins=8, max_source_positions=10,
            max_target_positions=16,
        ),
        {
            "input_features": torch.linspace(-2, 2, 2 * 8 * 20).reshape(2, 8, 20).cos(),
            "decoder_input_ids": IDS[:, :5],
        },
        {
            "encoder_attentions": "model.encoder.layers.{}.self_attn",
            "decoder_attentions": "model.decoder.layers.{}.self_attn",
            "cross_attentions": "model.decoder.layers.{}.encoder_attn",
        },
    ),
    "vit": Kind(
        of("ViTModel", "ViTConfig", **SMALL, image_size=16, patch_size=4),
        {"pixel_values": IMAGE},
        {"attentions": "layers.{}.attention"},
    ),
    "clip": Kind(
        of(
            "CLIPModel", "CLIPConfig", projection_dim=16,
            text_config={**LM, "projection_dim": 16, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0},
            vision_config={**SMALL, "image_size": 16, "patch_size": 4, "projection_dim": 16},
        ),
        {**TEXT, "pixel_values": IMAGE},
        {
            "text_model_output.attentions": "text_model.encoder.layers.{}.self_attn",
            "vision_model_output.attentions": "vision_model.encoder.layers.{}.self_attn",
        },
    ),
    "gptj": Kind(  # in the open
        of(
            "GPTJForCausalLM", "GPTJConfig", n_embd=16, n_layer=2, n_head=4, vocab_size=50, n_positions=64,
            rotary_dim=4, bos_token_id=0, eos_token_id=1,
        ),
        {"input_ids": IDS, "attention_mask": LEFT},
        {"attentions": "transformer.h.{}.attn"},
        ("eager",),
    ),
    "falcon": Kind(  # sdpa called by name, or in the open
        of(
            "FalconForCausalLM", "FalconConfig", hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
            vocab_size=50, new_decoder_architecture=True, num_kv_heads=2, alibi=False, bos_token_id=0, eos_token_id=1,
        ),
        TEXT,
        {"attentions": "transformer.h.{}.self_attention"},
    ),
    "bloom": Kind(  # in the open, with ALiBi
        of(
            "BloomForCausalLM", "BloomConfig", hidden_size=16, n_layer=2, n_head=4, vocab_size=50, bos_token_id=0,
            eos_token_id=1,
        ),
        {"input_ids": IDS, "attention_mask": LEFT},
        {"attentions": "transformer.h.{}.self_attention"},
        ("eager",),
    ),
    "deberta": Kind(  # in the open, with products of positions in the scores
        of(
            "DebertaV2Model", "DebertaV2Config", **LM, relative_attention=True, pos_att_type=["c2p", "p2c"],
            max_relative_positions=8, position_biased_input=False, type_vocab_size=0,
        ),
        TEXT,
        {"attentions": "encoder.layer.{}.attention.self"},
        ("eager",),
    ),
}  # fmt: skip


def field_of(output: Any, name: str) -> Any:
    """`a.b` of an output."""
    for part in name.split("."):
        output = getattr(output, part)
    return output
