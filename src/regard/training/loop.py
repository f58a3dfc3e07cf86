"""The training loop, for any task that can say `step(batch) -> loss`.

It writes two things:

    DIR/metrics.jsonl     one line a step, one a validation
    DIR/checkpoints/      see checkpoint.py

A run can be killed at any moment. Resumed, it goes back to its last checkpoint and continues bit for bit as if it had
never stopped (same machine, same number of threads), if the task draws its random numbers from torch or Python.
"""

import json
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from regard.files import write_atomically
from regard.training.checkpoint import Checkpoints, Progress, load_checkpoint
from regard.training.optimiser import Schedule
from regard.training.workers import Gradients, Shard
from regard.training.workers import Task as GradientTask

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class TrainerConfig:
    """How long to train, and what to keep."""

    steps: int = 10_000  # updates in all
    validate_every: int = 500  # steps; also at the last one
    checkpoint_every: int = 500  # steps; also at the last one and when stopped
    keep: int = 10  # checkpoints: the last so many of those that were due, and the best besides
    clip: float | None = 1.0  # longest gradient (L2 norm over all parameters); None leaves it as it is
    shards: int = 1  # consecutive batches that make up a step
    workers: int = 1  # processes that compute them; the result is the same with any number
    seed: int = 0  # of all random numbers
    progress: bool = True  # show a progress bar

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due at a step."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def __post_init__(self) -> None:
        for name in ("steps", "validate_every", "checkpoint_every", "keep", "shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it may be 1 or more")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip is {self.clip}; it may be more than 0, or None")


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    progress: Progress
    finished: bool  # False if it was stopped by Ctrl-C or SIGTERM


class DivergedError(RuntimeError):
    """Loss or gradient is no longer a finite number."""


class Task(GradientTask[BatchT], Protocol[BatchT]):
    """What is to be learnt, and how well it is."""

    def validate(self) -> Mapping[str, float]:
        """Scores by name; "loss" chooses the best checkpoint. Called in evaluation mode, without gradients."""
        ...


