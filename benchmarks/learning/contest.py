"""Models that learn the same task in the same CPU time: what the benchmarks of images and of sound have in common.

Every run has a directory of its own, with all that the loop writes, and continues where it was stopped. Its number of
steps is what fits into its budget of CPU time, by the time of some steps and of a validation before it begins.
"""

import copy
import dataclasses
import json
import random
import statistics
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import StoppedError
from torch import nn

from regard.files import write_atomically
from regard.models.checkpoint import Checkpoint
from regard.training.checkpoint import load_weights
from regard.training.directory import agree
from regard.training.loop import Trainer, TrainerConfig
from regard.training.optimiser import build_optimiser, build_schedule
from regard.training.run import Recipe, common, recorded
from regard.training.tasks.classification import ClassificationTask, Labelled

LOOKS = 8
"""Validations of a run unless it says otherwise, evenly spaced, within its budget."""
TIMED = 7
"""Steps that are timed before a run, the first of them not counted."""


@dataclass(frozen=True)
class Entry:
    """A model that takes part.

    Args:
        name: as in tables.
        make: makes it, with new weights drawn from torch's generator.
        recipe: how it learns, without steps and seed.
        rates: peak learning rates that are tried.
    """

    name: str
    make: Callable[[], nn.Module]
    recipe: Any
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """What a run gave."""

    name: str
    parameters: int
    steps: int
    examples: int  # seen, each as often as it was
    cpu_seconds: float
    scores: Mapping[str, float]  # of the last weights, or their running average, on the validation data of the task
    rate: float  # peak learning rate
    seed: int
    date: str  # when it ended, UTC


def compete(
    entry: Entry,
    task_of: Callable[[nn.Module, Any], ClassificationTask[Any]],
    out: Path,
    *,
    budget: float,
    seed: int,
    rate: float,
    looks: int = LOOKS,
    quiet: bool = False,
) -> tuple[nn.Module, Result]:
    """A run, from where it is: new, stopped, or done.

    The weights of the last step are kept, whatever the validations said.

    Args:
        entry: the model.
        task_of: the task, from the model and the recipe.
        out: directory of the run.
        budget: CPU seconds of this process, validations among them.
        seed: of weights, batches and augmentation.
        rate: peak learning rate.
        looks: validations.
        quiet: no progress bar.

    Returns:
        The model in evaluation mode, and the result, which is also in out/result.json.

    Raises:
        StoppedError: if it was stopped.
        TrainingError: see `Trainer.run`.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    model = entry.make()
    recipe: Any = dataclasses.replace(entry.recipe, seed=seed, peak_learning_rate=rate)
    out.mkdir(parents=True, exist_ok=True)
    before = recorded(type(recipe), out)
    if before is None:
        steps = steps_within(budget, model, task_of, recipe, looks)
        often = {"validate_every": -(-steps // looks), "checkpoint_every": -(-steps // (4 * looks))}
        recipe = dataclasses.replace(recipe, steps=steps, **often)
    else:
        kept = {name: getattr(before, name) for name in ("steps", "validate_every", "checkpoint_every")}
        recipe = dataclasses.replace(recipe, **kept)
    agree(out / "recipe.json", recipe, {"budget": f"{budget} CPU seconds"}, resume=True, free=recipe.may_change())
    task = task_of(model, recipe)
    progress = _train(model, task, recipe, out, quiet=quiet)
    place = out / "result.json"
    if place.is_file():
        return model, Result(**json.loads(place.read_bytes()))
    with torch.no_grad():
        scores = dict(task.validate())
    result = Result(
        entry.name,
        sum(parameter.numel() for parameter in model.parameters()),
        progress.step,
        progress.tokens,
        progress.cpu_seconds,
        scores,
        rate,
        seed,
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )
    write_atomically(place, json.dumps(dataclasses.asdict(result), indent=2).encode())
    return model, result


def _train(model: nn.Module, task: ClassificationTask[Any], recipe: Recipe, out: Path, *, quiet: bool) -> Any:
    """Train to the end, and leave the model with its last weights, in evaluation mode; the progress."""
    settings = recipe.optimiser_config()
    trainer = Trainer(
        model,
        task,
        build_optimiser(model, settings),
        build_schedule(settings, recipe.steps),
        out=out,
        config=TrainerConfig(progress=not quiet, **common(TrainerConfig, recipe)),
    )
    if not (out / "result.json").is_file() and not trainer.run(resume=True).finished:
        raise StoppedError(f"stopped; the same command continues {out}")
    latest = trainer.checkpoints.latest
    assert latest is not None
    progress = load_weights(latest, model)
    model.eval()
    return progress


def tuned(
    entry: Entry,
    task_of: Callable[[nn.Module, Any], ClassificationTask[Any]],
    out: Path,
    *,
    budget: float,
    quiet: bool = False,
) -> tuple[float, list[Result]]:
    """The peak learning rate with the lowest loss on the validation data of the task, one run for each, seed 0."""
    found = [
        compete(entry, task_of, out / f"rate-{rate:g}", budget=budget, seed=0, rate=rate, looks=2, quiet=quiet)[1]
        for rate in entry.rates
    ]
    return min(found, key=lambda result: result.scores["loss"]).rate, found


def steps_within(
    budget: float,
    model: nn.Module,
    task_of: Callable[[nn.Module, Any], ClassificationTask[Any]],
    recipe: Recipe,
    looks: int,
) -> int:
    """Steps that fit into so many CPU seconds beside so many validations; the model is left as it is."""
    trial = copy.deepcopy(model).train()
    task = task_of(trial, recipe)
    optimiser = build_optimiser(trial, recipe.optimiser_config())
    batches = task.batches(0)
    times: list[float] = []
    for index in range(TIMED):
        first = time.process_time()
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16", cache_enabled=False):
            loss = task.step(batches[index % len(batches)])
        loss.backward()
        nn.utils.clip_grad_norm_(trial.parameters(), 1.0)
        optimiser.step()
        times.append(time.process_time() - first)
    trial.eval()
    first = time.process_time()
    with torch.no_grad():
        task.validate()
    look = time.process_time() - first
    return max(looks, int((budget - looks * look) / statistics.median(times[1:])))


def right(task: ClassificationTask[Any], examples: Labelled[Any]) -> list[bool]:
    """Whether each answer of a task's model is right."""
    scores, labels = task.scores(examples)
    return (scores.argmax(1) == labels).tolist()


