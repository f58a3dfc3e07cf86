"""The training loop, for any task that can say `step(batch) -> loss`.

It writes three things:

    DIR/metrics.jsonl     one line a step, one a validation, one a look at attention
    DIR/curves.png        the same, drawn
    DIR/checkpoints/      see checkpoint.py

A run can be killed at any moment. Resumed, it goes back to its last checkpoint and continues bit for bit as if it had
never stopped (same machine, same number of threads), if the task draws its random numbers from torch or Python.
"""

import math
import random
import signal
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Generic, Protocol, TypeVar, get_args

import numpy as np
import torch
from torch import nn

from regard.training.average import RunningAverage
from regard.training.checkpoint import Checkpoints, Progress, load_checkpoint
from regard.training.display import display
from regard.training.errors import DivergedError, StorageError, TrainingError
from regard.training.optimiser import Schedule
from regard.training.ranges import check_ranges
from regard.training.records import Records
from regard.training.watching import watch_attention
from regard.training.workers import Gradients, Precision, Shard
from regard.training.workers import Task as GradientTask

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class TrainerConfig:
    """How long to train, and what to keep."""

    steps: int = 10_000  # updates in all
    validate_every: int = 500  # steps; also at the last one
    checkpoint_every: int = 500  # steps; also at the last one and when stopped
    keep: int = 10  # checkpoints: the last so many of those that were due, and the best besides
    patience: int | None = None  # validations without a lower loss after which a run ends; None: it never does
    ema: float | None = None  # decay of a running average of the weights, which is then validated; None: there is none
    watch_every: int = 0  # steps between two looks at attention, on the first batch; 0: none
    clip: float | None = 1.0  # longest gradient (L2 norm over all parameters); None leaves it as it is
    precision: Precision = (
        "float32"  # of the forward pass; bfloat16: under autocast, validation in float32 all the same
    )
    compile: bool = False  # Transformer blocks, while gradients are computed; see compiled.py
    shards: int = 1  # consecutive batches that make up a step
    workers: int = 1  # processes that compute them; the result is the same with any number
    seed: int = 0  # of all random numbers
    progress: bool = True  # show a progress bar
    tensorboard: bool = False  # also write for TensorBoard, to DIR/tensorboard

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due at a step."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.precision not in get_args(Precision):
            known = ", ".join(map(repr, get_args(Precision)))
            raise TrainingError(f"precision is {self.precision!r}; it may be {known}")


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    progress: Progress
    finished: bool  # False if it was stopped by Ctrl-C or SIGTERM
    early: bool = False  # whether it ended because the loss of validation fell no more


