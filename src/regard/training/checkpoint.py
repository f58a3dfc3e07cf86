"""Checkpoints: one safetensors file each, written atomically, from which a run continues bit for bit.

A file holds the tensors of the model, of the optimiser and of torch's random state; the numbers beside them (step,
epoch, batch, seconds, settings of the optimiser) are JSON in the file's own header. Nothing is ever pickled.

    DIR/step-00000500.safetensors    the last few, and the best
    DIR/best.json                    which one is the best, and its score
"""

import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

FORMAT_VERSION = "1"
_NAME = re.compile(r"step-(\d{8})\.safetensors")


@dataclass
class Progress:
    """Where a run stands, after `step` updates."""

    step: int = 0  # updates made
    epoch: int = 0  # of the next batch
    batch: int = 0  # index of the next batch within its epoch
    tokens: int = 0  # seen since the start
    cpu_seconds: float = 0.0  # of the process, over all runs
    wall_seconds: float = 0.0  # the same by the clock
    scores: dict[str, float] = field(default_factory=dict[str, float])  # of the last validation


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, the path holds either the old content or the new, whole."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _rename(temporary, path)


def _rename(temporary: Path, path: Path) -> None:
    """Put a finished file in place, and the directory's record of it on disk."""
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def save_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Write all that a run needs to continue, atomically.

    Args:
        path: ends in .safetensors; its directory exists.
        model: parameters and persistent buffers are saved, shared ones once.
        optimiser: its tensors and its settings are saved.
        progress: written into the header.
    """
    from safetensors.torch import save_file

    tensors, shared = _model_tensors(model)
    moments, settings = _optimiser_state(optimiser)
    tensors |= moments
    tensors["random.torch"] = torch.get_rng_state()
    header = {
        "format_version": FORMAT_VERSION,
        "progress": json.dumps(asdict(progress)),
        "optimiser": json.dumps(settings),
        "shared": json.dumps(shared),
        "random.python": json.dumps(random.getstate()),
    }
    temporary = path.with_name(f".{path.name}.partial")
    save_file(tensors, temporary, metadata=header)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    _rename(temporary, path)


def load_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Put a saved state back into a model, its optimiser and the random generators.

    Returns:
        Where the run stood.

    Raises:
        ValueError: if the file is missing, damaged or of another format, or does not fit the model.
    """
    tensors, header = _read(path)
    _load_model(path, model, tensors, header)
    settings: dict[str, Any] = json.loads(header["optimiser"])
    state: dict[int, dict[str, Any]] = {int(index): values for index, values in settings["plain"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": settings["groups"]})
    torch.set_rng_state(tensors["random.torch"])
    version, words, spare = json.loads(header["random.python"])
    random.setstate((version, tuple(words), spare))
    return Progress(**json.loads(header["progress"]))


def load_weights(path: Path, model: nn.Module) -> Progress:
    """Put only the model's part of a checkpoint into a model; where the run stood."""
    tensors, header = _read(path)
    _load_model(path, model, tensors, header)
    return Progress(**json.loads(header["progress"]))


def average_weights(paths: Sequence[Path], model: nn.Module) -> None:
    """Load into a model the mean of several checkpoints' weights (arXiv 1706.03762, section 6.1).

    Sums are in float64; tensors that are not floating-point are taken from the last path.

    Raises:
        ValueError: if there is no path, or a file does not fit the model.
    """
    if not paths:
        raise ValueError("paths is empty; it may be one checkpoint or more")
    total: dict[str, Tensor] = {}
    for path in paths:
        load_weights(path, model)
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                total[name] = tensor.clone()
            elif name in total:
                total[name] += tensor
            else:
                total[name] = tensor.to(torch.float64, copy=True)
    mean = {n: t / len(paths) if t.is_floating_point() else t for n, t in total.items()}
    model.load_state_dict(mean)  # copies into the parameters' own dtype


def _model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under "model.NAME", and {name: name of the same tensor} for those that appear twice."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in first:
            shared[name] = first[key]
            continue
        first[key] = name
        tensors[f"model.{name}"] = tensor.contiguous()
    return tensors, shared


def _load_model(path: Path, model: nn.Module, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    prefix = "model."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    shared: dict[str, str] = json.loads(header["shared"])
    state |= {name: state[other] for name, other in shared.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error


def _optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under "optimiser.INDEX.NAME", and everything that JSON holds."""
    saved = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in saved["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value.contiguous()
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"groups": saved["param_groups"], "plain": plain}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path} is not a file; it may be a checkpoint written by this library")
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    if header.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} has format_version {header.get('format_version')!r}; it may be {FORMAT_VERSION!r}")
    return tensors, header


class Checkpoints:
    """The checkpoints of one run: the last few and the best.

    Args:
        directory: made if it does not exist.
        keep: how many of the last to keep, at least 1. The best is kept besides.

    Raises:
        ValueError: if keep is less than 1.
    """

    def __init__(self, directory: Path, keep: int = 5) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; it may be 1 or more")
        self.directory, self.keep = directory, keep
        directory.mkdir(parents=True, exist_ok=True)
        for left_over in directory.glob(".*.partial"):
            left_over.unlink()

    @property
    def paths(self) -> list[Path]:
        """All kept checkpoints, oldest first."""
        return sorted(path for path in self.directory.iterdir() if _NAME.fullmatch(path.name))

    @property
    def latest(self) -> Path | None:
        """The newest, or None."""
        return self.paths[-1] if self.paths else None

    @property
    def best(self) -> Path | None:
        """The one with the lowest score, or None."""
        name = self._best().get("name")
        return self.directory / name if isinstance(name, str) else None

    def save(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, score: float | None = None
    ) -> Path:
        """Write a checkpoint, then delete those no longer kept.

        Args:
            model: see `save_checkpoint`.
            optimiser: the same.
            progress: the same; its step names the file.
            score: lower is better; None if this state was not validated.
        """
        path = self.directory / f"step-{progress.step:08d}.safetensors"
        save_checkpoint(path, model, optimiser, progress)
        if score is not None and score < cast(float, self._best().get("score", float("inf"))):
            write_atomically(self.directory / "best.json", json.dumps({"name": path.name, "score": score}).encode())
        kept = {*self.paths[-self.keep :], self.best}
        for old in self.paths:
            if old not in kept:
                old.unlink()
        return path

    def _best(self) -> dict[str, str | float]:
        record = self.directory / "best.json"
        return json.loads(record.read_text()) if record.is_file() else {}
