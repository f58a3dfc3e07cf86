"""A masked language model fills the gaps of texts like those it saw; only what was masked is guessed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regard.models import Checkpoint, load
from regard.pipelines import pipeline
from regard.training.run import Run
from regard.training.tasks.masked_language_model import (
    MaskedLanguageModelRecipe,
    MaskedLanguageModelTask,
    train_masked_language_model,
)
from tests.training.recipes import going_on

SMALL = MaskedLanguageModelRecipe(
    d_model=32, layers=1, heads=2, feed_forward=32, vocab_size=100, context=16, batch_size=8, masked=0.3,
    steps=1200, validate_every=400, checkpoint_every=400, watch_every=0, peak_learning_rate=0.003,
)  # fmt: skip
TEXT = "the cat sat on the mat and the dog lay by the door\n" * 60


@pytest.mark.slow
def test_learns_and_is_read_by_others(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    trained = train_masked_language_model([tmp_path / "text.txt"], SMALL, Run(tmp_path / "run", progress=False))
    assert trained.scores["accuracy"] > 0.7
    filling = pipeline(trained.directory, "fill", top=1)("the dog lay by the [MASK] the cat sat on the mat")
    assert filling.gaps[0][0].piece == "door"
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(trained.directory).eval()
    found = load(trained.directory)
    assert isinstance(found, Checkpoint) and found.head == "fill"
    ids = torch.tensor(found.tokenizer.encode_batch(["the cat [MASK]"]))
    with torch.no_grad():
        torch.testing.assert_close(found.model(ids), theirs(ids).logits, atol=1e-3, rtol=1e-3)
    recipe = going_on(SMALL, trained.directory, steps=2, warmup=1, peak_learning_rate=1e-5)
    again = train_masked_language_model([tmp_path / "text.txt"], recipe, Run(tmp_path / "more", progress=False))
    assert again.scores["loss"] == pytest.approx(trained.scores["loss"], rel=0.2)
    _check_masking(found, ids)


def test_targets_are_smoothed_in_training_alone(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    losses: list[list[float]] = []
    for smoothing in (0.0, 0.5):
        recipe = replace(SMALL, steps=2, validate_every=1, label_smoothing=smoothing, peak_learning_rate=1e-9)
        out = tmp_path / str(smoothing)
        train_masked_language_model([tmp_path / "text.txt"], recipe, Run(out, progress=False))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
        losses[-1].append(next(line["validation"]["loss"] for line in lines if "validation" in line))
    assert losses[0][0] != losses[1][0] and losses[0][2] == pytest.approx(losses[1][2], rel=1e-6)


def _check_masking(found: Checkpoint, ids: torch.Tensor) -> None:
    """Of the pieces in a batch, three tenths are guessed, and eight tenths of these are masked."""
    seen: list[torch.Tensor] = []

    class Model(torch.nn.Module):
        config = found.model.config

        def hidden(self, ids: torch.Tensor) -> torch.Tensor:
            seen.append(ids)
            return torch.zeros(*ids.shape, 4)

        def head(self, rows: torch.Tensor) -> torch.Tensor:
            return rows @ torch.zeros(4, self.config.vocab_size)  # type: ignore[union-attr]

    recipe = replace(SMALL, context=102, batch_size=40)
    text = torch.randint(5, found.tokenizer.vocab_size, (5000,)).to(torch.uint16).numpy()
    task = MaskedLanguageModelTask(Model(), found.tokenizer, text, text, recipe)
    batch = task.batches(0)[0]
    task.step(batch)
    (given,) = seen
    assert given.shape == (40, 102)
    assert (given[:, 0] == found.tokenizer.cls).all() and (given[:, -1] == found.tokenizer.sep).all()
    changed = given[:, 1:-1] != batch[:, :-1]
    masked = (given[:, 1:-1] == found.tokenizer.mask).double().mean()
    assert masked == pytest.approx(0.3 * 0.8, abs=0.02)
    assert changed.double().mean() == pytest.approx(0.3 * 0.9, abs=0.02)


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(ValueError, match="masked is 0; it may be more than 0"):
        replace(SMALL, masked=0)
    for recipe, words in (
        (replace(SMALL, context=3), "context is 3; it may be 4 or more"),
        (going_on(SMALL, "translate-en-de"), "it may be one that fills gaps"),
        (replace(SMALL, context=5000), "a context of 4998 needs"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            train_masked_language_model([tmp_path / "text.txt"], recipe, Run(tmp_path / words[:9], progress=False))
        assert "\n" not in str(error.value)
