"""Training: the loop, optimisers, data, losses, metrics and checkpoints."""

from regard.training.checkpoint import Checkpoints, Progress, average_weights, load_checkpoint, load_weights
from regard.training.dropout import ByteDropout, use_byte_dropout
from regard.training.loop import DivergedError, Outcome, Task, Trainer, TrainerConfig
from regard.training.loss import linear_cross_entropy
from regard.training.optimiser import OptimiserConfig, build_optimiser, build_schedule

__all__ = [
    "ByteDropout",
    "Checkpoints",
    "DivergedError",
    "OptimiserConfig",
    "Outcome",
    "Progress",
    "Task",
    "Trainer",
    "TrainerConfig",
    "average_weights",
    "build_optimiser",
    "build_schedule",
    "linear_cross_entropy",
    "load_checkpoint",
    "load_weights",
    "use_byte_dropout",
]
