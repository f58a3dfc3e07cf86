"""A running average of the parameters over the steps of a run, which often is better than its last step."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regard.training.errors import TrainingError


class RunningAverage:
    """The exponential moving average of what a model learns (arXiv 1806.05594 compares kinds).

    Averaged are the parameters that require gradients, and the floating-point buffers that are saved with a model, such
    as a batch norm's mean and variance, which belong to them.

    After step t it is d · itself + (1 − d) · the model, with d = min(decay, (1 + t) / (10 + t)), so that the
    random weights of the beginning are soon forgotten.

    Args:
        model: the average begins as it is.
        decay: above 0 and below 1; 0.999 remembers about a thousand steps.

    Raises:
        TrainingError: if decay is outside that range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise TrainingError(f"ema is {decay}; it may be more than 0 and less than 1, or None")
        self.decay = decay
        saved = model.state_dict()
        self._tensors: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._tensors |= {n: b for n, b in model.named_buffers() if n in saved and b.is_floating_point()}
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._tensors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the model as it is after a step; the first is 1."""
        rest = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self._tensors.items():
            self.tensors[name].lerp_(tensor, rest)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """The model is the average meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from an average that was saved.

        Raises:
            LookupError: if it lacks one of them.
        """
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._tensors.items():
            kept = tensor.detach().clone()
            tensor.copy_(self.tensors[name])  # in place: other processes share the parameters
            self.tensors[name].copy_(kept)
