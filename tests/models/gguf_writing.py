"""Small GGUF files, written with the package `gguf` from transformers' models as llama.cpp converts them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(path: Path, model: Any, architecture: str, quantisation: str = "F32", **fields: Any) -> Path:
    """A file of the model; further fields are written as they are, or left out where they are None."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = model.config
    writer = GGUFWriter(path, architecture)
    head_size = (
        config.head_dim if getattr(config, "head_dim", None) else config.hidden_size // config.num_attention_heads
    )
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "rope.dimension_count": head_size,
    }
    for name, value in (values | fields).items():
        if value is not None:
            add(writer, f"{architecture}.{name}", value)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        if stem in TOP:
            theirs = TOP[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            theirs = f"blk.{layer}.{NAMES[part]}"
            if architecture == "llama" and NAMES[part] in heads:
                tensor = interleaved(tensor, heads[NAMES[part]])
        data = tensor.float().numpy()
        kind = GGMLQuantizationType[quantisation if data.ndim > 1 else "F32"]
        writer.add_tensor(f"{theirs}.{suffix}", quantize(np.ascontiguousarray(data), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: Any, name: str, value: Any) -> None:
    """A field of the kind that the value has."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(name, value)


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Row m and row m + D/2 of every head next to each other."""
    size = rows.shape[0] // heads
    order = [h * size + m + half * size // 2 for h in range(heads) for m in range(size // 2) for half in range(2)]
    return rows[order]
