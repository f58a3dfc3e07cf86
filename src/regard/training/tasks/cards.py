"""How every task but translation ends: the model is trained and saved, and beside it is written what it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from regard.files import write_atomically
from regard.models import Checkpoint
from regard.training.baselines.saved import Baseline
from regard.training.checkpoint import Checkpoints, load_weights
from regard.training.errors import DivergedError
from regard.training.loop import Outcome, Task
from regard.training.run import Recipe, Run, Trained, learn

_CARD = """\
# {name}

A model for the task {task}, trained by `regard train {task}`.

- **Model** {family}, {parameters:,} parameters{source}.
- **Training** {step:,} steps{early}, {tokens:,} pieces or examples, {minutes:.1f} CPU minutes.
- **Scores** on the validation data, of the weights that are kept: {scores}.
- **Recipe** `{recipe}`
"""


def train_and_save(
    name: str,
    checkpoint: Checkpoint | Baseline,
    task: Task[Any],
    recipe: Recipe,
    run: Run,
    skipped: Sequence[str],
) -> Trained:
    """Train a model on a task, and save it, with its card, in run.out/model.

    Args:
        name: of the task, as on the command line.
        checkpoint: the model.
        task: that it is trained on.
        recipe: how.
        run: where, and with what.
        skipped: what was left out of the data, a sentence each.

    Raises:
        TrainingError: as `Trainer.run`; where it diverged, the model of its best checkpoint is saved.
    """
    if run.tell is not None:
        for sentence in skipped:
            run.tell(sentence)
    try:
        outcome, scores = learn(checkpoint, task, recipe, run)
    except DivergedError as error:
        kept = Checkpoints(run.out / "checkpoints")
        good = kept.best or kept.latest
        if good is None:
            raise
        load_weights(good, checkpoint.model)
        place = checkpoint.save(run.out / "model", dtype=torch.float32)
        raise DivergedError(
            f"{error}; {place} is the model of {good.stem}, which another run may go on from"
        ) from error
    place = checkpoint.save(run.out / "model", dtype=torch.float32)  # as it was measured
    write_card(place, name, checkpoint, recipe, outcome, scores)
    return Trained(checkpoint.model, place, outcome, scores, skipped)


def write_card(
    place: Path,
    task: str,
    checkpoint: Checkpoint | Baseline,
    recipe: Recipe,
    outcome: Outcome,
    scores: Mapping[str, float],
) -> None:
    """Write the README.md of a model that was trained.

    Args:
        place: the model's directory.
        task: as on the command line.
        checkpoint: the model.
        recipe: what it was trained with.
        outcome: how the run ended.
        scores: of the weights that are kept.
    """
    settings = asdict(recipe)
    progress = outcome.progress
    card = _CARD.format(
        name=place.resolve().parent.name,
        task=task,
        family=checkpoint.family.name,
        parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        source=f", fine-tuned from {settings['model']}" if settings.get("model") else "",
        step=progress.step,
        early="" if outcome.finished and not outcome.early else " (ended before the last)",
        tokens=progress.tokens,
        minutes=progress.cpu_seconds / 60,
        scores=", ".join(f"{name} {value:.4f}" for name, value in scores.items()),
        recipe=json.dumps(settings),
    )
    write_atomically(place / "README.md", card.encode())
