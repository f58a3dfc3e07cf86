"""A classifier out of an encoder that was trained for something else, to be fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from regard.models.bert import written_labels
from regard.models.checkpoint import Checkpoint
from regard.models.family import ModelError, Settings
from regard.models.rules import Layout

_NAMES = {
    "text": "an encoder of text, such as bert",
    "image": "a model of images, such as vit",
    "audio": "a model of sound, such as an audio spectrogram transformer",
}


def to_classifier(checkpoint: Checkpoint, labels: Sequence[str], modality: str = "text") -> Checkpoint:
    """The same encoder with a head for these classes; an input has one of them.

    The head is new, drawn from torch's generator, but where the checkpoint already classifies into just these. What
    heads of other checkpoints hold as well is kept: BERT's dense layer, a norm before the scores.

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
    config = family.config(Settings(settings, f"{where}/config.json"), "classify")
    model = family.model(config)
    state, known = model.state_dict(), checkpoint.model.state_dict()
    same = checkpoint.head == "classify" and checkpoint.model.config.labels == tuple(labels)  # pyright: ignore[reportAttributeAccessIssue]
    for name in state:
        if same or not name.startswith(("classify.", "readout.")):
            tensor = known[name]
        elif name.startswith("readout.norm."):
            tensor = known.get(name)
        else:
            tensor = _pooler(checkpoint, name)
        if tensor is not None:
            state[name] = tensor.to(state[name].dtype)
    model.load_state_dict(state)
    return Checkpoint(model.train(), family, "classify", settings, Layout(), where, dict(checkpoint.files))


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
