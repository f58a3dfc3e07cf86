"""Llama (arXiv 2302.13971) and the decoders built like it: Mistral, Qwen2, Qwen3, SmolLM.

Notable: rotary positions, grouped-query attention, gated SiLU feed-forward, RMS norms before each sublayer, no biases.
Mistral's rows see a sliding window (arXiv 2310.06825), Qwen2 has biases on query, key and value (arXiv 2407.10671),
Qwen3 norms every query and key (arXiv 2505.09388).

    B | batch entries    L | positions of a call    d | d_model    V | vocab_size
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from regard.attention import Causal, KVCache, Rotary, Window
from regard.attention.mask import Mask, Padding
from regard.attention.position import Scaling
from regard.models.family import Family, Head, Settings
from regard.models.positions import rotary_of
from regard.models.rules import Ignore, Join, Rename, Rule, Tie
from regard.transformer import Block, Decoder, FeedForward, MultiHeadAttention, RMSNorm
from regard.transformer.linear import Linear, linear


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a `Llama`."""

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int  # hidden width
    max_positions: int  # longest sequence it was trained for
    norm_eps: float = 1e-6
    rotary_base: float = 10000.0
    rotary_scaling: Scaling | None = None
    windows: tuple[int | None, ...] = ()  # a layer: keys that a row sees, itself included; None is all. Empty: all
    attention_bias: bool = False  # of query, key and value
    out_bias: bool = False
    feed_forward_bias: bool = False
    head_norm: bool = False  # RMS norm of every query and key
    activation: str = "silu"
    tied: bool = False  # the embedding also makes the scores


class Llama(nn.Module):
    """Pieces in, scores of the next piece out."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        rotary = Rotary(config.head_size, base=config.rotary_base, scaling=config.rotary_scaling)
        norm = partial(RMSNorm, config.d_model, eps=config.norm_eps)
        self.decoder = Decoder([_block(config, rotary) for _ in range(config.layers)], norm())
        self.head = None if config.tied else Linear(config.d_model, config.vocab_size, bias=False)

    def cache(self, capacity: int = 0, *, padded: bool = False) -> KVCache:
        """An empty cache: rings where every layer has the same window, unless entries are padded on the left."""
        windows = {*self.config.windows} or {None}
        window = windows.pop() if len(windows) == 1 and not padded else None
        return (
            KVCache.dense(self.config.layers, capacity) if window is None else KVCache.ring(self.config.layers, window)
        )

    def hidden(
        self,
        ids: Tensor,
        *,
        start: int = 0,
        padding: Tensor | None = None,
        cache: KVCache | None = None,
        last: int | None = None,
    ) -> Tensor:
        """The last hidden states.

        Args:
            ids: (B, L), the pieces from position start on.
            start: how many pieces the cache holds already, padding among them.
            padding: (B,), how many pieces at the beginning of each entry are none; they are never seen.
            cache: from `cache`; filled by the call.
            last: how many positions at the end are wanted; by default all.

        Returns:
            (B, L, d); (B, last, d) where last is given.
        """
        x = self.embedding(ids)  # (B, L, d)
        real = None if padding is None else (start + ids.shape[1] - padding).clamp(min=0)  # (B,) keys of each entry
        masks = self._masks(None if real is None else Padding(real, left=True))
        return self.decoder(x, mask=masks, start=start, cache=cache, last=last)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., d) → scores of the next piece (..., V), before softmax."""
        return linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def forward(
        self, ids: Tensor, *, start: int = 0, padding: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Ids (B, L) → scores of each next piece (B, L, V); the arguments are those of `hidden`."""
        return self.logits(self.hidden(ids, start=start, padding=padding, cache=cache))

    def _masks(self, padding: Mask | None) -> list[Mask]:
        """The mask of every layer."""
        windows = self.config.windows or (None,) * self.config.layers
        masks: list[Mask] = [Causal() if w is None else Window(left=w - 1, right=0) for w in windows]
        return masks if padding is None else [mask & padding for mask in masks]


def _block(config: LlamaConfig, rotary: Rotary) -> Block:
    attention = MultiHeadAttention(
        config.d_model,
        config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        bias=config.attention_bias,
        out_bias=config.out_bias,
        head_norm=partial(RMSNorm, config.head_size, eps=config.norm_eps) if config.head_norm else None,
        rotary=rotary,
    )
    feed_forward = FeedForward(
        config.d_model,
        config.feed_forward,
        activation=config.activation,
        gated=True,
        bias=config.feed_forward_bias,
    )
    return Block(attention, feed_forward, norm=partial(RMSNorm, config.d_model, eps=config.norm_eps))


def read_config(settings: Settings, head: Head) -> LlamaConfig:
    """The config of a checkpoint of any of these families."""
    kind = settings.values["model_type"]
    d_model, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
    layers = settings.whole("num_hidden_layers")
    base, scaling = rotary_of(settings, settings.whole("max_position_embeddings"))
    attention_bias = kind == "qwen2" or (kind != "mistral" and settings.flag("attention_bias", False))
    return LlamaConfig(
        vocab_size=settings.whole("vocab_size"),
        d_model=d_model,
        layers=layers,
        heads=heads,
        kv_heads=settings.whole("num_key_value_heads", heads),
        head_size=settings.whole("head_dim", d_model // heads),
        feed_forward=settings.whole("intermediate_size"),
        max_positions=settings.whole("max_position_embeddings"),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        rotary_base=base,
        rotary_scaling=scaling,
        windows=_windows(settings, kind, layers),
        attention_bias=attention_bias,
        out_bias=kind in ("llama", "qwen3") and attention_bias,
        feed_forward_bias=kind == "llama" and settings.flag("mlp_bias", False),
        head_norm=kind == "qwen3",
        activation=settings.choice("hidden_act", {"silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}, "silu"),
        tied=settings.flag("tie_word_embeddings", False),
    )


def write_config(config: LlamaConfig) -> dict[str, Any]:
    """The config.json of a Llama with this config: what `read_config` reads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rotary_base,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        "hidden_act": {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation],
        "tie_word_embeddings": config.tied,
        "torch_dtype": "float32",
    }


