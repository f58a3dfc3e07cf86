"""Checkpoints as Hugging Face's libraries write them: a directory with config.json and safetensors, read and written.

Nothing in one is run: weights in pickle form are refused. What the model has no use for is kept, so that writing a
checkpoint again gives the same tensors and the same configuration.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from regard.files import replace_directory
from regard.models.families import MODULES as MODULES_OF
from regard.models.families import families_in, family_of
from regard.models.family import Family, Head, ModelError, Settings, json_object, without_numbers
from regard.models.rules import Layout, NotFiniteError, StoredTensor, TensorError, listed, read_tensors, write_tensors
from regard.models.weight_files import INDEX, WEIGHTS, check_finite, read_file, stored_tensors, weight_files

if TYPE_CHECKING:
    from regard.inputs.tokenizer import Tokenizer

CONFIG, MODULES = "config.json", "modules.json"
BESIDE = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "source.spm",
    "target.spm",
    "spiece.model",
    "normalizer.json",
    MODULES,
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""Files beside weights and config that belong to a checkpoint and are written with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A model that was read from a checkpoint, and all that came with it.

    Args:
        model: in evaluation mode.
        family: how it is read and written.
        head: what it answers.
        settings: the whole of config.json.
        layout: names, dtypes and ignored tensors of the file, for writing it again.
        directory: where it was read.
        files: content of the files beside, by name (see `BESIDE`); those of a sentence encoder's folders by path.
        fields: the metadata of a GGUF file; None where it was read from a directory.
    """

    model: nn.Module
    family: Family
    head: Head
    settings: Mapping[str, Any]
    layout: Layout
    directory: Path
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    fields: Mapping[str, Any] | None = None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the checkpoint, read when it is first asked for.

        Raises:
            TokenizerError: there is none, or it is damaged.
        """
        from regard.inputs.tokenizer import Tokenizer

        if self.fields is not None:
            return Tokenizer.from_gguf(self.fields)
        return Tokenizer.from_directory(self.directory)

    @property
    def about(self) -> Mapping[str, Any]:
        """The whole of config.json."""
        return self.settings

    @property
    def task(self) -> str:
        """What the model answers; see `regard.models.family.Head`."""
        return self.head

    def json(self, name: str) -> dict[str, Any]:
        """The object in one of the JSON files beside the weights; an empty one where there is no such file.

        Raises:
            ModelError: if it is not a JSON object.
        """
        return json_object(self.files[name], f"{self.directory / name}") if name in self.files else {}

    def save(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write the checkpoint as Hugging Face's libraries read it, whole or not at all.

        Args:
            directory: where to; its parents are made. A checkpoint that was there before is replaced, and what else
                its directory held is kept.
            dtype: of the tensors on disk; as they were read unless given.

        Returns:
            The directory.

        Raises:
            ModelError: the directory exists and holds no checkpoint, or a weight is not finite.
        """
        place = Path(directory)
        if place.exists() and (not place.is_dir() or (any(place.iterdir()) and not (place / CONFIG).is_file())):
            raise ModelError(f"{place} exists and is not a saved model: it is not replaced")
        rules = self.family.rules(self.model.config)
        tensors = write_tensors(rules, self.model.state_dict(), self.layout, dtype)
        check_finite(tensors, "the model")
        settings = copy.deepcopy(dict(self.settings))
        if dtype is not None:
            name = "dtype" if "dtype" in settings else "torch_dtype"
            settings[name] = str(dtype).removeprefix("torch.")
        files = dict(self.files) | weight_files(tensors)
        files[CONFIG] = json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n"
        old = [path.name for path in place.glob("model-*-of-*.safetensors")] if place.is_dir() else []
        folders = [*files, *_module_files(place)]
        replace_directory(place, files, owned=(CONFIG, WEIGHTS, INDEX, *BESIDE, *old, *folders))
        return place


def is_checkpoint(source: str | Path) -> bool:
    """Whether this is the directory of a Hugging Face checkpoint, or a GGUF file, by what it is called and says."""
    path = Path(source)
    if path.suffix.lower() == ".gguf":
        return True
    try:
        return "model_type" in json_object((path / CONFIG).read_bytes(), "")
    except (OSError, ValueError):  # another kind of model, whose own reader says what is wrong with it
        return False


