"""What is written beside a model for those who find it: its README.md."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from regard.files import write_atomically
from regard.models import Checkpoint
from regard.training.baselines.saved import Baseline
from regard.training.loop import Outcome
from regard.training.run import Recipe

_CARD = """\
# {name}

A model for the task {task}, trained by `regard train {task}`.

- **Model** {family}, {parameters:,} parameters{source}.
- **Training** {step:,} steps{early}, {tokens:,} pieces or examples, {minutes:.1f} CPU minutes.
- **Scores** on the validation data, of the weights that are kept: {scores}.
- **Recipe** `{recipe}`
"""


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