def _windows(settings: Settings, kind: str, layers: int) -> tuple[int | None, ...]:
    """What each layer's rows see: Mistral's windows are everywhere, Qwen's in the layers that it says."""
    if kind == "llama" or "sliding_window" not in settings:
        return ()
    window = settings.whole("sliding_window")
    if kind == "mistral":
        return (window,) * layers
    if not settings.flag("use_sliding_window", False):
        return ()
    kinds = settings.values.get("layer_types")
    if kinds is None:
        first = settings.whole("max_window_layers", 28, least=0)
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or {*kinds} - {"full_attention", "sliding_attention"}:
        raise settings.error("layer_types", "full_attention or sliding_attention for each layer")
    return tuple(window if name == "sliding_attention" else None for name in kinds)


def rules(config: LlamaConfig) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters."""
    layer, block = "model.layers.{}.", "decoder.blocks.{}."
    rows = (config.heads * config.head_size, *(config.kv_heads * config.head_size,) * 2)
    projections = tuple(f"{layer}self_attn.{name}_proj" for name in "qkv")
    table: list[Rule] = [
        Rename("embedding.weight", "model.embed_tokens.weight"),
        Join(block + "attention.qkv", projections, rows),
        Rename(block + "attention.out", layer + "self_attn.o_proj"),
        Rename(block + "attention.query_norm", layer + "self_attn.q_norm"),
        Rename(block + "attention.key_norm", layer + "self_attn.k_norm"),
        Rename(block + "attention_norm", layer + "input_layernorm"),
        Join(block + "feed_forward.up", (layer + "mlp.gate_proj", layer + "mlp.up_proj"), (config.feed_forward,) * 2),
        Rename(block + "feed_forward.down", layer + "mlp.down_proj"),
        Rename(block + "feed_forward_norm", layer + "post_attention_layernorm"),
        Rename("decoder.norm", "model.norm"),
        Ignore(layer + "self_attn.rotary_emb.inv_freq"),  # older checkpoints keep what the base says already
    ]
    if config.tied:
        table.append(Tie("lm_head.weight", "model.embed_tokens.weight"))
    else:
        table.append(Rename("head", "lm_head"))
    return table


_NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

FAMILIES = tuple(
    Family(
        name=name,
        modality="text",
        model_types=(name,),
        architectures={f"{title}ForCausalLM": "generate"},
        config=read_config,
        model=Llama,
        rules=rules,
        write=write_config if name == "llama" else None,
    )
    for name, title in _NAMES.items()
)
