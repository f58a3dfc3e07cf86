"""Adam, AdamW and Muon, with the learning-rate schedules that Transformers are trained with."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from regard.training.errors import TrainingError
from regard.training.layer_decay import divided, shares_of_rate
from regard.training.muon import Muon

ScheduleName = Literal["inverse-sqrt", "cosine", "linear", "wsd", "constant"]
Schedule = Callable[[int], float]
"""The learning rate of a step; the first step is 1."""


@dataclass(frozen=True)
class OptimiserConfig:
    """How parameters are updated."""

    optimiser: Literal["adamw", "muon"] = "adamw"
    peak_learning_rate: float = 0.005  # reached at the end of the warm-up
    warmup: int = 2000  # steps of linear rise from zero
    schedule: ScheduleName = "inverse-sqrt"  # what follows the warm-up; wsd: warm-up, stable, decay
    final_fraction: float = 0.0  # cosine, linear and wsd: the last step's rate as a fraction of the peak
    decay_fraction: float = 0.2  # wsd only: the part of all steps in which the rate falls
    momentum: float = 0.95  # Muon's
    betas: tuple[float, float] = (0.9, 0.98)  # decay of Adam's two moments; 0.98 as in arXiv 1706.03762
    epsilon: float = 1e-9  # added to the root of the second moment
    weight_decay: float = 0.0  # decoupled (AdamW), on matrices only; 0 is Adam
    layer_decay: float = 1.0  # a layer's rate as a part of that of the layer above it


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon, over the parameters of a model that require gradients; see `regard.training.muon`.

    Weight decay applies to tensors of two or more dimensions; norms and biases are never decayed. A group whose "share"
    is there learns at that part of the rate; see `regard.training.layer_decay`.

    Args:
        model: the module to be trained.
        config: rates, moments and decay.

    Raises:
        TrainingError: if no parameter of the model requires gradients, or Muon, or a layer_decay other than 1, finds no
            Transformer block.

    Adam: arXiv 1412.6980. AdamW: arXiv 1711.05101.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError("model has no parameter that requires gradients; at least one must")
    shares = {} if config.layer_decay == 1 else shares_of_rate(model, config.layer_decay)
    if config.optimiser == "muon":
        return Muon(
            model,
            momentum=config.momentum,
            betas=config.betas,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
            shares=shares,
        )
    if config.optimiser != "adamw":
        raise TrainingError(f"optimiser is {config.optimiser!r}; it may be 'adamw' or 'muon'")
    matrices: list[Tensor] = [p for p in parameters if p.dim() >= 2]
    vectors: list[Tensor] = [p for p in parameters if p.dim() < 2]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((matrices, config.weight_decay), (vectors, 0.0))
        if group
    ]
    return torch.optim.AdamW(divided(groups, shares), lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)


def build_schedule(config: OptimiserConfig, steps: int) -> Schedule:
    """The learning rate as a function of the step.

    Args:
        config: names the schedule and its peak.
        steps: length of the whole run; cosine, linear and wsd depend on it.

    Raises:
        TrainingError: if the schedule is unknown, the warm-up is less than one step, decay_fraction is no part, or
            there are no steps left after the warm-up for a schedule that falls until the last one.
    """
    peak, warmup, final = config.peak_learning_rate, config.warmup, config.final_fraction
    if warmup < 1:
        raise TrainingError(f"warmup is {warmup} steps; it may be 1 or more")
    if not 0 < config.decay_fraction <= 1:
        raise TrainingError(f"decay_fraction is {config.decay_fraction}; it may be more than 0 and at most 1")
    if config.schedule == "inverse-sqrt":
        return lambda step: inverse_square_root(step, peak, warmup)
    if config.schedule == "constant":
        return lambda step: peak * min(1.0, step / warmup)
    if config.schedule not in ("cosine", "linear", "wsd"):
        known = ", ".join(repr(name) for name in get_args(ScheduleName))
        raise TrainingError(f"schedule is {config.schedule!r}; it may be one of {known}")
    if steps <= warmup and steps > 1:
        raise TrainingError(
            f"steps is {steps} with a warm-up of {warmup}; the {config.schedule} schedule needs more steps than that"
        )
    if config.schedule == "cosine":
        return lambda step: cosine(step, peak, warmup, steps, final)
    start = warmup if config.schedule == "linear" else max(warmup, round(steps * (1 - config.decay_fraction)))
    return lambda step: trapezoid(step, peak, warmup, start, steps, final)


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
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))


def trapezoid(step: int, peak: float, warmup: int, start: int, steps: int, final_fraction: float = 0.0) -> float:
    """Linear rise to `peak` at step `warmup`, level to step `start`, then a line down to peak · final_fraction.

    With start = warmup it is the linear schedule, with a later start warm-up, stable, decay (arXiv 2404.06395).

    >>> [round(trapezoid(step, 1.0, 10, 60, 110), 3) for step in (5, 10, 60, 85, 110)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return peak * step / warmup
    fallen = min(1.0, max(0, step - start) / max(1, steps - start))
    return peak * (1 - (1 - final_fraction) * fallen)
