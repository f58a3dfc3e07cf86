"""Checkpoints: one safetensors file each, written atomically, from which a run continues bit for bit.

A file holds the tensors of the model, of the optimiser and of torch's random state; the numbers beside them (step,
epoch, batch, seconds, settings of the optimiser) are JSON in the file's own header. Nothing is ever pickled.

    DIR/step-00000500.safetensors    the last few, and the best
    DIR/best.json                    which one is the best, and its score
"""

import json
import math
import random
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.files import PART, replacing, write_atomically
from regard.training.average import RunningAverage
from regard.training.errors import StorageError, TrainingError

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
    best_step: int = 0  # of the validation with the lowest loss; 0 before there was one
    best_score: float = math.inf  # that loss
    waited: int = 0  # validations since


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    average: RunningAverage | None = None,
) -> None:
    """Write all that a run needs to continue, atomically.

    Args:
        path: ends in .safetensors; its directory exists.
        model: parameters and persistent buffers are saved, shared ones once.
        optimiser: its tensors and its settings are saved.
        progress: written into the header.
        average: of the parameters over the steps, where the run keeps one.

    Raises:
        StorageError: if it cannot be written; what `path` held before stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors, shared = _model_tensors(model)
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
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
    try:
        with replacing(path) as part:
            save_file(tensors, part, metadata=header)
    except (OSError, SafetensorError) as error:  # the library wraps the system's errors
        raise StorageError(f"{path} cannot be written: {' '.join(str(error).split())}") from error


def load_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: RunningAverage | None = None
) -> Progress:
    """Put a saved state back into a model, its optimiser, the average of the run and the random generators.

    Returns:
        Where the run stood.

    Raises:
        TrainingError: if the file is missing, damaged or of another format, or does not fit the model.
    """
    saved = _read(path)
    _load_model(path, model, saved)
    with _undamaged(path):
        optimiser.load_state_dict(saved.optimiser)
        if average is not None:
            average.load(saved.average)
        torch.set_rng_state(saved.torch_random)
        random.setstate(saved.python_random)
    return saved.progress


def load_weights(path: Path, model: nn.Module) -> Progress:
    """Put only the weights of a checkpoint into a model: those that were validated, so the average where there is one.

    Returns:
        Where the run stood.

    Raises:
        TrainingError: as `load_checkpoint`.
    """
    saved = _read(path)
    _load_model(path, model, saved)
    tensors = model.state_dict()
    with torch.no_grad(), _undamaged(path):
        for name, tensor in saved.average.items():
            tensors[name].copy_(tensor)
    return saved.progress


def average_weights(paths: Sequence[Path], model: nn.Module) -> None:
    """Load into a model the mean of several checkpoints' weights (arXiv 1706.03762, section 6.1).

    Sums are in float64; tensors that are not floating-point are taken from the last path.

    Raises:
        TrainingError: if there is no path, or a file does not fit the model.
    """
    if not paths:
        raise TrainingError("paths is empty; it may be one checkpoint or more")
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


def _load_model(path: Path, model: nn.Module, saved: "_Saved") -> None:
    try:
        model.load_state_dict(saved.model)
    except RuntimeError as error:
        raise TrainingError(f"{path} does not fit the model: {error}") from error


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


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint holds."""

    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimiser: dict[str, Any]
    torch_random: Tensor
    python_random: tuple[Any, ...]
    progress: Progress


