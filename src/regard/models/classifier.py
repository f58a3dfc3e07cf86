"""A classifier out of an encoder that was trained for something else, to be fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.models.bert import written_labels
from regard.models.checkpoint import Checkpoint
from regard.models.family import ModelError, Settings
from regard.models.rules import Layout
from regard.models.sentence_encoder import takes_means

_MEANS = 8.0
"""The mean of a text's rows is several times as short as one of them: this much of it outweighs the first row."""
_NAMES = {
    "text": "an encoder of text, such as bert",
    "image": "a model of images, such as vit",
    "audio": "a model of sound, such as an audio spectrogram transformer",
}


def to_classifier(checkpoint: Checkpoint, labels: Sequence[str], modality: str = "text") -> Checkpoint:
    """The same encoder with a head for these classes; an input has one of them.

    The head is new, drawn from torch's generator, but where the checkpoint already classifies into just these. What
    heads of other checkpoints hold as well is kept: BERT's dense layer, a norm before the scores.

    Heads for texts read the first row. The first row of a sentence encoder that was trained by means of rows says
    little, so it gets one more layer, whose attention begins as that mean, and learns with the rest what counts.

    Args:
        checkpoint: an encoder of text: BERT, RoBERTa, DistilBERT or one built like them; of images: ViT, DeiT, DINOv2;
            of sound: an Audio Spectrogram Transformer.
        labels: two names or more.
        modality: what it must read: text, image or audio.

    Returns:
        A checkpoint that can be saved, its model in training mode. The one that is given is left as it is.

    Raises:
        ModelError: it is no encoder of this modality that can classify, or there are fewer than two labels.
    """
    check_classifies(checkpoint, modality)
    family, where = checkpoint.family, checkpoint.directory
    kinds = [name for name, head in family.architectures.items() if head == "classify"]
    if len(labels) < 2:
        raise ModelError(f"there are {len(labels)} labels: there must be two or more")
    settings: dict[str, Any] = {
        **checkpoint.settings,
        "architectures": [*checkpoint.settings["architectures"]] if checkpoint.head == "classify" else [kinds[0]],
        **written_labels(tuple(labels), "single_label"),
    }
    averaging = checkpoint.head != "classify" and modality == "text" and takes_means(checkpoint)
    if averaging:
        layers = next(name for name in ("num_hidden_layers", "n_layers") if name in settings)
        settings[layers] += 1
    config = family.config(Settings(settings, f"{where}/config.json"), "classify")
    model = family.model(config)
    state, known = model.state_dict(), checkpoint.model.state_dict()
    same = checkpoint.head == "classify" and checkpoint.model.config.labels == tuple(labels)  # pyright: ignore[reportAttributeAccessIssue]
    last = f"encoder.blocks.{config.layers - 1}." if averaging else None
    for name in state:
        if last is not None and name.startswith(last):
            tensor = _averaging(name, state[name])
        elif same or not name.startswith(("classify.", "readout.")):
            tensor = known[name]
        elif name.startswith("readout.norm."):
            tensor = known.get(name)
        else:
            tensor = _pooler(checkpoint, name)
        if tensor is not None:
            state[name] = tensor.to(state[name].dtype)
    model.load_state_dict(state)
    return Checkpoint(model.train(), family, "classify", settings, Layout(), where, dict(checkpoint.files))


def _averaging(name: str, drawn: Tensor) -> Tensor:
    """A parameter of a layer that adds to each row the mean of all, times `_MEANS`, before its norm.

    Queries and keys are small, so that weights are even at first; values pass as they are; the feed-forward network
    adds nothing. All of it learns.

    Args:
        name: of the parameter.
        drawn: as it is in a new layer.
    """
    if "norm" in name:
        return torch.zeros_like(drawn) if name.endswith("bias") else torch.ones_like(drawn)
    if name.endswith("bias"):
        return torch.zeros_like(drawn)
    identity = _MEANS**0.5 * torch.eye(drawn.shape[1])
    if name.endswith("attention.qkv.weight"):
        d = drawn.shape[1]
        return torch.cat((0.02 * torch.randn(2 * d, d), identity))
    if name.endswith("attention.out.weight"):
        return identity
    return torch.zeros_like(drawn) if name.endswith("feed_forward.down.weight") else drawn


def check_classifies(checkpoint: Checkpoint, modality: str) -> None:
    """Refuse what `to_classifier` makes no classifier of.

    Raises:
        ModelError: it is no encoder of this modality that can classify.
    """
    if checkpoint.family.modality != modality or "classify" not in checkpoint.family.architectures.values():
        raise ModelError(
            f"{checkpoint.directory} is of the family {checkpoint.family.name}: it must be {_NAMES[modality]}"
        )


def _pooler(checkpoint: Checkpoint, name: str) -> Tensor | None:
    """The dense layer that BERT's checkpoints hold beside a head that has no use for it."""
    if checkpoint.family.name != "bert" or not name.startswith("classify.dense."):
        return None
    ending = name.replace("classify.dense", "pooler.dense")
    return next((t for key, t in checkpoint.layout.ignored.items() if key.endswith(ending)), None)
