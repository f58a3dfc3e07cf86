"""What the runs of all tasks have in common: a recipe, how it is changed by words, and the model that is kept."""

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from regard.models import Checkpoint
from regard.training.baselines.saved import Baseline
from regard.training.checkpoint import load_weights
from regard.training.directory import read_record
from regard.training.errors import TrainingError
from regard.training.loop import Outcome, Task, Trainer, TrainerConfig
from regard.training.optimiser import OptimiserConfig, ScheduleName, build_optimiser, build_schedule
from regard.training.ranges import check_ranges
from regard.training.workers import Precision

MAY_CHANGE = frozenset({"validate_every", "checkpoint_every", "keep", "watch_every"})
"""Fields of a recipe that a resumed run may have otherwise: they do not change what a step does."""
RecipeT = TypeVar("RecipeT")


def may_change(schedule: ScheduleName, *, lasting: bool = True) -> frozenset[str]:
    """The fields that a resumed run may have otherwise; the steps only where no rate depends on how many there are.

    Args:
        schedule: of the run.
        lasting: whether its warm-up is a number of steps, and no part of all.
    """
    return MAY_CHANGE | {"steps"} if lasting and schedule in ("inverse-sqrt", "constant") else MAY_CHANGE


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast a model learns, whatever the task."""

    steps: int = 2000  # updates in all
    shards: int = 1  # batches whose gradients are added up for an update
    optimiser: Literal["adamw", "muon"] = "adamw"
    peak_learning_rate: float = 0.001  # at the end of the warm-up
    schedule: ScheduleName = "cosine"
    warmup: int | None = None  # steps; None is a twentieth of all
    final_fraction: float = 0.1  # of the peak, at the last step
    decay_fraction: float = 0.2  # wsd only: the part of all steps in which the rate falls
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW's two moments
    epsilon: float = 1e-8
    momentum: float = 0.95  # Muon's
    weight_decay: float = 0.1  # on matrices alone
    layer_decay: float = 1.0  # a layer's rate as a part of that of the layer above it; 0.8 or so for fine-tuning
    clip: float | None = 1.0  # longest gradient; None leaves it as it is
    dropout: float | None = None  # of every sublayer's output; None leaves the model as it is
    precision: Precision = "float32"  # of matrix products in training; bfloat16 has fewer digits
    compile: bool = False  # Transformer blocks, with torch.compile; needs a C++ compiler
    label_smoothing: float = 0.0  # part of the target spread over all classes or pieces
    ema: float | None = None  # decay of a running average of the weights, which is then what is kept
    patience: int | None = None  # validations without a lower loss after which the run ends
    validate_every: int = 200  # steps
    checkpoint_every: int = 200  # steps
    keep: int = 2  # checkpoints, the best besides
    watch_every: int = 200  # steps between two looks at attention; 0: none
    seed: int = 1

    def __post_init__(self) -> None:
        check_ranges(self)

    def optimiser_config(self) -> OptimiserConfig:
        """The optimiser's part."""
        warmup = max(1, self.steps // 20) if self.warmup is None else self.warmup
        settings: dict[str, Any] = {**common(OptimiserConfig, self), "warmup": warmup}
        return OptimiserConfig(**settings)

    def may_change(self) -> frozenset[str]:
        """The fields that a resumed run may have otherwise."""
        return may_change(self.schedule, lasting=self.warmup is not None)


Size = Literal["tiny", "small", "medium", "large"]


@dataclass(frozen=True, kw_only=True)
class SizedRecipe(Recipe):
    """A recipe of a Transformer that is new, in one of some sizes, or fine-tuned, which has its own."""

    model: str | None = None  # what is fine-tuned: a model that `regard.load` reads; None is a new one
    size: Size = "tiny"  # of a new model; the four below go before it
    d_model: int | None = None  # width
    layers: int | None = None
    heads: int | None = None
    feed_forward: int | None = None  # hidden width of the feed-forward network

    def only_of_new(self, *names: str) -> None:
        """Refuse settings of a new model where one is fine-tuned, which has its own.

        Args:
            names: of the task's own fields that say what a new model is; the sizes are known.

        Raises:
            TrainingError: if one of them, or a size, is set beside a model.
        """
        if self.model is not None:
            sizes = ("size", "d_model", "layers", "heads", "feed_forward")
            as_they_are(self, (*sizes, *names), f"model {self.model!r}, which has its own")

    def sizes(self, known: Mapping[str, Mapping[str, int]], *, each: int = 1) -> dict[str, Any]:
        """Width, layers, heads and hidden width of a new model.

        Args:
            known: these four, by the name of the size.
            each: what a head's width must be a multiple of.

        Raises:
            TrainingError: if the width cannot be divided so among the heads.
        """
        usual = known[self.size]
        found = {name: usual[name] if getattr(self, name) is None else getattr(self, name) for name in usual}
        heads, width = found["heads"], found["d_model"]
        if heads < 1 or width % (each * heads):
            allowed = f"a multiple of {each * heads}" if heads >= 1 else "divided among 1 or more"
            raise TrainingError(f"d_model is {width} with {heads} heads; it may be {allowed}")
        return found


@dataclass(frozen=True)
class Run:
    """Where and how a run is computed, which changes nothing of what it learns.

    Args:
        out: directory of the run, made if it does not exist.
        resume: continue the run in that directory, or start one.
        workers: processes, at most as many as the recipe has shards; with `torch.set_num_threads(1)` the result is the
            same with any number.
        progress: show a progress bar.
        tensorboard: also write for TensorBoard.
        tell: called with each sentence about what was left out of the data, before the first step.
    """

    out: Path
    resume: bool = False
    workers: int = 1
    progress: bool = True
    tensorboard: bool = False
    tell: Callable[[str], object] | None = None


@dataclass(frozen=True)
class Trained:
    """What a run leaves behind."""

    model: nn.Module  # with the weights that were kept, in evaluation mode
    directory: Path  # of the model
    outcome: Outcome
    scores: Mapping[str, float]  # of the weights that were kept, on the validation data
    skipped: Sequence[str]  # what was left out of the data and why, a sentence each


def common(kind: type[Any], recipe: Any) -> dict[str, Any]:
    """The fields of a recipe that another dataclass has too."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe) if field.name in names}


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
"""Numbers as people write them, which JSON has not all of: .5, 5., +5."""


def changed(recipe: RecipeT, settings: Sequence[str]) -> RecipeT:
    """A recipe with some of its fields set, each written as NAME=VALUE, the value as in JSON or a plain word.

    Raises:
        TrainingError: if there is no such field, or the value is of another kind.
    """
    kinds = typing.get_type_hints(type(recipe))
    values: dict[str, Any] = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if name not in kinds or not sign:
            raise TrainingError(f"{setting!r} is no setting; it may be NAME=VALUE with one of {', '.join(kinds)}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = float(text) if _NUMBER.fullmatch(text) else text
        values[name] = _of_kind(name, value, kinds[name])
    return dataclasses.replace(recipe, **values)  # type: ignore[type-var]


def _of_kind(name: str, value: Any, kind: Any) -> Any:
    """The value, if it is one that a field of this type holds."""
    if typing.get_origin(kind) is tuple:
        parts, count = typing.cast(list[Any], value) if isinstance(value, list) else [], len(typing.get_args(kind))
        if len(parts) == count and all(isinstance(p, int | float) and not isinstance(p, bool) for p in parts):
            return tuple(float(part) for part in parts)
        raise TrainingError(f"{name} is {value!r}; it may be a list of {count} numbers, such as [0.9, 0.95]")
    choices = typing.get_args(kind) if typing.get_origin(kind) is not Literal else (kind,)
    for choice in choices or (kind,):
        origin = typing.get_origin(choice)
        if origin is Literal and value in typing.get_args(choice):
            return value
        if choice is type(None) and value is None:
            return value
        if isinstance(value, bool) or origin is Literal:
            if choice is bool and isinstance(value, bool):
                return value
            continue
        if choice is float and isinstance(value, int | float):
            return float(value)
        if isinstance(choice, type) and origin is None and isinstance(value, choice):
            return value
    allowed = " or ".join(_named(choice) for choice in choices) or _named(kind)
    raise TrainingError(f"{name} is {value!r}; it may be {allowed}")


def _named(kind: Any) -> str:
    """What a type is called in a message."""
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(repr, typing.get_args(kind)))
    names: dict[Any, str] = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    return names.get(kind, "null")


def recorded(kind: type[RecipeT], out: Path) -> RecipeT | None:
    """The recipe of the run in a directory; None where there is none.

    Raises:
        TrainingError: if it is damaged, or of another task.
    """
    path = out / "recipe.json"
    if not path.is_file():
        return None
    record = {name: value for name, value in read_record(path).items() if name != "data"}
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if strange := [name for name in record if name not in names]:
        raise TrainingError(f"{path} is of another task, or damaged: this task has no setting {strange[0]!r}")
    settings = [f"{name}={json.dumps(value)}" for name, value in record.items()]
    return changed(kind(), settings)


def only_of_transformers(recipe: Any, *names: str) -> None:
    """Refuse settings that a baseline has nothing for.

    Args:
        recipe: with a family.
        names: of fields that must be as they are unless given.

    Raises:
        TrainingError: if one of them is set and the family is none of Transformers.
    """
    if recipe.family != "transformer":
        as_they_are(recipe, names, f"family {recipe.family!r}")


def as_they_are(recipe: Any, names: Collection[str], beside: str) -> None:
    """Refuse settings that would be ignored.

    Args:
        recipe: of the task.
        names: of fields that must be as they are unless given.
        beside: what it is that they have no meaning with.

    Raises:
        TrainingError: if one of them is set.
    """
    defaults = type(recipe)()
    for name in names:
        if getattr(recipe, name) != getattr(defaults, name):
            usual = json.dumps(getattr(defaults, name))
            raise TrainingError(f"{name} is {getattr(recipe, name)!r}; it may be {usual} with {beside}")


def learn(
    checkpoint: Checkpoint | Baseline, task: Task[Any], recipe: Recipe, run: Run
) -> tuple[Outcome, dict[str, float]]:
    """Train a model on a task, and leave it with the weights that did best, in evaluation mode.

    Returns:
        How the run ended, and the scores of these weights.

    Raises:
        TrainingError: as `Trainer.run`.
    """
    model, settings = checkpoint.model, recipe.optimiser_config()
    loop = common(TrainerConfig, recipe)
    if isinstance(checkpoint, Baseline):
        loop["watch_every"] = 0  # no attention to look at
    trainer = Trainer(
        model,
        task,
        build_optimiser(model, settings),
        build_schedule(settings, recipe.steps),
        out=run.out,
        config=TrainerConfig(workers=run.workers, progress=run.progress, tensorboard=run.tensorboard, **loop),
    )
    outcome = trainer.run(resume=run.resume)
    kept = trainer.checkpoints.best or trainer.checkpoints.latest
    if kept is not None:
        load_weights(kept, model)
    model.eval()
    with torch.no_grad():
        return outcome, dict(task.validate())
