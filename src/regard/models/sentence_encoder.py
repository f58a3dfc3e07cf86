"""What the files of sentence-transformers say: how the rows of a text become one vector (arXiv 1908.10084)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, get_args

from regard.models.checkpoint import MODULES, Checkpoint
from regard.models.family import ModelError

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken"]
"""What is made of a text's rows: the first, the largest of each feature, their mean, their sum over the square root of
their number, a mean that weighs them 1, 2, 3 …, or the last."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
_FLAGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def modules_of(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """The name and the folder of every module, the Transformer first.

    Raises:
        ModelError: modules.json is missing, or no such list.
    """
    where = checkpoint.directory / MODULES
    try:
        modules = json.loads(checkpoint.files[MODULES])
        return [(str(m["type"]).rpartition(".")[2], str(m["path"])) for m in modules] or [("nothing", "")]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise ModelError(f"{where} is no list of modules, each with type and path") from error


def pooling_of(checkpoint: Checkpoint, folder: str) -> tuple[Pooling, ...]:
    """What a text's rows are made into: one way, or several whose vectors are put one after another.

    Args:
        checkpoint: with the files beside it.
        folder: of its pooling module.

    Raises:
        ModelError: the folder has no config.json, or it asks for a way that there is not; the message lists them.
    """
    name = f"{folder}/config.json"
    where = f"{checkpoint.directory / name}"
    if name not in checkpoint.files:
        raise ModelError(f"{where} is missing: modules.json names its folder")
    values = checkpoint.json(name)
    if values.get("include_prompt") is False:
        raise ModelError(f"{where}: include_prompt is false: it must be true or left out")
    modes = values.get("pooling_mode")  # as newer versions write it: one name or several
    if modes is not None:
        chosen = [modes] if isinstance(modes, str) else list(modes) if isinstance(modes, list) else []
    else:
        chosen = [mode for flag, mode in _FLAGS.items() if values.get(flag) is True]
    if not chosen or not set(chosen) <= set(POOLINGS):
        raise ModelError(f"{where} asks for the pooling {chosen}: it must be one or more of {', '.join(POOLINGS)}")
    return tuple(mode for mode in POOLINGS if mode in chosen)  # always in this order


def takes_means(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint was trained to say with the mean of a text's rows what the text is about.

    Not where its files do not say so: what is wrong with them matters to who makes vectors of texts.
    """
    if MODULES not in checkpoint.files:
        return False
    try:
        folder = next((folder for name, folder in modules_of(checkpoint) if name == "Pooling"), None)
        return folder is not None and pooling_of(checkpoint, folder) == ("mean",)
    except ModelError:
        return False
