"""A small Transformer behind convolutions, for images and for spectrograms, that learns from few of them.

Notable: the patches are made by convolutions that halve the input again and again (arXiv 2104.05704, 2106.14881), each
patch being a cell of the last grid; the feed-forward networks look at the neighbours on the grid too (arXiv
2104.05707); the classifier reads the mean of all patches. What attends to what are the cells, as in any Vision
Transformer, though a cell has seen some pixels around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from regard.models.bert import written_labels
from regard.models.convolutions import GridFeedForward, Stages
from regard.models.family import Family, Head, Settings, without_numbers
from regard.models.patch_transformer import PatchConfig, PatchTransformer
from regard.models.rules import Rename, Rule

IMAGE, SOUND = "convolutional-image-transformer", "convolutional-spectrogram-transformer"
"""The model_types."""


@dataclass(frozen=True)
class ConvolutionalConfig(PatchConfig):
    """The sizes of a Transformer behind convolutions; a patch is a power of two high and wide, its stride the same."""

    modality: str = "image"  # or audio
    widths: tuple[int, ...] = (32, 64)  # channels of the stages before the last, which has d_model
    blocks: tuple[int, ...] = (0, 1, 0)  # residual blocks of each stage

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modality not in ("image", "audio"):
            raise ValueError(f"modality is {self.modality!r}: it must be 'image' or 'audio'")
        if len(self.blocks) != len(self.widths) + 1:
            raise ValueError(f"blocks is {self.blocks}: it must have one entry more than widths, {self.widths}")
        if self.stride != self.patch or any(n % p for n, p in zip(self.size, self.patch, strict=True)):
            raise ValueError(f"the input is {self.size} and a patch {self.patch}: patches must fill it side by side")
        allowed = [2**i for i in range(len(self.blocks) + 1)]
        if any(p not in allowed for p in self.patch):
            listed = ", ".join(map(str, allowed))
            raise ValueError(f"patch is {self.patch}: each side must be one of {listed}, by {len(self.blocks)} stages")

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Of each stage: the last stages halve, as many as it takes to make a patch."""
        stages = len(self.blocks)
        height, width = (p.bit_length() - 1 for p in self.patch)
        return tuple((1 + (stages - i <= height), 1 + (stages - i <= width)) for i in range(stages))


def convolutional_transformer(config: ConvolutionalConfig) -> PatchTransformer:
    """The model of a config."""
    widths = (*config.widths, config.d_model)
    rows, columns = config.grid
    return PatchTransformer(
        config,
        patches=Stages(config.channels, widths, config.blocks, config.strides),
        feed_forward=partial(GridFeedForward, config.d_model, config.feed_forward, (rows, columns)),
    )


def read_config(settings: Settings, head: Head) -> ConvolutionalConfig:
    """The config of a checkpoint."""
    patch = settings.pair("patch_size", 4)
    return ConvolutionalConfig(
        channels=settings.whole("num_channels", 3),
        size=settings.pair("image_size", 32),
        patch=patch,
        stride=patch,
        d_model=settings.whole("hidden_size"),
        layers=settings.whole("num_hidden_layers"),
        heads=settings.whole("num_attention_heads"),
        feed_forward=settings.whole("intermediate_size"),
        activation="relu",
        norm_eps=settings.number("layer_norm_eps", 1e-6),
        class_token=False,
        pooling="mean",
        labels=settings.labels() if head == "classify" else (),
        modality="audio" if settings.values["model_type"] == SOUND else "image",
        widths=_wholes(settings, "stage_widths", 1),
        blocks=_wholes(settings, "stage_blocks", 0),
    )


def write_config(config: ConvolutionalConfig) -> dict[str, Any]:
    """The config.json of a model with this config: what `read_config` reads."""
    kind = SOUND if config.modality == "audio" else IMAGE
    name = "".join(part.title() for part in kind.split("-"))
    written = {
        "architectures": [name + "ForClassification" if config.labels else name],
        "model_type": kind,
        "num_channels": config.channels,
        "image_size": [*config.size],
        "patch_size": [*config.patch],
        "hidden_size": config.d_model,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "layer_norm_eps": config.norm_eps,
        "stage_widths": [*config.widths],
        "stage_blocks": [*config.blocks],
        "torch_dtype": "float32",
    }
    return written | written_labels(config.labels, "single_label") if config.labels else written


def rules(config: ConvolutionalConfig) -> Sequence[Rule]:
    """The checkpoint's names are ours."""
    return [Rename(name, name) for name in without_numbers(convolutional_transformer, config).state_dict()]


def _wholes(settings: Settings, name: str, least: int) -> tuple[int, ...]:
    """A list of whole numbers."""
    value = settings.values.get(name)
    if not isinstance(value, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < least for n in value):
        raise settings.error(name, f"a list of whole numbers from {least} on")
    return tuple(value)


FAMILIES = (
    Family(
        "convolutional image transformer",
        "image",
        (IMAGE,),
        {"ConvolutionalImageTransformerForClassification": "classify", "ConvolutionalImageTransformer": "hidden"},
        read_config,
        convolutional_transformer,
        rules,
        write=write_config,
    ),
    Family(
        "convolutional spectrogram transformer",
        "audio",
        (SOUND,),
        {
            "ConvolutionalSpectrogramTransformerForClassification": "classify",
            "ConvolutionalSpectrogramTransformer": "hidden",
        },
        read_config,
        convolutional_transformer,
        rules,
        write=write_config,
    ),
)
