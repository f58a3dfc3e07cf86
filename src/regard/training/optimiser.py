"""Adam and AdamW with the two learning-rate schedules that Transformers are trained with."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Callable[[int], float]
"""The learning rate of a step; the first step is 1."""


@dataclass(frozen=True)
class OptimiserConfig:
    """How parameters are updated."""

    peak_learning_rate: float = 0.005  # reached at the end of the warm-up
    warmup: int = 2000  # steps of linear rise from zero
    schedule: Literal["inverse-sqrt", "cosine"] = "inverse-sqrt"
    final_fraction: float = 0.0  # cosine only: the last step's rate as a fraction of the peak
    betas: tuple[float, float] = (0.9, 0.98)  # decay of Adam's two moments; 0.98 as in arXiv 1706.03762
    epsilon: float = 1e-9  # added to the root of the second moment
    weight_decay: float = 0.0  # decoupled (AdamW), on matrices only; 0 is Adam


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW over the parameters of a model that require gradients, in torch's fused kernel.

    Weight decay applies to tensors of two or more dimensions; norms and biases are never decayed.

    Args:
        model: the module to be trained.
        config: rates, moments and decay.

    Raises:
        ValueError: if no parameter of the model requires gradients.

    Adam: arXiv 1412.6980. AdamW: arXiv 1711.05101.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model has no parameter that requires gradients; at least one must")
    matrices: list[Tensor] = [p for p in parameters if p.dim() >= 2]
    vectors: list[Tensor] = [p for p in parameters if p.dim() < 2]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((matrices, config.weight_decay), (vectors, 0.0))
        if group
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)


def build_schedule(config: OptimiserConfig, steps: int) -> Schedule:
    """The learning rate as a function of the step.

    Args:
        config: names the schedule and its peak.
        steps: length of the whole run; only the cosine depends on it.

    Raises:
        ValueError: if the schedule is unknown, the warm-up is less than one step, or a cosine has no steps left
            after its warm-up.
    """
    if config.warmup < 1:
        raise ValueError(f"warmup is {config.warmup} steps; it may be 1 or more")
    if config.schedule == "inverse-sqrt":
        return lambda step: inverse_square_root(step, config.peak_learning_rate, config.warmup)
    if config.schedule == "cosine":
        if steps <= config.warmup:
            raise ValueError(f"steps is {steps} with a warm-up of {config.warmup}; a cosine needs more steps than that")
        return lambda step: cosine(step, config.peak_learning_rate, config.warmup, steps, config.final_fraction)
    raise ValueError(f"schedule is {config.schedule!r}; it may be 'inverse-sqrt' or 'cosine'")


def inverse_square_root(step: int, peak: float, warmup: int) -> float:
    """Linear rise to `peak` at step `warmup`, then peak · sqrt(warmup / step); arXiv 1706.03762, section 5.3.

    >>> [round(inverse_square_root(step, 1.0, 4), 3) for step in (1, 4, 16)]
    [0.25, 1.0, 0.5]
    """
    return peak * min(step / warmup, math.sqrt(warmup / step))


def cosine(step: int, peak: float, warmup: int, steps: int, final_fraction: float = 0.0) -> float:
    """Linear rise to `peak` at step `warmup`, then half a cosine down to peak · final_fraction at the last step.

    >>> [round(cosine(step, 1.0, 10, 110), 3) for step in (5, 10, 60, 110)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / (steps - warmup))
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))
