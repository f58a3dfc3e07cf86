"""Text files for models of language: what is learnt from and what is validated on, and windows of their pieces.

B | windows in a batch    T | context, pieces a window
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from regard.inputs.tokenizer import Tokenizer
from regard.models import Checkpoint
from regard.training.baselines import Baseline
from regard.training.directory import agree, left_as_it_was
from regard.training.dropout import set_dropout
from regard.training.errors import TrainingError
from regard.training.loop import Task
from regard.training.run import Run, SizedRecipe, Trained
from regard.training.tasks.cards import train_and_save
from regard.training.tokens import Ids, Section, TextFile, encoded, read_ids, split, survey, write_ids

RecipeT = TypeVar("RecipeT", bound="TextsRecipe")


@dataclass(frozen=True, kw_only=True)
class TextsRecipe(SizedRecipe):
    """What recipes of language models have in common."""

    batch_size: int = 16  # windows a batch
    context: int = 256  # pieces a window
    validation_fraction: float = 0.1  # of every file, at its end, where no files for validation are given
    validation_tokens: int = 200_000  # the first so many are validated on, at most


class Windows(Sequence[Tensor]):
    """Batches of windows of ids, (B, T + 1) each: a window's last id is the first of the next.

    Args:
        ids: one after another.
        context: T.
        batch_size: B; the last batch may have fewer.
        seed: with an epoch, of the place where the first window begins and of their order; None begins at the first id,
            keeps them in order and ends with what is left over, as a window of its own.
        epoch: see seed.

    Raises:
        TrainingError: if there are too few ids for a window.
    """

    def __init__(self, ids: Ids, context: int, batch_size: int, *, seed: int | None = None, epoch: int = 0) -> None:
        if len(ids) < 2 or (seed is not None and len(ids) <= context):
            least = 2 if seed is None else context + 1
            raise TrainingError(f"the text has {len(ids):,} pieces; a context of {context} needs {least:,} or more")
        self._ids, self._context, self._batch_size = ids, context, batch_size
        self._rest: int | None = None
        if seed is None:
            self._starts = np.arange((len(ids) - 1) // context) * context
            if (len(ids) - 1) % context:
                self._rest = len(self._starts) * context
            return
        draw = np.random.default_rng([seed, epoch])
        offset = int(draw.integers(min(context, len(ids) - context)))
        self._starts = offset + draw.permutation((len(ids) - 1 - offset) // context) * context

    def __len__(self) -> int:
        return math.ceil(len(self._starts) / self._batch_size) + (self._rest is not None)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        starts = self._starts[index * self._batch_size :][: self._batch_size]
        if not len(starts):
            assert self._rest is not None
            return torch.from_numpy(self._ids[None, self._rest :].astype(np.int64))
        return torch.from_numpy(np.stack([self._ids[i : i + self._context + 1] for i in starts]).astype(np.int64))


@dataclass(frozen=True)
class Texts:
    """Files to learn from and files or parts of them to validate on."""

    files: list[TextFile]
    held_out: list[TextFile]
    fraction: float

    @cached_property
    def sections(self) -> tuple[list[Section], list[Section]]:
        """What is learnt from, and what is validated on."""
        if self.held_out:
            whole = [[Section(f.path, 0, f.size) for f in files] for files in (self.files, self.held_out)]
            return whole[0], whole[1]
        parts = [split(file, self.fraction) for file in self.files]
        return [first for first, _ in parts], [second for _, second in parts]

    def fingerprints(self) -> dict[str, str]:
        """What tells these texts from others."""
        named = {"training": self.files, "validation": self.held_out}
        return {
            name: ", ".join(f"{f.size:,} bytes SHA-256 {f.digest[:16]}" for f in files) or "part of training"
            for name, files in named.items()
        }


def read_texts(files: Sequence[Path], validation: Sequence[Path], fraction: float) -> tuple[Texts, list[str]]:
    """Look at text files once.

    Args:
        files: to learn from.
        validation: to validate on; none takes so large a part at the end of each of the others.
        fraction: that part.

    Returns:
        The texts, and a sentence for every file that is left out.

    Raises:
        TrainingError: if fraction is no part, a file does not exist, or there is no text.
    """
    if not 0 < fraction < 1:
        raise TrainingError(f"validation_fraction is {fraction}; it may be more than 0 and less than 1")
    found, left_out = survey(files)
    held_out: list[TextFile] = []
    if validation:
        held_out, more = survey(validation)
        left_out |= more
    return Texts(found, held_out, fraction), [f"{path} is left out: {reason}" for path, reason in left_out.items()]


def ids_of(texts: Texts, tokenizer: Tokenizer, directory: Path) -> tuple[Ids, Ids]:
    """The ids to learn from and those to validate on, made and written where they are not there."""
    directory.mkdir(exist_ok=True)
    found: list[Ids] = []
    for name, sections in zip(("train", "validation"), texts.sections, strict=True):
        path = directory / f"{name}.bin"
        if not path.with_suffix(".json").is_file():
            write_ids(path, encoded(sections, tokenizer), tokenizer.vocab_size)
        found.append(read_ids(path))
    return found[0], found[1]


def train_on_texts(
    name: str,
    files: Sequence[Path],
    validation: Sequence[Path],
    recipe: RecipeT,
    run: Run,
    *,
    model: Callable[[Texts, RecipeT, Path], tuple[Checkpoint | Baseline, Tokenizer]],
    task: Callable[[Any, Tokenizer, Ids, Ids], Task[Tensor]],
) -> Trained:
    """Train a model of language on text files, from the files to the model in run.out/model.

    Args:
        name: of the task, as on the command line.
        files: UTF-8, each a text. Empty ones and those of another encoding are left out and counted.
        validation: texts to measure on; none takes a part at the end of each file.
        recipe: everything about the model and how it learns.
        run: where, and with what.
        model: makes the model before it learns, and its tokenizer, from the texts, in the run's directory.
        task: of the model, its tokenizer, the ids to learn from and those to validate on.

    Raises:
        TrainingError: if there is no text, the recipe cannot be, or the directory holds another run; see also
            `Trainer.run`.
        ModelError: if the model to be fine-tuned cannot be read.
    """
    texts, left_out = read_texts(files, validation, recipe.validation_fraction)
    with left_as_it_was(run.out):
        run.out.mkdir(parents=True, exist_ok=True)
        agree(run.out / "recipe.json", recipe, texts.fingerprints(), resume=run.resume, free=recipe.may_change())
        torch.manual_seed(recipe.seed)
        checkpoint, tokenizer = model(texts, recipe, run.out)
        set_dropout(checkpoint.model, recipe.dropout)
        ids = ids_of(texts, tokenizer, run.out / "data")
        return train_and_save(name, checkpoint, task(checkpoint.model, tokenizer, *ids), recipe, run, left_out)