def done_in_half(
    entry: Entry,
    checkpoint: Checkpoint,
    task_of: Callable[[nn.Module, Any], ClassificationTask[Any]],
    out: Path,
    *,
    budget: float,
    looks: int = LOOKS,
) -> Result:
    """Gives a checkpoint the last weights of a run, as they are in float16.

    Args:
        entry: the model of the run.
        checkpoint: a new one of the same sizes.
        task_of: see `compete`, like what follows.
        out: directory of the run.
        budget: of the run.
        looks: of the run.

    Returns:
        The result of the run.

    Raises:
        ValueError: if the run is not done.
    """
    place = out / "result.json"
    if not place.is_file():
        raise ValueError(f"{out} holds no run that is done: train it first")
    result = Result(**json.loads(place.read_bytes()))
    same = dataclasses.replace(entry, make=lambda: checkpoint.model)
    model, _ = compete(same, task_of, out, budget=budget, seed=result.seed, rate=result.rate, looks=looks, quiet=True)
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.to(torch.float16))
    return result


def parser(
    about: str, entries: Sequence[Entry], *, data: str, out: str, seconds: tuple[float, float]
) -> ArgumentParser:
    """The options of both benchmarks.

    Args:
        about: what `--help` begins with.
        entries: what may be trained alone.
        data: what --data is.
        out: where runs go unless told otherwise.
        seconds: of CPU time of a run, and of one that is for tuning.
    """
    options = ArgumentParser(description=about, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help=data)
    options.add_argument("--out", type=Path, default=Path(out), help="directory of all runs")
    options.add_argument("--budget", type=float, default=seconds[0], help="CPU seconds of a run")
    options.add_argument("--tuning-budget", type=float, default=seconds[1], help="of a run that is for tuning")
    options.add_argument("--only", choices=[e.name for e in entries], action="append", help="train only this model")
    options.add_argument("--embed", nargs="?", type=Path, const=True, help="write it into the package, or to DIR")
    options.add_argument("--quiet", action="store_true", help="no progress bar")
    return options


def chosen(entries: Sequence[Entry], arguments: Namespace) -> list[Entry]:
    """Those that are to be trained."""
    return [entry for entry in entries if not arguments.only or entry.name in arguments.only]


def curve(out: Path, score: str = "accuracy") -> tuple[list[float], list[float]]:
    """CPU minutes of a run's validations, and their scores."""
    minutes, scores, seconds = [], [], 0.0
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        seconds = record.get("cpu_seconds", seconds)
        if "validation" in record:
            minutes.append(seconds / 60)
            scores.append(record["validation"][score])
    return minutes, scores


def interval(right: Sequence[bool], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of an accuracy, from whether each answer is right."""
    values = np.asarray(right, dtype=np.float64)
    draw = np.random.default_rng(seed)
    means = [values[draw.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
