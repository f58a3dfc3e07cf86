"""A number that a recipe cannot have is refused when the recipe is made, in one line that says what it may be."""

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.training import TrainingError
from regard.training.loop import TrainerConfig
from regard.training.ranges import RANGES
from regard.training.run import changed
from regard.training.tasks.classify_audio import ClassifyAudioRecipe
from regard.training.tasks.classify_image import ClassifyImageRecipe
from regard.training.tasks.classify_text import ClassifyTextRecipe
from regard.training.tasks.language_model import LanguageModelRecipe
from regard.training.tasks.masked_language_model import MaskedLanguageModelRecipe
from regard.training.tasks.translation_recipe import TranslationRecipe

KINDS: tuple[type[Any], ...] = (
    TranslationRecipe, LanguageModelRecipe, MaskedLanguageModelRecipe, ClassifyTextRecipe, ClassifyImageRecipe,
    ClassifyAudioRecipe,
)  # fmt: skip


def test_every_range_is_of_a_field() -> None:
    assert set(RANGES) <= {field.name for kind in (*KINDS, TrainerConfig) for field in fields(kind)}


@pytest.mark.parametrize("kind", KINDS)
@given(number=st.floats(allow_nan=True, allow_infinity=True) | st.integers(-5, 5), draw=st.data())
def test_numbers_out_of_range_are_refused(kind: type[Any], number: float, draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from([field.name for field in fields(kind) if field.name in RANGES]))
    allowed, words = RANGES[name]
    if allowed(number):
        assert getattr(kind(**{name: number}), name) == number
        return
    with pytest.raises(TrainingError) as error:
        kind(**{name: number})
    assert str(error.value).startswith(f"{name} is {number}; it may be {words}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("shards=0", "shards is 0; it may be 1 or more"),
        ("label_smoothing=2", "label_smoothing is 2.0; it may be 0 or more and less than 1"),
        ("dropout=2", "dropout is 2.0; it may be 0 or more and less than 1"),
        ("clip=0", "clip is 0.0; it may be more than 0, or None"),
        ("vocab_size=0", "vocab_size is 0; it may be from 1 to 10,000,000"),
    ],
)
def test_what_is_set_for_a_translator(setting: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        changed(TranslationRecipe(), [setting])


def test_no_number_is_in_no_range() -> None:
    assert not any(allowed(math.nan) for allowed, _ in RANGES.values())