def _read(path: Path) -> _Saved:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise TrainingError(f"{path} is not a file; it may be a checkpoint written by this library")
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise TrainingError(f"{path} cannot be read as safetensors: {error}") from error
    if header.get("format_version") != FORMAT_VERSION:
        raise TrainingError(f"{path} has format_version {header.get('format_version')!r}; it may be {FORMAT_VERSION!r}")
    with _undamaged(path):
        model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        model |= {name: model[other] for name, other in json.loads(header["shared"]).items()}
        average = {name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")}
        settings: dict[str, Any] = json.loads(header["optimiser"])
        state: dict[int, dict[str, Any]] = {int(index): values for index, values in settings["plain"].items()}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        version, words, spare = json.loads(header["random.python"])
        return _Saved(
            model,
            average,
            {"state": state, "param_groups": settings["groups"]},
            tensors["random.torch"],
            (version, tuple(words), spare),
            Progress(**json.loads(header["progress"])),
        )


@contextmanager
def _undamaged(path: Path) -> Generator[None]:
    """Turns what a file's damage may lead to into one error that names the file."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(repr(error).split())[:200]
        raise TrainingError(f"{path} is damaged, or of another run: {reason}") from error


class Checkpoints:
    """The checkpoints of one run: the last few and the best.

    Args:
        directory: made if it does not exist.
        keep: how many of the last regular ones to keep, at least 1. The newest and the best are kept besides.
        regular: whether a step is one that checkpoints are due at; one written elsewhere, as a run was stopped, is
            there to continue from and is kept only until the next. All steps are unless given.

    Raises:
        TrainingError: if keep is less than 1.
    """

    def __init__(self, directory: Path, keep: int = 5, *, regular: Callable[[int], bool] = lambda step: True) -> None:
        if keep < 1:
            raise TrainingError(f"keep is {keep}; it may be 1 or more")
        self.directory, self.keep, self._is_regular = directory, keep, regular
        directory.mkdir(parents=True, exist_ok=True)
        for pattern in (f".*{PART}*", ".tmp*"):  # ours (.partial in earlier versions), and those of safetensors
            for left_over in directory.glob(pattern):
                left_over.unlink()

    @property
    def paths(self) -> list[Path]:
        """All kept checkpoints, oldest first."""
        return sorted(path for path in self.directory.iterdir() if _NAME.fullmatch(path.name))

    @property
    def regular(self) -> list[Path]:
        """Those of regular steps, oldest first: what may be averaged."""
        return [path for path in self.paths if self._is_regular(int(path.stem.removeprefix("step-")))]

    @property
    def latest(self) -> Path | None:
        """The newest, or None."""
        return self.paths[-1] if self.paths else None

    @property
    def best(self) -> Path | None:
        """The one with the lowest score, or None.

        Raises:
            TrainingError: if the record of it is damaged.
        """
        return self._best()[0]

    def save(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        progress: Progress,
        score: float | None = None,
        average: RunningAverage | None = None,
    ) -> Path:
        """Write a checkpoint, then delete those no longer kept.

        Args:
            model: see `save_checkpoint`.
            optimiser: the same.
            progress: the same; its step names the file.
            score: lower is better; None if this state was not validated.
            average: see `save_checkpoint`.

        Raises:
            StorageError: if it cannot be written; all that was there stays.
        """
        path = self.directory / f"step-{progress.step:08d}.safetensors"
        save_checkpoint(path, model, optimiser, progress, average)
        if score is not None and score < self._best()[1]:
            self._name_best(path, score)
        self._prune()
        return path

    def recover(self, progress: Progress) -> None:
        """Do what a run that was killed had left to do after its last checkpoint: name the best, delete the others.

        Args:
            progress: of the newest checkpoint.
        """
        path = self.directory / f"step-{progress.best_step:08d}.safetensors"
        if progress.best_step and path.is_file() and path != self.best:
            self._name_best(path, progress.best_score)
        self._prune()

    def _prune(self) -> None:
        """Delete what is no longer kept."""
        kept = {*self.regular[-self.keep :], self.latest, self.best}
        for old in self.paths:
            if old not in kept:
                old.unlink()

    def _name_best(self, path: Path, score: float) -> None:
        record = self.directory / "best.json"
        try:
            write_atomically(record, json.dumps({"name": path.name, "score": score}).encode())
        except OSError as error:
            raise StorageError(f"{record} cannot be written: {error.strerror or error}") from error

    def _best(self) -> tuple[Path | None, float]:
        """The best and its score."""
        record = self.directory / "best.json"
        if not record.is_file():
            return None, math.inf
        with _undamaged(record):
            found = json.loads(record.read_bytes())
            return self.directory / found["name"], float(found["score"])
