"""Classes: texts or pairs of them in, labels with probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from regard.inputs.tokenizer import Tokenizer
from regard.models import ModelError
from regard.models.checkpoint import Checkpoint
from regard.models.family import Problem
from regard.pipelines.packing import Answer, Progress, Text, TextReader


@dataclass(frozen=True)
class Label:
    """A class, and how far an input is of it."""

    name: str
    score: float  # a probability; of a regression the number itself


@dataclass(frozen=True)
class Labelled:
    """What every answer that is a class can be asked.

    Labels are sorted by probability; those of a regression stand in the order of the model.
    """

    labels: tuple[Label, ...]
    problem: Problem

    @property
    def label(self) -> str:
        """The first label: the likeliest class."""
        return self.labels[0].name

    @property
    def score(self) -> float:
        """Its probability, or the number of a regression."""
        return self.labels[0].score

    def chosen(self, top: int | None = None) -> tuple[Label, ...]:
        """The labels that a person is told.

        Args:
            top: so many; unless given all numbers of a regression, of classes that may come together those that are
                likelier than not, and else the likeliest.
        """
        if top is None and self.problem == "multi_label":
            return tuple(label for label in self.labels if label.score > 0.5) or self.labels[:1]
        return self.labels if self.problem == "regression" and top is None else self.labels[: top or 1]

    def label_data(self) -> list[dict[str, Any]]:
        """The labels as data."""
        return [{"label": label.name, "score": label.score} for label in self.labels]


def probabilities(logits: Tensor, problem: Problem) -> Tensor:
    """Scores as a model gives them, (..., C), as probabilities of classes; those of a regression stay numbers."""
    scores = logits.float()
    if problem == "regression":
        return scores
    return scores.softmax(-1) if problem == "single_label" else scores.sigmoid()


def labelled(logits: Tensor, names: Sequence[str], problem: Problem) -> list[tuple[Label, ...]]:
    """The labels of each row of scores as a model gives them, (B, C)."""
    scores = probabilities(logits, problem)
    rows = [[Label(name, score) for name, score in zip(names, row, strict=True)] for row in scores.tolist()]
    return [tuple(row if problem == "regression" else sorted(row, key=lambda label: -label.score)) for row in rows]


@dataclass(frozen=True)
class Classification(Answer, Labelled):
    """The classes of a text."""

    task = "classify"

    @property
    def shown(self) -> str:
        """The text for a person, with a tab between the two of a pair."""
        return self.text if isinstance(self.text, str) else "\t".join(self.text)

    def to_dict(self) -> dict[str, Any]:
        """Text and labels as data."""
        return {"text": self.text, "labels": self.label_data()}

    def report(self) -> dict[str, Any]:
        """Text, answer and relations as data."""
        text = self.text if isinstance(self.text, str) else "\n".join(self.text)
        answer = f"{self.label} {self.score:.3f}"
        shown = {"input": text, "answer": answer, "labels": self.label_data()[:10], "alignment": None}
        return self.relations.to_dict() | shown


class ClassificationPipeline:
    """Classifies texts; see `pipeline`.

    What scores mean is what the checkpoint's problem_type says: probabilities of classes of which a text has one
    (softmax), of classes of which it may have several (a sigmoid each), or numbers. A single class without a
    problem_type gets a sigmoid.

    Args:
        checkpoint: with the head "classify".
        tokenizer: the model's.
        device: where to compute; the CPU by default.
        truncate: whether a text that has more pieces than the model has positions is cut off instead of an error.

    Raises:
        ModelError: if the model has another head, or reads no text.
        TokenizerError: if the tokenizer does not fit the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device | None = None,
        truncate: bool = False,
    ) -> None:
        if checkpoint.head != "classify":
            raise ModelError(f"{checkpoint.directory} has the head {checkpoint.head!r}: it must be 'classify'")
        self.reader = TextReader(checkpoint, tokenizer, device=device, truncate=truncate)

    @overload
    def __call__(self, text: Text) -> Classification: ...
    @overload
    def __call__(
        self, text: list[Text] | list[str], *, names: Sequence[str] | None = None, progress: Progress | None = None
    ) -> list[Classification]: ...
    def __call__(
        self,
        text: Text | list[Text] | list[str],
        *,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Classification | list[Classification]:
        """Classify a text, or several.

        Args:
            text: a string, a pair of strings as a tuple, or a list of such.
            names: what messages call the texts, such as "line 3".
            progress: called with the number of texts done.

        Raises:
            TextTooLong: if a text has more pieces than the model has positions; nothing is computed then.
            RequestError: if a text is empty.
            TypeError: if one is no string.
        """
        reads = self.reader.read(text if isinstance(text, list) else [text], names)
        config = self.reader.model.config
        labels: list[tuple[Label, ...]] = []
        for pack in self.reader.packs(reads, progress=progress):
            labels += labelled(self._logits(pack.rows[pack.starts]), config.labels, config.problem)
        found = [
            Classification(row, config.problem, read, self.reader) for read, row in zip(reads, labels, strict=True)
        ]
        return found if isinstance(text, list) else found[0]

    @torch.no_grad()
    def _logits(self, rows: Tensor) -> Tensor:
        """First rows (n, d) → scores of each class before softmax, (n, C)."""
        return self.reader.model.head(rows)
