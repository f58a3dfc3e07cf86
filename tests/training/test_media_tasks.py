"""Classifiers of images and sound from data in memory: any model learns, and a run that stops goes on the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regard.inputs.features import ASTSettings, ast_features
from regard.inputs.image import ImageSettings, image_tensor
from regard.training import Trainer, TrainerConfig, TrainingError, build_optimiser, build_schedule
from regard.training.run import common
from regard.training.stored import Clips
from regard.training.tasks.classification import Batches, ClassificationRecipe, ClassificationTask, Labelled
from regard.training.tasks.classify_audio import ClassifyAudioRecipe, ClassifyAudioTask
from regard.training.tasks.classify_image import ClassifyImageRecipe, ClassifyImageTask
from tests.training.lines import killed_at_random

IMAGES = ClassifyImageRecipe(
    steps=30, batch_size=12, peak_learning_rate=0.01, validate_every=10, checkpoint_every=7, watch_every=0,
    magnitude=0.2,
)  # fmt: skip
SOUNDS = ClassifyAudioRecipe(
    steps=30, batch_size=12, peak_learning_rate=0.01, validate_every=10, checkpoint_every=7, watch_every=0
)  # fmt: skip
SPECTROGRAM = ASTSettings(mels=16, frames=20)


def stripes(count: int = 60, size: int = 16, seed: int = 0) -> Labelled[Any]:
    """Noisy images with stripes that lie, stand or are missing."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = draw.integers(0, 90, (count, 3, size, size))
    for image, label in zip(pixels, labels, strict=True):
        if label < 2:
            image.swapaxes(1, 1 + label)[:, draw.integers(2) :: 2] += 150
    inputs: Any = pixels.astype(np.uint8)
    return Labelled(inputs, labels, ("lie", "stand", "none"))


