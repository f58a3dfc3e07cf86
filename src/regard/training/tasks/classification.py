"""Classes of images and of sound: what both tasks have in common.

B | examples in a batch    n | examples in all    K | classes
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.training.augment import Augmentation, one_hot
from regard.training.data import Ints
from regard.training.errors import TrainingError
from regard.training.metrics import accuracy, macro_f1
from regard.training.run import SizedRecipe

InputsT = TypeVar("InputsT", covariant=True)
RawT = TypeVar("RawT")


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(SizedRecipe):
    """What recipes of classifiers of images and of sound have in common."""

    batch_size: int = 64  # examples a batch, at most
    mixup: float = 0.0  # alpha of MixUp; 0: none
    validation_fraction: float = 0.1  # of every class, where no data for validation are given
    path: str = "path"  # column of the files in a table
    label: str = "label"  # column of the classes in a table
    label_smoothing: float = 0.1
    peak_learning_rate: float = 0.001
    weight_decay: float = 0.05
    steps: int = 2000


class Inputs(Protocol[InputsT]):
    """Inputs that are asked for a batch at a time: an array in memory, or what reads a file."""

    def __getitem__(self, chosen: Any) -> InputsT:
        """Those of these indices (B,), in this order."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Labelled(Generic[RawT]):
    """Examples and their classes.

    Args:
        inputs: n of them.
        labels: (n,), numbers of classes.
        names: of the K classes.

    Raises:
        TrainingError: if inputs and labels differ in number, there are none, or a label is none of the classes.
    """

    inputs: Inputs[RawT]
    labels: Ints
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels) or not len(self.labels):
            raise TrainingError(
                f"there are {len(self.inputs)} inputs and {len(self.labels)} labels; there may be as many, 1 or more"
            )
        least, most = int(self.labels.min()), int(self.labels.max())
        if least < 0 or most >= len(self.names):
            raise TrainingError(f"labels are from {least} to {most}; they may be from 0 to {len(self.names) - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Ints) -> Labelled[RawT]:
        """Those of these indices, in this order."""
        return Labelled(_Some(self.inputs, chosen), self.labels[chosen], self.names)

    def divided(self, fraction: float, seed: int) -> tuple[Labelled[RawT], Labelled[RawT]]:
        """Examples to learn from and examples to validate on: of each class a part, one at least.

        Raises:
            TrainingError: if a class has one example alone.
        """
        draw = np.random.default_rng([seed, 2**32])
        held_out: list[Ints] = []
        for label in np.unique(self.labels):
            members = draw.permutation(np.flatnonzero(self.labels == label))
            if len(members) < 2:
                raise TrainingError(
                    f"there is one example alone of the class {self.names[label]!r}; there must be two or more of each"
                )
            held_out.append(members[: min(len(members) - 1, max(1, round(len(members) * fraction)))])
        chosen = np.sort(np.concatenate(held_out))
        return self.take(np.setdiff1d(np.arange(len(self)), chosen)), self.take(chosen)


@dataclass(frozen=True, eq=False)
class _Some(Generic[RawT]):
    """Some of the inputs."""

    inputs: Inputs[RawT]
    which: Ints

    def __getitem__(self, chosen: Any) -> RawT:
        return self.inputs[self.which[chosen]]

    def __len__(self) -> int:
        return len(self.which)


@dataclass(frozen=True, eq=False)
class Batch(Generic[RawT]):
    """Inputs as they are stored, and their classes (B,)."""

    inputs: RawT
    labels: Tensor


class Batches(Sequence[Batch[RawT]]):
    """The batches of some order of examples, each read when asked for; they differ in size by one at most.

    Args:
        examples: of which they are made.
        order: (n,) indices.
        size: of a batch, at most.
    """

    def __init__(self, examples: Labelled[RawT], order: Ints, size: int) -> None:
        self._examples = examples
        self._parts = np.array_split(order, math.ceil(len(order) / size))  # no last batch of one, which no norm likes

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Batch[RawT]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch[RawT]]: ...
    def __getitem__(self, index: int | slice) -> Batch[RawT] | list[Batch[RawT]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        chosen = self._parts[index]
        return Batch(self._examples.inputs[chosen], torch.from_numpy(self._examples.labels[chosen].astype(np.int64)))


class ClassificationTask(ABC, Generic[RawT]):
    """The task of `Trainer`: an input's class.

    Args:
        model: inputs (B, …) as `ready` makes them → scores (B, K); any module.
        train: examples to learn from.
        validation: examples to measure on, of the same classes.
        recipe: batches, smoothing, seed.
        augment: what is done to inputs when they are learnt from, in this order.

    Raises:
        TrainingError: if the classes of both differ.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Labelled[RawT],
        validation: Labelled[RawT],
        recipe: ClassificationRecipe,
        augment: Sequence[Augmentation],
    ) -> None:
        if train.names != validation.names:
            raise TrainingError(f"validation has the classes {validation.names}; it must have {train.names}")
        self.model, self.recipe, self.augment = model, recipe, tuple(augment)
        self._train, self._validation = train, validation

    @abstractmethod
    def ready(self, inputs: RawT, targets: Tensor, *, learning: bool) -> tuple[Tensor, Tensor]:
        """What the model takes, and the part that each class has in each (B, K).

        Args:
            inputs: as they are stored.
            targets: (B, K).
            learning: whether to change them at random.
        """

    def batches(self, epoch: int) -> Batches[RawT]:
        """The batches of an epoch, by (seed, epoch) alone."""
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self._train))
        return Batches(self._train, order, self.recipe.batch_size)

    def step(self, batch: Batch[RawT]) -> Tensor:
        """Mean cross-entropy an example, with label smoothing if the recipe has it.

        In training mode inputs are augmented, by torch's default generator.
        """
        targets = one_hot(batch.labels, len(self._train.names))
        with torch.autocast(targets.device.type, enabled=False):  # autocast is for the model
            inputs, targets = self.ready(batch.inputs, targets, learning=self.model.training)
        scores: Tensor = self.model(inputs)
        return F.cross_entropy(scores.float(), targets, label_smoothing=self.recipe.label_smoothing)

    def tokens(self, batch: Batch[RawT]) -> int:
        """Examples."""
        return len(batch.labels)

    def validate(self) -> Mapping[str, float]:
        """Cross-entropy an example, accuracy and macro-F1 on the validation examples."""
        scores, labels = self.scores(self._validation)
        found = scores.argmax(1)
        return {
            "loss": F.cross_entropy(scores, labels).item(),
            "accuracy": accuracy(found, labels),
            "macro_f1": macro_f1(found, labels),
        }

    @torch.no_grad()
    def scores(self, examples: Labelled[RawT]) -> tuple[Tensor, Tensor]:
        """The model's scores (n, K) of examples, in the mode that it is in, and their classes (n,)."""
        found: list[Tensor] = []
        for batch in Batches(examples, np.arange(len(examples)), self.recipe.batch_size):
            inputs, _ = self.ready(batch.inputs, one_hot(batch.labels, len(examples.names)), learning=False)
            found.append(self.model(inputs).float())
        return torch.cat(found), torch.from_numpy(examples.labels.astype(np.int64))
