"""Classes of images, sound and video: files in, labels with probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from regard.inputs.source import name_of
from regard.models import ModelError
from regard.models.checkpoint import Checkpoint
from regard.models.family import Problem, Settings
from regard.pipelines.classification import Labelled, labelled
from regard.pipelines.media import MediaReader, Scene, reader_of
from regard.pipelines.packing import Progress
from regard.relations import Relations

if TYPE_CHECKING:
    from regard.pipelines.media import Media

BATCH = 2048
"""Positions that are computed together at most, unless one input has more."""


@dataclass(frozen=True)
class MediaClassification(Labelled):
    """The classes of an image, a sound or a video, and where the answer comes from."""

    source: Media
    _reader: MediaReader = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """What the input is called: its path."""
        return name_of(self.source)

    @property
    def shown(self) -> str:
        """The same, for a person."""
        return self.name

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
        return {"input": self.name, "labels": self.label_data()}

    def report(self) -> dict[str, Any]:
        """Input, answer, relations and pictures as data."""
        answer = f"{self.label} {self.score:.3f}"
        labels = {"labels": self.label_data()[:10]}
        return self._reader.report(self.scene, self.relations, self.name, answer) | labels


class MediaClassificationPipeline:
    """Classifies images, sound or video; see `pipeline`.

    Files are read as the checkpoint's preprocessor_config.json says. What scores mean is what problem_type in its
    config.json says: see `ClassificationPipeline`.

    Args:
        checkpoint: with the head "classify", of a model of images, sound or video.
        device: where to compute; the CPU by default.

    Raises:
        ModelError: if the model has another head, or its preprocessor does not fit it.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device | None = None) -> None:
        if checkpoint.head != "classify":
            raise ModelError(f"{checkpoint.directory} has the head {checkpoint.head!r}: it must be 'classify'")
        self.reader = reader_of(checkpoint, device)
        self.problem: Problem = Settings(checkpoint.settings, str(checkpoint.directory / "config.json")).problem()

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
            labels = labelled(self.logits(batch), self.reader.config.labels, self.problem)
            found += [
                MediaClassification(row, self.problem, source, self.reader)
                for row, source in zip(labels, sources[len(found) : len(found) + len(labels)], strict=True)
            ]
            if progress is not None:
                progress(len(found))
        return found if isinstance(source, list) else found[0]

    @torch.no_grad()
    def logits(self, batch: Tensor) -> Tensor:
        """Tensors as the model takes them, (B, …) → scores of the classes before softmax, (B, labels)."""
        return self.reader.model(batch.to(self.reader.device)).float()

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
