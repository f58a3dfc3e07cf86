"""The Audio Spectrogram Transformer (arXiv 2104.01778): a Vision Transformer over a log-mel spectrogram.

Notable: patches overlap, and the classifier reads the mean of two tokens.
"""

from __future__ import annotations

from typing import Any

from regard.models.family import Family, Head, Settings
from regard.models.patch_transformer import PatchConfig, PatchTransformer, encoder_rules
from regard.models.rules import Rename, Rule
from regard.models.vit import sizes, written_sizes


def read_config(settings: Settings, head: Head) -> PatchConfig:
    """The config of a checkpoint; the input is (1, mel bins, frames)."""
    given = sizes(settings)
    patch = settings.whole("patch_size", 16)
    return PatchConfig(
        **given,
        channels=1,
        size=(settings.whole("num_mel_bins", 128), settings.whole("max_length", 1024)),
        patch=(patch, patch),
        stride=(settings.whole("frequency_stride", 10), settings.whole("time_stride", 10)),
        bias=settings.flag("qkv_bias", True),
        distillation_token=True,
        pooling="both tokens",
        pooled_norm=given["norm_eps"] if head == "classify" else None,
        labels=settings.labels() if head == "classify" else (),
    )


def write_config(config: PatchConfig) -> dict[str, Any]:
    """The config.json of a model with this config: what `read_config` reads."""
    return {
        "architectures": ["ASTForAudioClassification" if config.labels else "ASTModel"],
        "model_type": "audio-spectrogram-transformer",
        "num_mel_bins": config.size[0],
        "max_length": config.size[1],
        "patch_size": config.patch[0],
        "frequency_stride": config.stride[0],
        "time_stride": config.stride[1],
        **written_sizes(config),
    }


def rules(config: PatchConfig) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters."""
    prefix = "audio_spectrogram_transformer." if config.labels else ""
    return [
        Rename("readout.norm", "classifier.layernorm"),
        Rename("readout.scores", "classifier.dense"),
        *encoder_rules(config, prefix),
    ]


FAMILIES = (
    Family(
        "audio spectrogram transformer",
        "audio",
        ("audio-spectrogram-transformer",),
        {"ASTForAudioClassification": "classify", "ASTModel": "hidden"},
        read_config,
        PatchTransformer,
        rules,
        write=write_config,
    ),
)
