"""Models from GGUF files: Llama's families, dequantised to the numbers that a Hugging Face checkpoint would have.

The metadata become the settings that `regard.models.llama` reads, the tensors those of its table of rules. In files of
the architecture llama the rows of query and key stand pairwise interleaved, as the rotary embedding of llama.cpp
wants them; that is undone. A file is only read; what `Checkpoint.save` writes is a directory with the dequantised
tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.attention import Llama3Scaling
from regard.models.checkpoint import Checkpoint, build
from regard.models.family import ModelError, Settings
from regard.models.gguf_file import GGUFFile, Stored, open_gguf
from regard.models.rules import StoredTensor

ARCHITECTURES: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""From general.architecture to the family that reads it."""
_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_INTERLEAVED = ("llama", "mistral")

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_FREQUENCIES = "rope_freqs.weight"
_LLAMA3_LENGTH = 8192  # what Llama 3.1, 3.2 and 3.3 were trained with before their frequencies were scaled
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_gguf(path: str | Path, *, dtype: torch.dtype | None = torch.float32) -> Checkpoint:
    """Read a model of Llama's families from a GGUF file.

    Needs the package `gguf` (regard's extra of that name), whose functions dequantise.

    Args:
        path: the file, all in one.
        dtype: of the model's parameters; None is float32, too.

    Raises:
        ModelError: the package is missing; the file is damaged or cut off; its architecture or a quantisation is not
            known; tensors are missing, unknown, misshapen or not finite.
    """
    file = open_gguf(Path(path))
    settings = _settings(file)
    files: dict[str, bytes] = {}
    ends = [file.fields[key] for name in _ENDS if (key := f"tokenizer.ggml.{name}") in file.fields]
    if ends:  # read as those of a directory are
        files["generation_config.json"] = json.dumps({"eos_token_id": list(dict.fromkeys(ends))}).encode()
    tensors = _tensors(file, settings)
    return replace(build(settings, tensors, file.path, files=files, dtype=dtype), fields=file.fields)


