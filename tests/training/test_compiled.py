"""Compiled blocks give the same numbers, and a run that was stopped the same bits; elsewhere the model is as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.training import TrainingError
from regard.training.compiled import CompiledBlocks
from regard.training.run import Run
from regard.training.tasks.classify_image import ClassifyImageTask, train_image_classifier
from regard.training.tasks.translation_recipe import TranslationRecipe
from regard.training.workers import Gradients, Shard
from tests.training import test_translate as translation
from tests.training.lines import Lines
from tests.training.test_classify_media import IMAGES
from tests.training.test_media_tasks import curve, stripes

RECIPE = replace(
    IMAGES, image_size=16, patch=4, steps=6, validate_every=3, checkpoint_every=2, watch_every=3, dropout=0.2,
    batch_size=20,
)  # fmt: skip


def new_model() -> torch.nn.Module:
    torch.manual_seed(0)
    from regard.inputs.image import ImageSettings
    from regard.training.tasks.classify_image import vision_transformer

    settings = ImageSettings(size=(16, 16))
    return vision_transformer(replace(RECIPE, layers=2), ("lie", "stand", "none"), settings).model


def test_gradients_are_those_of_the_blocks_as_they_are() -> None:
    found: list[torch.Tensor] = []
    for compiled in (False, True):
        model = new_model()
        task = ClassifyImageTask(model, stripes(), stripes(), RECIPE)
        with Gradients(model, task, compiled=compiled) as gradients:
            found += [gradients.compute([Shard(0, index, 1)])[0].clone() for index in range(2)]
        assert not any("forward" in vars(module) for module in model.modules())
    for plain, fused in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-5)


def test_stopped_and_resumed_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    recipe = replace(RECIPE, compile=True, schedule="constant", warmup=2)
    train_image_classifier(stripes(), recipe, Run(tmp_path / "whole", progress=False))
    for steps in (3, 6):
        torch.compiler.reset()  # as in another process
        run = Run(tmp_path / "parts", resume=True, progress=False)
        train_image_classifier(stripes(), replace(recipe, steps=steps), run)
    whole, parts = (curve(tmp_path / name) for name in ("whole", "parts"))
    assert [r for r in whole if "loss" in r] == [r for r in parts if "loss" in r]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the model has no Transformer block"):
        Gradients(Lines().model, Lines(), compiled=True)
    recipe: TranslationRecipe = replace(translation.RECIPE, compile=True)
    with pytest.raises(TrainingError, match="compile is true with 2 workers; compiled blocks may be used by 1 process"):
        translation.train(tmp_path, recipe, workers=2)

    def none(*_: Any, **__: Any) -> str:
        from torch._inductor.exc import InvalidCxxCompiler

        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(TrainingError, match="cannot be compiled here: there is no C"):
        CompiledBlocks(new_model())
