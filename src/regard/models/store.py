"""Models on disk: a directory with config.json, model.safetensors, tokenizer.json and README.md, the model card.

Nothing in it is code. `load_model` believes nothing in it either: every part is checked against the others,
and the weights against the SHA-256 that config.json holds, so that a damaged directory is an error that says
what is wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.files import replace_directory
from regard.inputs.text import TextTokenizer
from regard.models.family import ModelError, without_numbers
from regard.models.rules import listed
from regard.models.translator import Translator, TranslatorConfig
from regard.models.weight_files import WEIGHTS, check_finite

FORMAT = 1
CONFIG, TOKENIZER, CARD = "config.json", "tokenizer.json", "README.md"
LICENCE = "LICENSE"

_DTYPES = {torch.float32: "float32", torch.float16: "float16"}


@dataclass(frozen=True)
class Own:
    """How the models of a family of our own are made: a frozen config dataclass, and a module made from it."""

    config: type[Any]
    model: type[nn.Module]


FAMILIES: Mapping[str, Own] = types.MappingProxyType({"translator": Own(TranslatorConfig, Translator)})


@dataclass(frozen=True)
class SavedModel:
    """What a model directory holds.

    `model` is in float32 and evaluation mode; `about` is the whole of config.json.
    """

    model: nn.Module
    tokenizer: TextTokenizer
    about: Mapping[str, Any]
    directory: Path

    @property
    def card(self) -> Path:
        """The model card."""
        return self.directory / CARD

    @property
    def task(self) -> str:
        """What the model does, such as "translation"."""
        return str(self.about["task"])

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which sends it to another process: weights as safetensors, no code."""
        from safetensors.torch import save

        weights = save({name: t.detach().cpu().contiguous() for name, t in self.model.state_dict().items()})
        config: Any = self.model.config
        state = (_family_of(self.model), config, weights, self.tokenizer.to_json(), dict(self.about), self.directory)
        return _received, state


