"""Vision Transformers: ViT (arXiv 2010.11929), DeiT (2012.12877) and DINOv2 (2304.07193), with registers (2309.16588).

Notable: DeiT has a second token that learns from a teacher; DINOv2 scales every branch, takes images of any size by
resizing its table of positions, and may have registers, tokens without a place that keep what belongs to no patch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from regard.models.bert import written_labels
from regard.models.family import ACTIVATIONS, Family, Head, Settings
from regard.models.patch_transformer import PatchConfig, PatchTransformer, encoder_rules
from regard.models.rules import Ignore, Rename, Rule


def sizes(settings: Settings) -> dict[str, Any]:
    """What the config.json of all families over patches have in common."""
    d = settings.whole("hidden_size")
    return {
        "d_model": d,
        "layers": settings.whole("num_hidden_layers"),
        "heads": settings.whole("num_attention_heads"),
        "feed_forward": settings.whole("intermediate_size", round(d * settings.number("mlp_ratio", 4))),
        "activation": settings.choice("hidden_act", ACTIVATIONS, "gelu"),
        "norm_eps": settings.number("layer_norm_eps", 1e-12),
    }


def written_sizes(config: PatchConfig) -> dict[str, Any]:
    """What config.json says of these, and of the classes: the inverse of `sizes`."""
    written = {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "hidden_act": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.bias,
        "torch_dtype": "float32",
    }
    return written | written_labels(config.labels, "single_label") if config.labels else written


def write_config(config: PatchConfig) -> dict[str, Any]:
    """The config.json of a ViT with this config."""
    return {
        "architectures": ["ViTForImageClassification" if config.labels else "ViTModel"],
        "model_type": "vit",
        "image_size": [*config.size],
        "patch_size": [*config.patch],
        "num_channels": config.channels,
        **written_sizes(config),
    }


def _image(settings: Settings) -> dict[str, Any]:
    """The image and its patches."""
    size, patch = settings.pair("image_size", 224), settings.pair("patch_size", 16)
    return {"channels": settings.whole("num_channels", 3), "size": size, "patch": patch, "stride": patch}


def _vit(settings: Settings, head: Head) -> PatchConfig:
    deit = settings.values["model_type"] == "deit"
    taught = "DeiTForImageClassificationWithTeacher" in settings.values["architectures"]
    return PatchConfig(
        **sizes(settings),
        **_image(settings),
        bias=settings.flag("qkv_bias", True),
        distillation_token=deit,
        pooling="class and distillation" if taught else "class",
        labels=settings.labels() if head == "classify" else (),
    )


def _dinov2(settings: Settings, head: Head) -> PatchConfig:
    settings.refuse("apply_layernorm", True)
    gated = settings.flag("use_swiglu_ffn", False)
    given = sizes(settings)
    given["feed_forward"] = int(given["d_model"] * settings.number("mlp_ratio", 4))
    if gated:
        given["feed_forward"] = (int(given["feed_forward"] * 2 / 3) + 7) // 8 * 8
        given["activation"] = "silu"
    registers = settings.values["model_type"] == "dinov2_with_registers"
    return PatchConfig(
        **given,
        **_image(settings),
        bias=settings.flag("qkv_bias", True),
        gated=gated,
        registers=settings.whole("num_register_tokens", 4, least=0) if registers else 0,
        resized="antialiased" if registers else "bicubic",
        layer_scale=True,
        pooling="class and mean",
        labels=settings.labels() if head == "classify" else (),
    )


def _vit_rules(prefix: str, config: PatchConfig) -> list[Rule]:
    prefix = prefix if config.labels else ""
    table = encoder_rules(config, prefix)
    if config.pooling == "class and distillation":
        table.insert(0, Rename("readout.scores", "cls_classifier"))
    return [
        *table,
        Rename("readout.distilled", "distillation_classifier"),
        Ignore(prefix + "embeddings.mask_token"),
        Ignore(prefix + "pooler.dense"),
    ]


def _dinov2_rules(prefix: str, config: PatchConfig) -> list[Rule]:
    prefix = prefix if config.labels else ""
    layer, block = prefix + "encoder.layer.{}.", "encoder.blocks.{}."
    own: list[Rule] = [
        Rename(block + "attention_norm", layer + "norm1"),
        Rename(block + "feed_forward_norm", layer + "norm2"),
        Rename(block + "attention_branch.weight", layer + "layer_scale1.lambda1"),
        Rename(block + "feed_forward_branch.weight", layer + "layer_scale2.lambda1"),
        Rename(block + "feed_forward.up", layer + "mlp.fc1"),
        Rename(block + "feed_forward.down", layer + "mlp.fc2"),
    ]
    if config.gated:
        own = [
            *own[:4],
            Rename(block + "feed_forward.up", layer + "mlp.weights_in"),
            Rename(block + "feed_forward.down", layer + "mlp.weights_out"),
        ]
    return [*own, *encoder_rules(config, prefix), Ignore(prefix + "embeddings.mask_token")]


FAMILIES = (
    Family(
        "vit",
        "image",
        ("vit",),
        {"ViTForImageClassification": "classify", "ViTModel": "hidden"},
        _vit,
        PatchTransformer,
        partial(_vit_rules, "vit."),
        write=write_config,
    ),
    Family(
        "deit",
        "image",
        ("deit",),
        {
            "DeiTForImageClassification": "classify",
            "DeiTForImageClassificationWithTeacher": "classify",
            "DeiTModel": "hidden",
        },
        _vit,
        PatchTransformer,
        partial(_vit_rules, "deit."),
    ),
    Family(
        "dinov2",
        "image",
        ("dinov2",),
        {"Dinov2ForImageClassification": "classify", "Dinov2Model": "hidden"},
        _dinov2,
        PatchTransformer,
        partial(_dinov2_rules, "dinov2."),
    ),
    Family(
        "dinov2 with registers",
        "image",
        ("dinov2_with_registers",),
        {"Dinov2WithRegistersForImageClassification": "classify", "Dinov2WithRegistersModel": "hidden"},
        _dinov2,
        PatchTransformer,
        partial(_dinov2_rules, "dinov2_with_registers."),
    ),
)
