"""Parity with transformers: a small random model of theirs is saved, read by regard, and must answer the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.models.checkpoint import Checkpoint, read_checkpoint

TOLERANCE = 1e-4
"""Logits in float32 may differ by this much."""

FIGURES: dict[str, float] = {}
"""The largest difference of each model_type, for docs/models.md."""

_last: list[str] = []  # the model_type saved last: tests of one model follow each other


def measure(model_type: str) -> None:
    """The differences that follow are of this one."""
    _last[:] = [model_type]


def saved(directory: Path, kind: Any, config: Any, *, scale: float = 1.0) -> tuple[Any, Path]:
    """A random model of one of transformers' classes, in evaluation mode, and the directory where it is saved.

    Args:
        directory: where to; the model goes into a folder of its class's name.
        kind: the class.
        config: transformers' configuration.
        scale: multiplies every matrix, so that attention is not uniform, as it nearly is with small random weights.
    """
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            else:  # norms and biases of all ones and zeros would hide where they are mixed up
                parameter.add_(0.1 * torch.randn_like(parameter))
    place = directory / kind.__name__
    model.save_pretrained(place)
    measure(config.model_type)
    return model, place


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    """The numbers agree, and are not all alike."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 10 * tolerance, "the numbers hardly differ among themselves: this would hide faults"
    worst = float((ours - theirs).abs().max())
    for kind in _last:
        FIGURES[kind] = max(FIGURES.get(kind, 0.0), worst)
    assert worst <= tolerance, f"the largest difference is {worst:.2e}, allowed are {tolerance:.0e}"


def assert_round_trip(place: Path, again: Path) -> Checkpoint:
    """What regard reads and writes is the same checkpoint: names, dtypes, shapes and bytes, and the configuration."""
    from safetensors.torch import load_file

    checkpoint = read_checkpoint(place)
    checkpoint.save(again)
    before, after = load_file(place / "model.safetensors"), load_file(again / "model.safetensors")
    assert [*before] == [*after] or {*before} == {*after}
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.shape == after[name].shape, name
        assert tensor.view(torch.uint8).equal(after[name].view(torch.uint8)) if tensor.dim() else True, name
    assert json.loads((place / "config.json").read_text()) == json.loads((again / "config.json").read_text())
    return checkpoint
