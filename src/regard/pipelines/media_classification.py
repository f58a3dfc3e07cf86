"""Classes of images, sound and video: files in, labels with probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from regard.inputs.source import name_of
from regard.models import ModelError
from regard.models.checkpoint import Checkpoint
from regard.models.family import Settings
from regard.pipelines.media import MediaReader, Scene, reader_of
from regard.relations import Relations

if TYPE_CHECKING:
    from regard.pipelines.media import Media

BATCH = 2048
"""Positions that are computed together at most, unless one input has more."""
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Label:
    """A class, and how far an input is of it."""

    name: str
    score: float  # a probability; of a regression the number itself


@dataclass(frozen=True)
class MediaClassification:
    """The classes of an image, a sound or a video, and where the answer comes from.

    Args:
        source: the input.
        labels: the likeliest first; those of a regression in the order of the model.
    """

    source: Media
    labels: tuple[Label, ...]
    _reader: MediaReader = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """What the input is called: its path."""
        return name_of(self.source)

    @property
    def label(self) -> str:
        """The first label: the likeliest class."""
        return self.labels[0].name

    @property
    def score(self) -> float:
        """Its probability, or the number of a regression."""
        return self.labels[0].score

    @cached_property
    def scene(self) -> Scene:
        """What the model was given, its elements and pictures: the input is read once more, on first use."""
        return self._reader.scene(self.source)

    @cached_property
    def relations(self) -> Relations:
        """Which part attended to which: computed on first use, by one pass over this input alone."""
        return self._reader.relate(self.scene, "classify")

    def to_dict(self) -> dict[str, Any]:
        """Input and labels as data."""
        return {"input": self.name, "labels": [{"label": a.name, "score": a.score} for a in self.labels]}

    def report(self) -> dict[str, Any]:
        """Input, answer, relations and pictures as data."""
        answer = f"{self.label} {self.score:.3f}"
        labels = self.to_dict()["labels"][:10]
        return self._reader.report(self.scene, self.relations, self.name, answer) | {"labels": labels}


class MediaClassificationPipeline:
    """Classifies images, sound or video; see `pipeline`.

    Files are read as the checkpoint's preprocessor_config.json says. What scores mean is what problem_type in its
    config.json says: see `ClassificationPipeline`.

    Args:
        checkpoint: with the head "classify", of a model of images, sound or video.
        device: where to compute; the CPU by default.
        top: how many labels an answer has at most; all unless given.

    Raises:
        ModelError: if the model has another head, or its preprocessor does not fit it.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, device: str | torch.device | None = None, top: int | None = None
    ) -> None:
        if checkpoint.head != "classify":
            raise ModelError(f"{checkpoint.directory} has the head {checkpoint.head!r}: it must be 'classify'")
        if top is not None and top < 1:
            raise ValueError(f"top is {top}: it must be at least 1")
        self.reader = reader_of(checkpoint, device)
        self.top = top
        self.problem = Settings(checkpoint.settings, str(checkpoint.directory / "config.json")).problem()

    @overload
    def __call__(self, source: Media) -> MediaClassification: ...
    @overload
    def __call__(self, source: list[Media], *, progress: Progress | None = None) -> list[MediaClassification]: ...
    def __call__(
        self, source: Media | list[Media], *, progress: Progress | None = None
    ) -> MediaClassification | list[MediaClassification]:
        """Classify an input, or several.

        Args:
            source: a file or its bytes; for images also a Pillow image, an array or a tensor, and for sound
                (samples, rate), as `regard.inputs` takes them; or a list of such.
            progress: called with the number of inputs done, after every batch.

        Raises:
            InputError: if one cannot be read; the message names it.
            TypeError: if one is nothing that the model reads.
        """
        sources = source if isinstance(source, list) else [source]
        found: list[MediaClassification] = []
        for batch in self._batches(sources):
            found += [
                MediaClassification(one, self._labels(row), self.reader)
                for one, row in zip(sources[len(found) :], self.scores(batch).tolist(), strict=False)
            ]
            if progress is not None:
                progress(len(found))
        return found if isinstance(source, list) else found[0]

    @torch.no_grad()
    def logits(self, batch: Tensor) -> Tensor:
        """Tensors as the model takes them, (B, …) → scores of the classes before softmax, (B, labels)."""
        return self.reader.model(batch.to(self.reader.device)).float()

    def scores(self, batch: Tensor) -> Tensor:
        """The same → what the scores mean: probabilities, or the numbers of a regression; (B, labels)."""
        logits = self.logits(batch)
        if self.problem == "single_label":
            return logits.softmax(-1)
        return logits.sigmoid() if self.problem == "multi_label" else logits

    def _batches(self, sources: Sequence[Media]) -> Iterator[Tensor]:
        """Inputs of one size after each other, as many at a time as are computed together, (B, …)."""
        held: list[Tensor] = []
        for source in sources:
            tensor = self.reader.tensor(source)
            positions = prod(self.reader.config.grid_of(tuple(tensor.shape[1:])))
            if held and (tensor.shape != held[0].shape or (len(held) + 1) * positions > BATCH):
                yield torch.stack(held)
                held = []
            held.append(tensor)
        if held:
            yield torch.stack(held)

    def _labels(self, row: Sequence[float]) -> tuple[Label, ...]:
        labels = [Label(name, score) for name, score in zip(self.reader.config.labels, row, strict=True)]
        if self.problem != "regression":
            labels.sort(key=lambda label: -label.score)
        return tuple(labels[: self.top])
