"""What the measurements of learning have in common: a thread, a record of what is done, and tables of it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from regard.files import write_atomically
from regard.training.checkpoint import Progress
from regard.training.dropout import set_dropout
from regard.training.loop import Task, Trainer, TrainerConfig
from regard.training.optimiser import build_optimiser, build_schedule
from regard.training.run import common

ModelT = TypeVar("ModelT", bound=nn.Module)


class StoppedError(Exception):
    """Ctrl-C or SIGTERM, after what was done so far was saved."""


def on_one_thread(work: Callable[[], None]) -> int:
    """Do the work of a command on one thread, so that the process's CPU time is what it took, whoever else is at work.

    Returns:
        The exit code: 2, and a line that says what is wrong, for bad input; 130 where it was stopped.
    """
    torch.set_num_threads(1)
    try:
        work()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (StoppedError, KeyboardInterrupt) as error:
        print(str(error) or "stopped", file=sys.stderr)
        return 130
    return 0


class Results:
    """What was measured, by name, in a JSON file, so that a measurement that was stopped goes on where it was.

    Args:
        path: of the file; what it holds already is not measured again.
        setting: what all results depend on. A file with another setting is refused.

    Raises:
        ValueError: if the file is of another setting.
    """

    def __init__(self, path: Path, setting: Mapping[str, Any]) -> None:
        self._path = path
        self.setting: dict[str, Any] = json.loads(json.dumps(setting))
        self.found: dict[str, dict[str, Any]] = {}
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["setting"] != self.setting:
                raise ValueError(f"{path} holds results of another setting: {record['setting']}; move it away")
            self.found = record["results"]

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of this name, measured and written if it is not there."""
        if name not in self.found:
            start = time.perf_counter()
            found = measure()
            self.found[name] = {**found, "wall_seconds": round(time.perf_counter() - start, 1), "date": today()}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            record = {"command": command(), "machine": machine(), "setting": self.setting, "results": self.found}
            write_atomically(self._path, json.dumps(record, indent=2).encode() + b"\n")
            print(f"{name}: {json.dumps(self.found[name])}", file=sys.stderr, flush=True)
        return self.found[name]


def today() -> str:
    """The date, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def machine() -> str:
    """What was measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, CPU only, one thread; torch {torch.__version__}"


def command() -> str:
    """The command line that runs."""
    return shlex.join(["python", *sys.argv])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation (of the sample, n − 1); one value as it is.

    >>> spread([1.0, 2.0, 3.0], 1), spread([2.0], 1)
    ('2.0 ± 1.0', '2.0')
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def wilson(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson's score interval).

    >>> [round(bound, 3) for bound in wilson(776, 872)]
    [0.867, 0.909]
    """
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Fitted(Generic[ModelT]):
    """A model that was trained."""

    model: ModelT
    progress: Progress  # its CPU seconds are of the steps alone


def fit(
    make: Callable[[], ModelT],
    task_of: Callable[[ModelT, Any], Task[Any]],
    recipe: Any,
    *,
    seconds: float | None = None,
    rehearsed: int = 14,
) -> Fitted[ModelT]:
    """Train a model by regard's loop, for the steps of a recipe, or as many as fit into so many CPU seconds.

    How many do is measured first, on a model that is thrown away. Nothing is validated on the way; the weights are
    those of the last step.

    Args:
        make: a new model.
        task_of: the task of a model, for a recipe.
        recipe: a `regard.training.run.Recipe`; its seed is that of the model's first weights too.
        seconds: of the process's CPU time; None takes the steps of the recipe.
        rehearsed: steps of the model that is thrown away, of which the first two do not count.

    Raises:
        StoppedError: it was stopped; nothing of it is kept.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if seconds is not None:
            trial = dataclasses.replace(recipe, steps=rehearsed, warmup=1)
            clock = _train(make(), task_of, trial, Path(scratch) / "rehearsal")[1]
            steps = max(2, int(seconds * (rehearsed - 2) / (clock[-1] - clock[1])))
            recipe = dataclasses.replace(recipe, steps=steps)
        torch.manual_seed(recipe.seed)
        model = make()
        return Fitted(model, _train(model, task_of, recipe, Path(scratch) / "run")[0])


def _train(
    model: Any, task_of: Callable[[Any, Any], Task[Any]], recipe: Any, out: Path
) -> tuple[Progress, list[float]]:
    """Where the run stood at its end, and the CPU seconds after each step."""
    set_dropout(model, recipe.dropout)
    settings, never = recipe.optimiser_config(), recipe.steps
    kept = {"watch_every": 0, "validate_every": never, "checkpoint_every": never, "keep": 1, "progress": False}
    trainer = Trainer(
        model,
        task_of(model, recipe),
        build_optimiser(model, settings),
        build_schedule(settings, recipe.steps),
        out=out,
        config=TrainerConfig(**{**common(TrainerConfig, recipe), **kept}),
    )
    outcome = trainer.run()
    if not outcome.finished:
        raise StoppedError("stopped; the same command begins this run again, and keeps those that are done")
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    clock = [record["cpu_seconds"] for record in map(json.loads, lines) if "loss" in record]
    outcome.progress.cpu_seconds = clock[-1]
    return outcome.progress, clock
