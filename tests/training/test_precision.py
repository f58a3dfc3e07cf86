"""Every task trains in bfloat16: nearly as in float32, the same every time, and validated in float32."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.training import TrainingError
from regard.training.run import Run
from regard.training.tasks.classify_audio import train_audio_classifier
from regard.training.tasks.classify_image import train_image_classifier
from regard.training.tasks.classify_text import train_text_classifier
from regard.training.tasks.language_model import train_language_model
from regard.training.tasks.masked_language_model import train_masked_language_model
from regard.training.workers import Gradients, Shard
from tests.training import test_classify_media as media
from tests.training import test_classify_text as texts
from tests.training import test_language_model as language
from tests.training import test_masked_language_model as masked
from tests.training import test_translate as translation
from tests.training.lines import Lines
from tests.training.test_media_tasks import stripes, tones

Train = Callable[[Path, dict[str, Any]], object]
FEW = {"steps": 4, "validate_every": 4, "watch_every": 0}


def _text(out: Path) -> Path:
    path = out.parent / "text.txt"
    path.write_text(masked.TEXT)
    return path


def _table(out: Path) -> Path:
    path = out.parent / "films.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts.rows()))
    return path


TASKS: dict[str, Train] = {
    "language-model": lambda out, given: train_language_model(
        [_text(out)], replace(language.SMALL, **FEW, **given), Run(out, progress=False)
    ),
    "language-model, gru": lambda out, given: train_language_model(
        [_text(out)],
        replace(language.SMALL, family="gru", heads=None, feed_forward=None, **FEW, **given),
        Run(out, progress=False),
    ),
    "masked-language-model": lambda out, given: train_masked_language_model(
        [_text(out)], replace(masked.SMALL, **FEW, **given), Run(out, progress=False)
    ),
    "classify-text": lambda out, given: train_text_classifier(
        _table(out), replace(texts.SMALL, **FEW, **given), Run(out, progress=False)
    ),
    "classify-text, lstm": lambda out, given: train_text_classifier(
        _table(out),
        replace(texts.SMALL, family="lstm", heads=None, feed_forward=None, **FEW, **given),
        Run(out, progress=False),
    ),
    "classify-image": lambda out, given: train_image_classifier(
        stripes(), replace(media.IMAGES, image_size=16, patch=4, **FEW, **given), Run(out, progress=False)
    ),
    "classify-audio": lambda out, given: train_audio_classifier(
        tones(), replace(media.SOUNDS, seconds=0.25, **FEW, **given), Run(out, progress=False)
    ),
    "translate": lambda out, given: translation.train(
        out, replace(translation.RECIPE, steps=4, validate_every=4, r_drop=1.0, **given)
    ),
}


def losses(out: Path) -> list[float]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("task", TASKS)
def test_bfloat16_is_nearly_float32_and_repeats(task: str, tmp_path: Path) -> None:
    train = TASKS[task]
    train(tmp_path / "whole", {})
    for name in ("first", "second"):
        train(tmp_path / name, {"precision": "bfloat16"})
    whole, first, second = (losses(tmp_path / name) for name in ("whole", "first", "second"))
    assert first == second != whole
    assert first[0] == pytest.approx(whole[0], rel=0.02) and first[3] == pytest.approx(whole[3], rel=0.05)


def test_gradients_are_float32_and_close() -> None:
    found: list[torch.Tensor] = []
    for precision in ("float32", "bfloat16"):
        task = Lines()
        task.model.eval()  # no dropout
        with Gradients(task.model, task, precision=precision) as gradients:
            found.append(gradients.compute([Shard(0, 6, 1)])[0].clone())
    whole, half = found
    assert half.dtype == torch.float32 and not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05 * float(whole.abs().max()))


def test_parameters_of_another_kind_are_refused() -> None:
    task = Lines()
    task.model.to(torch.float64)
    with pytest.raises(TrainingError, match=r"precision is 'bfloat16' with parameters of torch.float64"):
        Gradients(task.model, task, precision="bfloat16")
