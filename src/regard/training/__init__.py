"""Training: the loop, optimisers, data, losses, metrics and checkpoints."""

from regard.training.average import RunningAverage
from regard.training.checkpoint import Checkpoints, Progress, average_weights, load_checkpoint, load_weights
from regard.training.dropout import ByteDropout, use_byte_dropout
from regard.training.errors import DivergedError, StorageError, TrainingError
from regard.training.loop import Outcome, Task, Trainer, TrainerConfig
from regard.training.loss import linear_cross_entropy
from regard.training.muon import Muon
from regard.training.optimiser import OptimiserConfig, build_optimiser, build_schedule
from regard.training.watching import watch_attention

__all__ = [
    "ByteDropout",
    "Checkpoints",
    "DivergedError",
    "Muon",
    "OptimiserConfig",
    "Outcome",
    "Progress",
    "RunningAverage",
    "StorageError",
    "Task",
    "Trainer",
    "TrainerConfig",
    "TrainingError",
    "average_weights",
    "build_optimiser",
    "build_schedule",
    "linear_cross_entropy",
    "load_checkpoint",
    "load_weights",
    "use_byte_dropout",
    "watch_attention",
]