class Task(GradientTask[BatchT], Protocol[BatchT]):
    """What is to be learnt, and how well it is."""

    def validate(self) -> Mapping[str, float]:
        """Scores by name; the lowest "loss" is the best. Called in evaluation mode, without gradients."""
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
        self.out = out
        self.progress = Progress()
        self.average = None if config.ema is None else RunningAverage(model, config.ema)

    def run(self, *, resume: bool = False) -> Outcome:
        """Train to the last step, or until Ctrl-C or SIGTERM, which save a checkpoint first.

        Args:
            resume: continue from the newest checkpoint, or start if there is none. Default False.

        Raises:
            TrainingError: if the directory already holds checkpoints and resume is False, or what it holds is damaged.
            DivergedError: if loss or gradient is not finite; the checkpoints before it are kept.
            StorageError: if a file cannot be written; the checkpoints before it are kept.
        """
        self._begin(resume)
        config = self.config
        with (
            Gradients(
                self.model,
                self.task,
                shards=config.shards,
                workers=config.workers,
                precision=config.precision,
                compiled=config.compile,
            ) as gradients,
            _stop_signals() as stop,
            Records(self.out, self.progress.step, tensorboard=config.tensorboard) as records,
            display(config.steps, self.progress, shown=config.progress) as show,
        ):
            clock = time.perf_counter() - self.progress.wall_seconds
            cpu = time.process_time() - self.progress.cpu_seconds
            try:
                for shards in self._stream():
                    record = self._update(gradients, shards)
                    self.progress.cpu_seconds = time.process_time() - cpu + gradients.other_cpu_seconds
                    self.progress.wall_seconds = time.perf_counter() - clock
                    seconds = {"cpu_seconds": self.progress.cpu_seconds, "wall_seconds": self.progress.wall_seconds}
                    records.add({**record, **seconds})
                    stopping = stop.is_set()  # read once: a signal that comes later is for the next step
                    self._after_step(records, stopping=stopping)
                    show(record, self.progress)
                    if stopping:
                        break
            except StorageError as error:
                raise StorageError(f"{error}; {self._kept()}") from error
        early = self._waited_enough and self.progress.step < config.steps
        return Outcome(self.progress, early or self.progress.step >= config.steps, early)

    @property
    def _waited_enough(self) -> bool:
        """Whether the loss of validation has not fallen for so long that the run ends."""
        return self.config.patience is not None and self.progress.waited >= self.config.patience

    def _begin(self, resume: bool) -> None:
        """Load the newest checkpoint, or seed the generators for a new run."""
        latest = self.checkpoints.latest
        if latest is not None and not resume:
            raise TrainingError(
                f"{latest.parent} holds checkpoints of another run; resume it, or choose another directory"
            )
        random.seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        if latest is not None:
            try:
                self.progress = load_checkpoint(latest, self.model, self.optimiser, self.average)
            except TrainingError as error:
                before = self.checkpoints.paths[-2:-1]
                advice = f"; without that file the run goes on from {before[0].name}" if before else ""
                raise TrainingError(f"{error}{advice}") from error
            self.checkpoints.recover(self.progress)

    def _stream(self) -> Iterator[list[Shard]]:
        """The shards of every remaining step."""
        config = self.config
        while self.progress.step < config.steps and not self._waited_enough:
            epoch = self.progress.epoch
            count = len(self.task.batches(epoch))
            if not count:
                raise TrainingError(f"epoch {epoch} has no batches; it must have at least one")
            for first in range(self.progress.batch, count, config.shards):
                if self.progress.step >= config.steps or self._waited_enough:
                    return
                indices = range(first, min(first + config.shards, count))
                yield [Shard(epoch, index, _seed(config.seed, epoch, index)) for index in indices]
            self.progress.epoch, self.progress.batch = epoch + 1, 0

    def _update(self, gradients: Gradients[BatchT], shards: list[Shard]) -> dict[str, float]:
        """One step of the optimiser; what is to be recorded of it."""
        step = self.progress.step + 1
        rate = self.schedule(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
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
        if self.average is not None:
            self.average.update(step)
        progress, last = self.progress, shards[-1]
        progress.step, progress.epoch, progress.batch = step, last.epoch, last.index + 1
        progress.tokens += tokens
        return {"step": step, "epoch": last.epoch, "loss": loss, "lr": rate, "grad_norm": norm, "tokens": tokens}

    def _divergence(self, name: str, value: float, step: int) -> str:
        stopped = f"{name} is {value} at step {step}, so training stopped; {self._kept()}"
        return f"{stopped}. A lower learning rate usually helps"

    def _kept(self) -> str:
        latest = self.checkpoints.latest
        return "no checkpoint was written yet" if latest is None else f"the last good checkpoint is {latest}"

    def _after_step(self, records: Records, *, stopping: bool) -> None:
        """Watch, validate and save where this step is due for it."""
        config, progress = self.config, self.progress
        step, last = progress.step, progress.step == config.steps
        if config.watch_every and (step % config.watch_every == 0 or last):
            batch = self.task.batches(0)[0]
            records.add({"step": step, "attention": watch_attention(self.model, lambda: self.task.step(batch))})
        score = None
        if step % config.validate_every == 0 or last:
            score = self._validate()
            records.add({"step": step, "validation": progress.scores})
        improved = score is not None and progress.best_step == step
        if config.due(step) or stopping or improved or self._waited_enough:
            self.checkpoints.save(self.model, self.optimiser, progress, score, self.average)
        if score is not None or stopping:
            records.draw()

    def _validate(self) -> float | None:
        """The loss of the validation; all scores, and how long ago the best was, are in the progress then."""
        progress = self.progress
        self.model.eval()
        with torch.no_grad(), nullcontext() if self.average is None else self.average.in_place():
            progress.scores = dict(self.task.validate())
        score = progress.scores.get("loss")
        if score is not None and not math.isfinite(score):
            raise DivergedError(self._divergence("validation loss", score, progress.step))
        if score is not None and score < progress.best_score:
            progress.best_step, progress.best_score, progress.waited = progress.step, score, 0
        elif score is not None:
            progress.waited += 1
        return score


def _seed(seed: int, epoch: int, index: int) -> int:
    """A seed for each batch of a run, unlike those of other batches and other runs."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