def save_model(
    directory: str | Path,
    model: nn.Module,
    tokenizer: TextTokenizer,
    *,
    card: str,
    licence: str | None = None,
    task: str = "translation",
    about: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model directory, whole or not at all.

    It is written beside its place and then moved there; a model that was there before is replaced, and what else
    its directory held is kept.

    Args:
        directory: where to; its parents are made.
        model: of one of the `FAMILIES`, with its frozen config as `model.config`.
        tokenizer: with the model's vocabulary.
        card: the model card, Markdown: what it was trained on, how well it does, its licence.
        licence: the licence of the weights, in full; becomes the file LICENSE.
        task: what the model does.
        about: more for config.json, such as {"languages": ["en", "de"]}.
        dtype: of the weights on disk, float32 or float16.

    Returns:
        The directory.

    Raises:
        ModelError: if the model is of no known family, the tokenizer does not fit it, a weight is not finite
            (in float16: not below 65520), or the directory exists and is not a model.
        ValueError: if dtype is another, or about names what this function writes itself.
    """
    place = Path(directory)
    if place.exists() and not _replaceable(place):
        raise ModelError(f"{place} exists and is not a saved model: it is not replaced")
    family = _family_of(model)
    config: Any = model.config
    _check_tokenizer(tokenizer, config, "the tokenizer")
    weights, facts = _weights(model, dtype)
    written = {"regard_format": FORMAT, "family": family, "task": task, "config": dataclasses.asdict(config), **facts}
    taken = sorted(written.keys() & (about or {}).keys())
    if taken:
        raise ValueError(f"about names {', '.join(taken)}: these are written by save_model itself")
    files = {
        CONFIG: json.dumps(written | dict(about or {}), indent=2, ensure_ascii=False).encode() + b"\n",
        WEIGHTS: weights,
        TOKENIZER: tokenizer.to_json().encode(),
        CARD: card.encode(),
    }
    if licence is not None:
        files[LICENCE] = licence.encode()
    replace_directory(place, files, owned=(CONFIG, WEIGHTS, TOKENIZER, CARD, LICENCE))
    return place


def load_model(directory: str | Path) -> SavedModel:
    """Read a model directory.

    Raises:
        ModelError: if the directory is not a saved model: a file is missing or unreadable, config.json is not
            JSON or not of this format, the family is unknown, tensors are damaged, missing, superfluous, of
            another shape or not finite, or the tokenizer is not one or has another vocabulary. The message
            says which, and where.
    """
    place = Path(directory)
    if not place.is_dir():
        raise ModelError(f"{place} is not a directory: a saved model is one, with {CONFIG}, {WEIGHTS}, {TOKENIZER}")
    content = {name: _read(place, name) for name in (CONFIG, WEIGHTS, TOKENIZER)}
    about = _read_config(place / CONFIG, content[CONFIG])
    family = FAMILIES[about["family"]]
    config = _make_config(family.config, about["config"], place / CONFIG)
    try:
        tokenizer = TextTokenizer.from_json(content[TOKENIZER].decode())
    except ValueError as error:
        raise ModelError(f"{place / TOKENIZER}: {error}") from error
    _check_tokenizer(tokenizer, config, str(place / TOKENIZER))
    tensors = _read_weights(place / WEIGHTS, content[WEIGHTS], about)
    expected = without_numbers(family.model, config).state_dict()
    _check_tensors(tensors, expected, place / WEIGHTS)
    return SavedModel(_build(family, config, tensors), tokenizer, types.MappingProxyType(about), place)


def _build(family: Own, config: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # loading must not move the caller's random numbers
        model = family.model(config)
    model.load_state_dict(tensors)
    return model.eval()


def _received(
    family: str, config: Any, weights: bytes, tokenizer: str, about: dict[str, Any], directory: Path
) -> SavedModel:
    """What `SavedModel.__reduce__` sent."""
    from safetensors.torch import load

    model = _build(FAMILIES[family], config, load(weights))
    return SavedModel(model, TextTokenizer.from_json(tokenizer), types.MappingProxyType(about), directory)


def _family_of(model: nn.Module) -> str:
    for name, family in FAMILIES.items():
        if type(model) is family.model:
            return name
    raise ModelError(f"model is a {type(model).__name__}: it must be of the family {', '.join(FAMILIES)}")


def _weights(model: nn.Module, dtype: torch.dtype) -> tuple[bytes, dict[str, str]]:
    """The content of model.safetensors, and what config.json says of it."""
    from safetensors.torch import save

    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype}: it must be torch.float32 or torch.float16")
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in model.state_dict().items()}
    check_finite(tensors, f"the model in {_DTYPES[dtype]}")
    data = save(tensors)
    return data, {"weights_dtype": _DTYPES[dtype], "weights_sha256": hashlib.sha256(data).hexdigest()}


def _replaceable(place: Path) -> bool:
    if not place.is_dir():
        return False
    if not any(place.iterdir()):
        return True
    try:
        return "regard_format" in json.loads((place / CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _read(place: Path, name: str) -> bytes:
    try:
        return (place / name).read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{place} is not a saved model: it has no {name}") from None
    except OSError as error:
        raise ModelError(f"{place / name} cannot be read: {error.strerror}") from error


def _read_config(path: Path, data: bytes) -> dict[str, Any]:
    try:
        about = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if isinstance(about, dict) and "regard_baseline" in about:
        raise ModelError(
            f"{path.parent} is a {about['regard_baseline']}, a baseline to compare with: it must be a Transformer"
        )
    if not isinstance(about, dict) or "regard_format" not in about:
        raise ModelError(f"{path} has no regard_format: it is not the config of a model that regard saved")
    if about["regard_format"] != FORMAT:
        raise ModelError(f"{path} has regard_format {about['regard_format']!r}: this version reads {FORMAT}")
    for name, kind in (("family", str), ("task", str), ("config", dict), ("weights_sha256", str)):
        if not isinstance(about.get(name), kind):
            raise ModelError(f"{path}: {name} is {about.get(name)!r}: it must be a {kind.__name__}")
    if about["family"] not in FAMILIES:
        raise ModelError(f"{path} is of family {about['family']!r}: known are {', '.join(FAMILIES)}")
    return typing.cast(dict[str, Any], about)


def _make_config(kind: type[Any], values: Mapping[str, Any], path: Path) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise ModelError(f"{path}: config has {', '.join(unknown)}, which a {kind.__name__} has not")
    for name, value in values.items():
        wanted = (int, float) if hints[name] is float else hints[name] if isinstance(hints[name], type) else str
        if not isinstance(value, wanted) or (isinstance(value, bool) and hints[name] is not bool):
            raise ModelError(
                f"{path}: {name} is {value!r}: it must be of type {getattr(hints[name], '__name__', 'str')}"
            )
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error


def _read_weights(path: Path, data: bytes, about: Mapping[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{path} is damaged or not in safetensors form ({len(data)} bytes): {error}") from error
    if hashlib.sha256(data).hexdigest() != about["weights_sha256"]:
        raise ModelError(f"{path} was changed after it was saved: its SHA-256 is not the weights_sha256 of {CONFIG}")
    return tensors


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        shape, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if shape != wanted:
            wrong.append(f"{name} has shape {shape} instead of {wanted}")
        elif not tensors[name].is_floating_point():
            wrong.append(f"{name} holds {tensors[name].dtype} instead of floating-point numbers")
    if wrong:
        raise ModelError(f"{path} does not fit the config: {listed(sorted(wrong))}")
    check_finite(tensors, str(path))


def _check_tokenizer(tokenizer: TextTokenizer, config: Any, where: str) -> None:
    for name, value in (
        ("vocab_size", tokenizer.vocab_size),
        ("pad", tokenizer.pad),
        ("bos", tokenizer.bos),
        ("eos", tokenizer.eos),
    ):
        if value != getattr(config, name):
            raise ModelError(f"{where} has {name} {value}, but the config has {getattr(config, name)}")