def read_checkpoint(directory: str | Path, *, dtype: torch.dtype | None = torch.float32) -> Checkpoint:
    """Read a checkpoint's directory.

    Args:
        directory: with config.json and model.safetensors, or its shards and their index.
        dtype: of the model's parameters, whatever the file has; None is as in the file.

    Raises:
        ModelError: there is no such file or it is damaged; the architecture is not known; tensors are missing,
            unknown, misshapen or not finite. The message lists them.
    """
    place = Path(directory)
    settings = json_object(read_file(place / CONFIG), str(place / CONFIG))
    names = [*(name for name in BESIDE if (place / name).is_file()), *_module_files(place)]
    files = {name: read_file(place / name) for name in names}
    return build(settings, stored_tensors(place), place, files=files, dtype=dtype)


def build(
    settings: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    place: Path,
    *,
    files: Mapping[str, bytes],
    dtype: torch.dtype | None = torch.float32,
) -> Checkpoint:
    """A checkpoint from the content of its files: config.json, tensors by name, and the files beside.

    Raises:
        ModelError: see `read_checkpoint`.
    """
    family, head = family_of(settings, str(place / CONFIG))
    try:
        config = family.config(Settings(settings, str(place / CONFIG), tensors), head)
        model = without_numbers(family.model, config)
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"{place / CONFIG}: {error}") from error
    try:
        state, layout = read_tensors(family.rules(config), tensors, model.state_dict(), dtype)
    except TensorError as error:
        raise ModelError(f"{place} does not fit its {CONFIG}: {error}") from error
    except NotFiniteError as error:
        raise ModelError(f"{place} holds numbers that are not finite: {error}") from error
    model.load_state_dict(state, assign=True)
    _materialise(model)
    return Checkpoint(model.eval(), family, head, dict(settings), layout, place, dict(files))


def new_checkpoint(
    kind: str, config: Any, *, extra: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
) -> Checkpoint:
    """A model with random weights, in training mode, that can be saved as a checkpoint.

    Args:
        kind: the model_type of a family that makes new models: "llama", "bert".
        config: the family's own dataclass.
        extra: what else config.json is to say, such as eos_token_id.
        files: content of the files beside, such as tokenizer.json.

    Raises:
        ModelError: the family makes no new models, or its config.json cannot say what this config does.
    """
    known = families_in(MODULES_OF[kind]) if kind in MODULES_OF else ()
    family = next((family for family in known if kind in family.model_types), None)
    if family is None or family.write is None:
        raise ModelError(f"kind is {kind!r}: there are no new models of it")
    settings = {**family.write(config), **(extra or {})}
    _, head = family_of(settings, "the new config.json")
    again = family.config(Settings(settings, "the new config.json"), head)
    if again != config:
        changed = [name for name in config.__dataclass_fields__ if getattr(again, name) != getattr(config, name)]
        raise ModelError(f"the config.json of {kind} cannot say this: {listed(changed)}")
    return Checkpoint(family.model(config), family, head, settings, Layout(), Path(), dict(files or {}))


def _materialise(model: nn.Module) -> None:
    """Give the buffers that no checkpoint holds, such as tables of positions, their values.

    A module that has some says how: it computes them in `make_buffers`.
    """
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.make_buffers()  # pyright: ignore[reportCallIssue]


def _module_files(place: Path) -> list[str]:
    """The files in the folders that a sentence encoder's modules.json names, such as 1_Pooling/config.json."""
    try:
        modules = json.loads((place / MODULES).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []  # there are none, or whoever uses them says what is wrong
    parts = modules if isinstance(modules, list) else []
    folders = [part.get("path") for part in parts if isinstance(part, dict)]
    names = [f for f in folders if isinstance(f, str) and f not in ("", ".", "..") and Path(f).name == f]
    return [f"{f}/{name}" for f in names for name in (CONFIG, WEIGHTS) if (place / f / name).is_file()]
