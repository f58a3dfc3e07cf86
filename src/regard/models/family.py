"""What a model family says of itself, so that its checkpoints can be read, run and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regard.models.rules import Rule, StoredTensor

Head = Literal["hidden", "fill", "classify", "generate", "translate", "transcribe"]
"""What a model answers: its last hidden states, scores of masked words, scores of classes, scores of the next piece,
or these given another sequence (of text, or of sound)."""


Problem = Literal["single_label", "multi_label", "regression"]
"""What scores of classes mean: one class of all, any number of classes each by itself, or numbers."""


T = TypeVar("T")

ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""From transformers' names of activations to those of `regard.transformer.FeedForward`."""


class ModelError(ValueError):
    """A saved model that does not exist, or is not what it should be."""


@dataclass(frozen=True)
class Family:
    """A model family, and the checkpoints that it reads.

    Args:
        name: of the family, as in `regard models`.
        modality: of its input: text, image, audio or video.
        model_types: values of model_type in config.json.
        architectures: values of architectures in config.json, and the head that each has.
        config: makes the frozen config dataclass from config.json and the head.
        model: makes the module from the config.
        rules: the table of tensors, from the config.
        write: makes a config.json from the config, the inverse of `config`; None where no new models are made.
    """

    name: str
    modality: Literal["text", "image", "audio", "video"]
    model_types: tuple[str, ...]
    architectures: Mapping[str, Head]
    config: Callable[[Settings, Head], Any]
    model: Callable[[Any], nn.Module]
    rules: Callable[[Any], Sequence[Rule]]
    write: Callable[[Any], dict[str, Any]] | None = None


class Settings:
    """The values of a config.json, checked as they are read.

    Every method raises `ModelError`, with the file, the name and what is allowed, where a value is missing or of
    another kind. A default serves where the file leaves the value out or has null.

    Args:
        values: the whole object.
        where: the file, for messages.
        tensors: those of the checkpoint by name, which says some things that the file does not.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, tensors: Mapping[str, StoredTensor] | None = None
    ) -> None:
        self.values = values
        self.where = where
        self.tensors = tensors or {}

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def whole(self, name: str, default: int | None = None, *, least: int = 1, most: int = 2**31 - 1) -> int:
        """A whole number from `least` to `most`."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(name, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def choice(self, name: str, allowed: Mapping[Any, T], default: Any = None) -> T:
        """One of the allowed values, translated."""
        value = self._value(name, default)
        if isinstance(value, list | dict) or value not in allowed:
            raise self.error(name, "one of " + ", ".join(map(repr, allowed)))
        return allowed[value]

    def pair(self, name: str, default: int) -> tuple[int, int]:
        """Two sizes from 1 on, height and width, or one for both."""
        value = self._value(name, default)
        both: list[Any] = value if isinstance(value, list) else [value, value]
        if len(both) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 2**20 for n in both):
            raise self.error(name, "a size from 1 on, or two")
        return both[0], both[1]

    def part(self, name: str) -> Settings | None:
        """An object inside this one, or None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return Settings(value, f"{self.where}: {name}")

    def labels(self) -> tuple[str, ...]:
        """The names of the classes, from id2label, num_labels or transformers' default of two."""
        names = self.values.get("id2label")
        if names is None:
            return tuple(f"LABEL_{i}" for i in range(self.whole("num_labels", 2)))
        if not isinstance(names, dict) or {str(key) for key in names} != {str(i) for i in range(len(names))}:
            raise self.error("id2label", "an object with a name for each class 0, 1, 2 …")
        found = {int(key): str(name) for key, name in names.items()}
        return tuple(found[i] for i in range(len(found)))

    def holds(self, name: str, *, beside: str | None = None) -> bool:
        """Whether the checkpoint has a tensor of this name; with `beside`, one that is no repetition of that other."""
        tensor = self.tensors.get(name)
        other = None if beside is None else self.tensors.get(beside)
        return tensor is not None and (other is None or not tensor.equals(other))

    def problem(self) -> Problem:
        """What the scores of classes mean; where the file does not say, a single class is a matter of yes or no."""
        known: dict[str, Problem] = {
            "single_label_classification": "single_label",
            "multi_label_classification": "multi_label",
            "regression": "regression",
        }
        several = len(self.labels()) > 1
        return self.choice("problem_type", known, f"{'single' if several else 'multi'}_label_classification")

    def refuse(self, name: str, *allowed: Any) -> None:
        """Refuse any value but these, None always among them: the model could not do what it asks for."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise self.error(name, " or ".join(map(repr, allowed)) or "left out")

    def error(self, name: str, allowed: str) -> ModelError:
        """The error that `name` is something else than allowed."""
        return ModelError(f"{self.where}: {name} is {self.values.get(name)!r}: it must be {allowed}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object that these bytes hold.

    Raises:
        ModelError: if it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{where} holds {type(value).__name__} instead of an object")
    return value


def without_numbers(model: Callable[[T], nn.Module], config: T) -> nn.Module:
    """A module on the meta device, shapes alone: a wrong size costs nothing, and nothing is drawn at random.

    Args:
        model: makes the module from the config.
        config: of it.
    """
    with torch.device("meta"), _NothingDrawn():
        return model(config)


class _NothingDrawn(TorchFunctionMode):
    """Leaves out the drawing of first weights, for which torch imports its compiler where they have no numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
