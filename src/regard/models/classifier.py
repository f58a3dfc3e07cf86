"""A classifier out of an encoder of text that was trained for something else, to be fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from regard.models.bert import written_labels
from regard.models.checkpoint import Checkpoint
from regard.models.family import ModelError, Settings
from regard.models.rules import Layout


def to_classifier(checkpoint: Checkpoint, labels: Sequence[str]) -> Checkpoint:
    """The same encoder with a head for these classes; a text has one of them.

    The head is new, drawn from torch's generator, but where the checkpoint already classifies into just these. BERT's
    dense layer before it, which the checkpoints of other heads hold as well, is kept.

    Args:
        checkpoint: an encoder of text: BERT, RoBERTa, DistilBERT or one built like them.
        labels: two names or more.

    Returns:
        A checkpoint that can be saved, its model in training mode. The one that is given is left as it is.

    Raises:
        ModelError: it is no encoder of text that can classify, or there are fewer than two labels.
    """
    family, where = checkpoint.family, checkpoint.directory
    kinds = [name for name, head in family.architectures.items() if head == "classify"]
    if family.modality != "text" or not kinds:
        raise ModelError(f"{where} holds a {family.name}: it must be an encoder of text, such as bert")
    if len(labels) < 2:
        raise ModelError(f"there are {len(labels)} labels: there must be two or more")
    settings: dict[str, Any] = {
        **checkpoint.settings,
        "architectures": [kinds[0]],
        **written_labels(tuple(labels), "single_label"),
    }
    config = family.config(Settings(settings, f"{where}/config.json"), "classify")
    model = family.model(config)
    state, known = model.state_dict(), checkpoint.model.state_dict()
    same = checkpoint.head == "classify" and checkpoint.model.config.labels == tuple(labels)  # pyright: ignore[reportAttributeAccessIssue]
    for name in state:
        if name.startswith("classify."):
            tensor = known.get(name) if same else _pooler(checkpoint, name)
        else:
            tensor = known[name]
        if tensor is not None:
            state[name] = tensor.to(state[name].dtype)
    model.load_state_dict(state)
    return Checkpoint(model.train(), family, "classify", settings, Layout(), where, dict(checkpoint.files))


def _pooler(checkpoint: Checkpoint, name: str) -> Tensor | None:
    """The dense layer that BERT's checkpoints hold beside a head that has no use for it."""
    if checkpoint.family.name != "bert" or not name.startswith("classify.dense."):
        return None
    ending = name.replace("classify.dense", "pooler.dense")
    return next((t for key, t in checkpoint.layout.ignored.items() if key.endswith(ending)), None)