class Trainer(Generic[BatchT]):
    """Trains a model on a task.

    Args:
        model: in whatever mode; trained in training mode.
        task: its batches, its loss, its validation.
        optimiser: over the model's parameters.
        schedule: step → learning rate, set on all groups of the optimiser.
        out: directory for metrics and checkpoints, made if it does not exist.
        config: how long, how often, how many.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task[BatchT],
        optimiser: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        out: Path,
        config: TrainerConfig,
    ) -> None:
        self.model, self.task, self.optimiser, self.schedule = model, task, optimiser, schedule
        self.config = config
        self.checkpoints = Checkpoints(out / "checkpoints", config.keep, regular=config.due)
        self.metrics = out / "metrics.jsonl"
        self.progress = Progress()

    def run(self, *, resume: bool = False) -> Outcome:
        """Train to the last step, or until Ctrl-C or SIGTERM, which save a checkpoint first.

        Args:
            resume: continue from the newest checkpoint, or start if there is none. Default False.

        Raises:
            ValueError: if the directory already holds checkpoints and resume is False, or what it holds is damaged.
            DivergedError: if loss or gradient is not finite; the checkpoints before it are kept.
        """
        self._begin(resume)
        config = self.config
        with (
            Gradients(self.model, self.task, shards=config.shards, workers=config.workers) as gradients,
            _stop_signals() as stop,
            self.metrics.open("a", encoding="utf-8") as log,
            _display(config, self.progress.step) as show,
        ):
            clock = time.perf_counter() - self.progress.wall_seconds
            cpu = time.process_time() - self.progress.cpu_seconds
            for shards in self._stream():
                record = self._update(gradients, shards)
                self.progress.cpu_seconds = time.process_time() - cpu + gradients.other_cpu_seconds
                self.progress.wall_seconds = time.perf_counter() - clock
                seconds = {"cpu_seconds": self.progress.cpu_seconds, "wall_seconds": self.progress.wall_seconds}
                print(json.dumps({**record, **seconds}), file=log, flush=True)
                show(record, self.progress)
                stopping = stop.is_set()  # read once: a signal that comes later is for the next step
                self._after_step(log, stopping=stopping)
                if stopping:
                    break
        return Outcome(self.progress, finished=self.progress.step >= self.config.steps)

    def _begin(self, resume: bool) -> None:
        """Load the newest checkpoint, or seed the generators for a new run."""
        latest = self.checkpoints.latest
        if latest is not None and not resume:
            raise ValueError(
                f"{latest.parent} holds checkpoints of another run; resume it, or choose another directory"
            )
        random.seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        if latest is not None:
            self.progress = load_checkpoint(latest, self.model, self.optimiser)
        _forget_after(self.metrics, self.progress.step)

    def _stream(self) -> Iterator[list[Shard]]:
        """The shards of every remaining step."""
        config = self.config
        while self.progress.step < config.steps:
            epoch = self.progress.epoch
            count = len(self.task.batches(epoch))
            if not count:
                raise ValueError(f"epoch {epoch} has no batches; it must have at least one")
            for first in range(self.progress.batch, count, config.shards):
                if self.progress.step >= config.steps:
                    return
                indices = range(first, min(first + config.shards, count))
                yield [Shard(epoch, index, _seed(config.seed, epoch, index)) for index in indices]
            self.progress.epoch, self.progress.batch = epoch + 1, 0

    def _update(self, gradients: Gradients[BatchT], shards: list[Shard]) -> dict[str, float]:
        """One step of the optimiser; what is to be recorded of it."""
        step = self.progress.step + 1
        rate = self.schedule(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        gradient, results = gradients.compute(shards)
        tokens = sum(result.tokens for result in results)
        loss = sum(result.loss * result.tokens for result in results) / tokens
        norm = torch.linalg.vector_norm(gradient).item()
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise DivergedError(self._divergence(name, value, step))
        if self.config.clip is not None and norm > self.config.clip:
            gradient.mul_(self.config.clip / norm)
        self.optimiser.step()
        progress, last = self.progress, shards[-1]
        progress.step, progress.epoch, progress.batch = step, last.epoch, last.index + 1
        progress.tokens += tokens
        return {"step": step, "epoch": last.epoch, "loss": loss, "lr": rate, "grad_norm": norm, "tokens": tokens}

    def _divergence(self, name: str, value: float, step: int) -> str:
        latest = self.checkpoints.latest
        kept = "no checkpoint was written yet" if latest is None else f"the last good checkpoint is {latest}"
        return f"{name} is {value} at step {step}, so training stopped; {kept}. A lower learning rate usually helps"

    def _after_step(self, log: Any, *, stopping: bool) -> None:
        """Validate and save where this step is due for it."""
        step, last = self.progress.step, self.progress.step == self.config.steps
        score = None
        if step % self.config.validate_every == 0 or last:
            self.model.eval()
            with torch.no_grad():
                self.progress.scores = dict(self.task.validate())
            print(json.dumps({"step": step, "validation": self.progress.scores}), file=log, flush=True)
            score = self.progress.scores.get("loss")
        if self.config.due(step) or stopping:
            self.checkpoints.save(self.model, self.optimiser, self.progress, score)


def _seed(seed: int, epoch: int, index: int) -> int:
    """A seed for each batch of a run, unlike those of other batches and other runs."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _forget_after(metrics: Path, step: int) -> None:
    """Take out what an interrupted run recorded after its last checkpoint; it will be recorded again."""
    if not metrics.is_file():
        return
    lines = metrics.read_bytes().splitlines(keepends=True)
    kept: list[bytes] = []
    for number, line in enumerate(lines, start=1):
        try:
            later = json.loads(line)["step"] > step
        except (LookupError, RecursionError, TypeError, ValueError) as error:
            if number == len(lines) and not line.endswith(b"\n"):  # it was being written when the run was killed
                break
            raise ValueError(f"{metrics}, line {number}: not a record of a step ({type(error).__name__})") from error
        if later:
            break
        kept.append(line.rstrip(b"\n") + b"\n")
    write_atomically(metrics, b"".join(kept))


@contextmanager
def _stop_signals() -> Generator[threading.Event]:
    """Ctrl-C and SIGTERM set an event; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _display(config: TrainerConfig, step: int) -> Generator[Callable[[Mapping[str, float], Progress], None]]:
    """A progress bar; what it shows is set by calling the function."""
    if not config.progress:
        yield lambda record, progress: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = [
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TextColumn("{task.fields[validation]}"),
        TimeRemainingColumn(),
    ]
    with Bar(*columns) as bar:
        task = bar.add_task("", total=config.steps, completed=step, loss=math.nan, speed=0.0, validation="")
        smooth = math.nan

        def show(record: Mapping[str, float], progress: Progress) -> None:
            nonlocal smooth
            smooth = record["loss"] if math.isnan(smooth) else 0.95 * smooth + 0.05 * record["loss"]
            scores = ", ".join(f"{name} {value:.3f}" for name, value in progress.scores.items())
            speed = progress.tokens / progress.wall_seconds
            bar.update(task, completed=progress.step, loss=smooth, speed=speed, validation=scores and f"val {scores}")

        yield show
