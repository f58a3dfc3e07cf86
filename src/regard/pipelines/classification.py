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
from regard.pipelines.packing import Answer, Progress, Text, TextReader


@dataclass(frozen=True)
class Label:
    """A class, and how far a text is of it."""

    name: str
    score: float  # a probability; of a regression the number itself


@dataclass(frozen=True)
class Classification(Answer):
    """The classes of a text.

    Labels are sorted by probability; those of a regression stand in the order of the model.
    """

    labels: tuple[Label, ...]
    task = "classify"

    @property
    def label(self) -> str:
        """The first label: the likeliest class."""
        return self.labels[0].name

    @property
    def score(self) -> float:
        """Its probability, or the number of a regression."""
        return self.labels[0].score

    def to_dict(self) -> dict[str, Any]:
        """Text and labels as data."""
        return {"text": self.text, "labels": [{"label": a.name, "score": a.score} for a in self.labels]}

    def report(self) -> dict[str, Any]:
        """Text, answer and relations as data."""
        text = self.text if isinstance(self.text, str) else "\n".join(self.text)
        answer = f"{self.label} {self.score:.3f}"
        return self.relations.to_dict() | {"input": text, "answer": answer, "alignment": None}


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
        scores = [
            self._scores(pack.rows[pack.starts]) for pack in self.reader.packs(reads, progress=progress)
        ]  # (n, C) each
        rows = torch.cat(scores).tolist() if scores else []
        found = [Classification(read, self.reader, self._labels(row)) for read, row in zip(reads, rows, strict=True)]
        return found if isinstance(text, list) else found[0]

    @torch.no_grad()
    def _scores(self, rows: Tensor) -> Tensor:
        """First rows (n, d) → what the scores of each class mean, (n, C)."""
        scores = self.reader.model.head(rows).float()
        problem = self.reader.model.config.problem
        if problem == "single_label":
            return scores.softmax(-1)
        return scores.sigmoid() if problem == "multi_label" else scores

    def _labels(self, row: Sequence[float]) -> tuple[Label, ...]:
        config = self.reader.model.config
        labels = [Label(name, score) for name, score in zip(config.labels, row, strict=True)]
        if config.problem != "regression":
            labels.sort(key=lambda label: -label.score)
        return tuple(labels)
