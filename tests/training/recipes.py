"""Recipes of tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

RecipeT = TypeVar("RecipeT")
_OF_NEW = (
    *("d_model", "layers", "heads", "feed_forward", "size", "family", "vocab_size", "tokens", "lowercase"),
    *("image_size", "patch", "mels", "stride", "seconds"),
)


def going_on(recipe: RecipeT, model: str | Path, **changes: Any) -> RecipeT:
    """The recipe of a run that goes on from a model, which has its own sizes and vocabulary."""
    usual: Any = type(recipe)()
    own = {name: getattr(usual, name) for name in _OF_NEW if hasattr(usual, name)}
    return replace(recipe, model=str(model), **own, **changes)  # type: ignore[type-var]