def tones(count: int = 48, seed: int = 0) -> Labelled[Any]:
    """Recordings of different lengths: a low tone, a high one, or noise."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    clips = []
    for label in labels:
        times = np.arange(draw.integers(1500, 3600)) / 16_000
        tone = np.sin(2 * np.pi * (300, 3000)[label] * times) if label < 2 else draw.normal(0, 0.4, len(times))
        clips.append((0.3 * tone).astype(np.float32))
    return Labelled(Clips.of(clips), labels, ("low", "high", "noise"))


def zeros(count: int) -> Any:
    return np.zeros((count, 1), int)


def convolutions(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 3),
    )  # fmt: skip


def trainer(task: ClassificationTask[Any], recipe: ClassificationRecipe, out: Path) -> Trainer[Any]:
    settings = recipe.optimiser_config()
    return Trainer(
        task.model,
        task,
        build_optimiser(task.model, settings),
        build_schedule(settings, recipe.steps),
        out=out,
        config=TrainerConfig(progress=False, **common(TrainerConfig, recipe)),
    )


def image_task(recipe: ClassifyImageRecipe = IMAGES) -> ClassifyImageTask:
    torch.manual_seed(0)
    return ClassifyImageTask(convolutions(3), *stripes().divided(0.2, 1), recipe)


def audio_task(recipe: ClassifyAudioRecipe = SOUNDS) -> ClassifyAudioTask:
    torch.manual_seed(0)
    return ClassifyAudioTask(convolutions(1), *tones().divided(0.2, 1), recipe, settings=SPECTROGRAM)


def test_any_model_learns_images(tmp_path: Path) -> None:
    trained = trainer(image_task(), IMAGES, tmp_path).run()
    assert trained.finished and trained.progress.scores["accuracy"] > 0.9


def test_any_model_learns_sound(tmp_path: Path) -> None:
    trained = trainer(audio_task(), SOUNDS, tmp_path).run()
    assert trained.finished and trained.progress.scores["accuracy"] > 0.9


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_killed_at_random_moments_the_curve_is_the_same(kind: str, tmp_path: Path) -> None:
    def again(out: Path) -> None:
        if kind == "image":
            recipe = replace(IMAGES, mixup=0.5, cutmix=0.5, erase=0.5)
            trainer(image_task(recipe), recipe, out).run(resume=True)
        else:
            trainer(audio_task(), SOUNDS, out).run(resume=True)

    again(tmp_path / "whole")
    killed = tmp_path / "killed"
    assert killed_at_random(lambda: again(killed), killed / "metrics.jsonl", kills=2, most=18, seed=1) > 0
    assert curve(killed) == curve(tmp_path / "whole") and len(curve(killed)) == 33


def curve(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.endswith("_seconds")} for record in records]


def test_what_is_validated_is_what_a_pipeline_makes_of_a_file() -> None:
    settings = ImageSettings(size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    data = stripes(6)
    for given in (settings, replace(settings, rescale=1 / 127.5), replace(settings, rescale=None)):
        task = ClassifyImageTask(nn.Identity(), data, data, IMAGES, settings=given)
        ready, _ = task.ready(data.inputs[np.arange(6)], torch.eye(6), learning=False)
        expected = torch.stack([image_tensor(image.transpose(1, 2, 0), given) for image in data.inputs[np.arange(6)]])
        torch.testing.assert_close(ready, expected)
    sounds = tones(6)
    task = ClassifyAudioTask(nn.Identity(), sounds, sounds, SOUNDS, settings=SPECTROGRAM)
    clips = sounds.inputs[np.arange(6)]
    ready, _ = task.ready(clips, torch.eye(6), learning=False)
    expected = torch.stack([ast_features(torch.from_numpy(clip), SPECTROGRAM).T[None] for clip in clips])
    assert torch.equal(ready, expected)


def test_inputs_are_changed_when_learnt_from_alone() -> None:
    task = image_task()
    batch = task.batches(0)[0]
    losses = [task.step(batch).item() for _ in range(2)]
    assert losses[0] != losses[1]
    task.model.eval()
    assert task.step(batch).item() == task.step(batch).item()
    plain = ClassifyImageTask(convolutions(3), stripes(), stripes(), IMAGES, augment=[])
    assert plain.step(batch).item() == plain.step(batch).item()


def test_an_epoch_has_every_example_once_in_batches_of_like_size() -> None:
    data = Labelled(zeros(50) + np.arange(50)[:, None], np.zeros(50, int), ("a",))
    order = np.random.default_rng(0).permutation(50)
    batches = [*Batches(data, order, 16)]
    assert [len(b.labels) for b in batches] == [13, 13, 12, 12]
    assert np.concatenate([b.inputs for b in batches]).ravel().tolist() == order.tolist()


def test_division_takes_a_part_of_every_class() -> None:
    data = stripes(60)
    train, held_out = data.divided(0.2, 3)
    assert len(train) == 48 and np.bincount(held_out.labels).tolist() == [4, 4, 4]
    inputs = np.concatenate([part.inputs[np.arange(len(part))] for part in (train, held_out)])
    assert sorted(image.tobytes() for image in inputs) == sorted(
        image.tobytes() for image in data.inputs[np.arange(60)]
    )
    same, _ = data.divided(0.2, 3)
    other, _ = data.divided(0.2, 4)
    assert np.array_equal(train.inputs[np.arange(48)], same.inputs[np.arange(48)])
    assert not np.array_equal(train.inputs[np.arange(48)], other.inputs[np.arange(48)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Labelled(zeros(3), np.zeros(2, int), ("a",)), "3 inputs and 2 labels"),
        (lambda: Labelled(zeros(0), np.zeros(0, int), ("a",)), "0 inputs and 0 labels"),
        (lambda: Labelled(zeros(2), np.array([0, 2]), ("a", "b")), "labels are from 0 to 2"),
        (lambda: stripes(2).divided(0.1, 0), "one example alone of the class 'lie'"),
        (lambda: ClassifyImageRecipe(batch_size=0), "batch_size is 0"),
        (lambda: ClassifyImageRecipe(validation_fraction=1.0), "validation_fraction is 1.0"),
        (lambda: ClassifyAudioRecipe(mixup=-1.0), "mixup is -1.0"),
        (lambda: image_task(replace(IMAGES, erase=2.0)), "erase is 2.0; it may be from 0 to 1"),
        (lambda: replace(SOUNDS, speed=0.5), "speed is 0.5; it may be from 1 to 4"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        make()