def _settings(file: GGUFFile) -> dict[str, Any]:
    """What config.json says of the same model."""
    where = str(file.path)
    kind = Settings(file.fields, where).choice("general.architecture", {name: name for name in ARCHITECTURES})
    prefix = f"{kind}."
    own = Settings(
        {k.removeprefix(prefix): v for k, v in file.fields.items() if k.startswith(prefix)}, f"{where}: {kind}"
    )
    if own.values.get("expert_count"):
        raise own.error("expert_count", "0: mixtures of experts are not read")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{where} does not fit its architecture {kind}: token_embd.weight is missing or no matrix")
    window = own.whole("attention.sliding_window", 0, least=0)
    family = "mistral" if window and ARCHITECTURES[kind] == "llama" else ARCHITECTURES[kind]
    d_model, heads = own.whole("embedding_length"), own.whole("attention.head_count")
    head_size = own.whole("attention.key_length", d_model // heads)
    own.refuse("attention.value_length", head_size)
    own.refuse("rope.dimension_count", head_size)
    settings: dict[str, Any] = {
        "model_type": family,
        "architectures": [f"{_CLASSES[family]}ForCausalLM"],
        "vocab_size": embedding.shape[0],
        "hidden_size": d_model,
        "num_hidden_layers": own.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": own.whole("attention.head_count_kv", heads),
        "head_dim": head_size,
        "intermediate_size": own.whole("feed_forward_length"),
        "max_position_embeddings": own.whole("context_length"),
        "rms_norm_eps": own.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "rope_parameters": _rotary(file, own, head_size),
    }
    if family == "mistral":
        settings["sliding_window"] = window
    return settings


def _rotary(file: GGUFFile, own: Settings, head_size: int) -> dict[str, Any]:
    """The base of the rotary frequencies, and their scaling."""
    base = own.number("rope.freq_base", 10000.0)
    found: dict[str, Any] = {"rope_theta": base}
    kind = own.choice("rope.scaling.type", {"none": "default", "linear": "linear", "yarn": "yarn"}, "none")
    if _FREQUENCIES in file.tensors:
        if kind != "default":
            raise own.error("rope.scaling.type", f"none where there is {_FREQUENCIES}")
        return found | _llama3(file, base, head_size)
    if kind != "default":
        found |= {"rope_type": kind, "factor": own.number("rope.scaling.factor")}
    if kind == "yarn":
        found["original_max_position_embeddings"] = own.whole("rope.scaling.original_context_length")
        for unused in ("attn_factor", "yarn_log_multiplier"):
            own.refuse(f"rope.scaling.{unused}", 1.0, 0.0)
    return found


def _llama3(file: GGUFFile, base: float, head_size: int) -> dict[str, Any]:
    """The scaling that a table of divisors of the frequencies comes from: Llama 3's, or it is refused."""
    divisors = _dequantised(file, file.tensors[_FREQUENCIES]).double()
    factor = float(divisors.max())
    plain = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    if divisors.shape == plain.shape and factor >= 1:
        scaled, _ = Llama3Scaling(factor, _LLAMA3_LENGTH)(plain, base, _LLAMA3_LENGTH)
        if torch.allclose(plain / scaled, divisors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": _LLAMA3_LENGTH,
            }
    raise ModelError(f"{file.path}: {_FREQUENCIES} is not the scaling of Llama 3, the only one known")


def _tensors(file: GGUFFile, settings: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The tensors by the names and in the order of rows of a Hugging Face checkpoint."""
    heads: dict[str, int] = {}
    if file.fields["general.architecture"] in _INTERLEAVED:
        heads = {"attn_q": settings["num_attention_heads"], "attn_k": settings["num_key_value_heads"]}
    tensors: dict[str, StoredTensor] = {}
    for stored in file.tensors.values():
        if stored.name == _FREQUENCIES:
            continue
        part, name = _name(stored.name)
        interleaved = heads.get(part, 0)
        if interleaved and stored.shape[0] % (2 * interleaved):
            raise ModelError(f"{file.path}: {stored.name} has {stored.shape[0]} rows for {interleaved} heads")
        read = partial(_numbers, file, stored, interleaved)
        tensors[name] = StoredTensor(torch.Size(stored.shape), torch.float32, read)
    return tensors


def _numbers(file: GGUFFile, stored: Stored, interleaved: int) -> Tensor:
    """A tensor's numbers in float32; those of interleaved heads in the order of Hugging Face."""
    tensor = _dequantised(file, stored)
    if not interleaved:
        return tensor
    pairs = tensor.unflatten(0, (interleaved, -1, 2))  # (H, D/2, 2, …)
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _name(theirs: str) -> tuple[str, str]:
    """The part of the model that a tensor is of, and Hugging Face's name for it; an unknown one stays what it is."""
    stem, _, suffix = theirs.rpartition(".")
    if stem in _TOP:
        return stem, f"{_TOP[stem]}.{suffix}"
    layer, _, part = stem.removeprefix("blk.").partition(".")
    if stem.startswith("blk.") and layer.isdecimal() and part in _NAMES:
        return part, f"model.layers.{int(layer)}.{_NAMES[part]}.{suffix}"
    return stem, theirs


def _dequantised(file: GGUFFile, stored: Stored) -> Tensor:
    """A tensor's numbers, in float32."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise ModelError(f"{file.path}: GGUF files need the package gguf: pip install 'regard[gguf]'") from error
    try:
        kind = GGMLQuantizationType(stored.kind)
    except ValueError:
        raise ModelError(f"{file.path}: {stored.name} is of the unknown quantisation {stored.kind}") from None
    block, size = GGML_QUANT_SIZES[kind]
    *rows, columns = stored.shape
    if columns % block:
        raise ModelError(f"{file.path}: {stored.name} has rows of {columns}: {kind.name} has blocks of {block}")
    shape = (*rows, columns // block * size)
    count = math.prod(shape)
    if stored.offset + count > len(file.data):
        raise ModelError(
            f"{file.path} is cut off: {stored.name} ends at byte {stored.offset + count} of {len(file.data)}"
        )
    raw = file.data[stored.offset : stored.offset + count]
    try:
        if kind.name == "F32":  # which needs no more than to be copied out of the file, aligned
            return torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(stored.shape)
        return torch.from_numpy(dequantize(raw.reshape(shape), kind)).reshape(stored.shape)
    except NotImplementedError:
        raise ModelError(f"{file.path}: {stored.name} is quantised as {kind.name}, which is not read") from None
