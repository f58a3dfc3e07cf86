"""Gradients of one step, computed in one process or in several.

A step is made of shards: batches whose gradients are averaged, weighted by their tokens. Every shard has a random seed
of its own and a gradient buffer of its own, and buffers are added in the order of the shards. The result is therefore
the same, bit for bit, whether one process computes the shards one after another or several compute them at once.

Several processes of one thread each are faster than one process of several threads for small models: threads meet
after each of some thousand small operations, processes once a step; and where other programs run on the same
machine, a thread that has to wait for its core holds up all the others every time.
"""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from regard.training.compiled import CompiledBlocks
from regard.training.errors import TrainingError

BatchT = TypeVar("BatchT")
Precision = Literal["float32", "bfloat16"]
"""What matrix products are computed with. Parameters, gradients and what needs its digits stay float32 (autocast)."""


class Task(Protocol[BatchT]):
    """What is to be learnt."""

    def batches(self, epoch: int) -> Sequence[BatchT]:
        """The batches of an epoch; the same at every call with the same epoch."""
        ...

    def step(self, batch: BatchT) -> Tensor:
        """The mean loss a token of a batch, a scalar with gradients."""
        ...

    def tokens(self, batch: BatchT) -> int:
        """How much a batch holds: its weight within a step, and the speed shown."""
        ...


@dataclass(frozen=True)
class Shard:
    """One batch of a step, and the random numbers it is computed with."""

    epoch: int
    index: int  # of the batch within the epoch
    seed: int


@dataclass(frozen=True)
class Result:
    """What a shard gave, besides its gradient."""

    loss: float
    tokens: int


class WorkerError(TrainingError):
    """A process that computes gradients has ended before its time."""


class Gradients(Generic[BatchT]):
    """Computes the gradients of steps, in `workers` processes, this one among them.

    Used as a context: the other processes live as long as it is entered.

    Args:
        model: in training mode. With several workers its parameters are moved to shared memory.
        task: batches and loss.
        shards: at most so many a step.
        workers: processes; more than `shards` would have nothing to do.
        precision: of the forward pass.
        compiled: whether Transformer blocks are compiled, see `regard.training.compiled`.

    Raises:
        TrainingError: if shards or workers is less than 1, workers exceeds shards, several workers are asked for on
            a system that cannot fork, or bfloat16 for parameters that are not float32; or blocks cannot be compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task[BatchT],
        *,
        shards: int = 1,
        workers: int = 1,
        precision: Precision = "float32",
        compiled: bool = False,
    ) -> None:
        if shards < 1 or not 1 <= workers <= shards:
            raise TrainingError(f"workers is {workers} for {shards} shards; it may be from 1 to the number of shards")
        if workers > 1 and "fork" not in multiprocessing.get_all_start_methods():
            raise TrainingError(f"workers is {workers}; on a system without fork it may be 1")
        self._model, self._task, self._workers = model, task, workers
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        other = next((p.dtype for p in self._parameters if p.dtype != torch.float32), None)
        if precision == "bfloat16" and other is not None:
            raise TrainingError(f"precision is 'bfloat16' with parameters of {other}; they may be of torch.float32")
        self._precision: Precision = precision
        self._compiled = CompiledBlocks(model, workers) if compiled else None
        total = sum(p.numel() for p in self._parameters)
        self._buffers = torch.zeros(shards, total, dtype=self._parameters[0].dtype)  # one row a shard
        self._connections: list[Connection] = []
        self._processes: list[ForkProcess] = []
        self._seconds: list[float] = []
        self._epoch: int | None = None
        self._batches: Sequence[BatchT] = []

    def __enter__(self) -> "Gradients[BatchT]":
        if self._workers > 1:
            self._model.share_memory()
            self._buffers.share_memory_()
            context = multiprocessing.get_context("fork")
            for number in range(1, self._workers):
                ours, theirs = context.Pipe()
                self._connections.append(ours)
                process = context.Process(target=self._serve, args=(number, theirs), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
        self._seconds = [0.0] * len(self._processes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()  # ends the worker
        for process in self._processes:
            process.join()
        self._connections, self._processes = [], []

    @property
    def other_cpu_seconds(self) -> float:
        """Processor time of the other processes since they began."""
        return sum(self._seconds)

    def compute(self, shards: Sequence[Shard]) -> tuple[Tensor, list[Result]]:
        """The gradient of a step.

        Returns:
            The gradient, one flat vector of which every parameter's `.grad` is now a view, and each shard's result.

        Raises:
            WorkerError: if another process has ended.
        """
        try:
            for connection in self._connections:
                connection.send(shards)
            found = dict(self._mine(0, shards))
            for number, connection in enumerate(self._connections):
                theirs, self._seconds[number] = connection.recv()
                found |= theirs
        except (EOFError, ConnectionError) as error:
            raise WorkerError("a worker process has ended; resume the run from its last checkpoint") from error
        results = [found[place] for place in range(len(shards))]
        total = sum(result.tokens for result in results)
        gradient = self._buffers[0].mul_(results[0].tokens / total)
        for place in range(1, len(shards)):
            gradient.add_(self._buffers[place], alpha=results[place].tokens / total)
        self._point_to(0)
        return gradient, results

    def _serve(self, number: int, connection: Connection) -> None:
        """What another process does until its connection closes."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends this one
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for other in self._connections:  # inherited; an open copy would hide that the first process has ended
            other.close()
        torch.set_num_threads(1)
        try:
            while True:
                shards: Sequence[Shard] = connection.recv()
                connection.send((dict(self._mine(number, shards)), time.process_time()))
        except (EOFError, OSError):
            os._exit(0)

    def _mine(self, number: int, shards: Sequence[Shard]) -> list[tuple[int, Result]]:
        """Compute this process's part of the shards."""
        return [(place, self._shard(place, shards[place])) for place in range(number, len(shards), self._workers)]

    def _shard(self, place: int, shard: Shard) -> Result:
        if shard.epoch != self._epoch:
            self._epoch, self._batches = shard.epoch, self._task.batches(shard.epoch)
        batch = self._batches[shard.index]
        random.seed(shard.seed)
        torch.manual_seed(shard.seed)
        self._buffers[place].zero_()
        self._point_to(place)
        half = self._precision == "bfloat16"
        with (
            torch.autocast(self._parameters[0].device.type, torch.bfloat16, enabled=half, cache_enabled=False),
            nullcontext() if self._compiled is None else self._compiled.used(),
        ):
            loss = self._task.step(batch)
        loss.backward()
        return Result(loss.item(), self._task.tokens(batch))

    def _point_to(self, place: int) -> None:
        """Make every parameter's gradient a view of one shard's buffer."""
        row, first = self._buffers[place], 0
        for parameter in self._parameters:
            parameter.grad = row[first : first + parameter.numel()].view_as(parameter)
            first += parameter.numel()
