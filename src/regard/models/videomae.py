"""VideoMAE (arXiv 2203.12602): a Vision Transformer over tubelets, patches of a video that reach over some frames.

Notable: no tokens but the tubelets, sinusoidal positions, and a classifier that reads their mean.
"""

from __future__ import annotations

from regard.models.family import Family, Head, Settings
from regard.models.patch_transformer import PatchConfig, PatchTransformer, encoder_rules
from regard.models.rules import Rename, Rule
from regard.models.vit import sizes


def read_config(settings: Settings, head: Head) -> PatchConfig:
    """The config of a checkpoint; without mean pooling the first tubelet is what the classifier reads."""
    tubelet = settings.whole("tubelet_size", 2)
    patch = (tubelet, *settings.pair("patch_size", 16))
    mean = settings.flag("use_mean_pooling", True)
    return PatchConfig(
        **sizes(settings),
        channels=settings.whole("num_channels", 3),
        size=(settings.whole("num_frames", 16), *settings.pair("image_size", 224)),
        patch=patch,
        stride=patch,
        bias=settings.flag("qv_bias", True),
        class_token=False,
        positions="sinusoidal",
        final_norm=not mean,
        pooling="mean" if mean else "class",
        pooled_norm=1e-5 if mean and head == "classify" else None,
        labels=settings.labels() if head == "classify" else (),
    )


def rules(config: PatchConfig) -> list[Rule]:
    """Where Hugging Face's checkpoints keep the parameters; keys have no bias."""
    prefix = "videomae." if config.labels else ""
    return [*encoder_rules(config, prefix, key_bias=False), Rename("readout.norm", "fc_norm")]


FAMILIES = (
    Family(
        "videomae",
        "video",
        ("videomae",),
        {"VideoMAEForVideoClassification": "classify", "VideoMAEModel": "hidden"},
        read_config,
        PatchTransformer,
        rules,
    ),
)
