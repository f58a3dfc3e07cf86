"""The weights of a checkpoint's directory: one safetensors file or its shards and their index, read and written.

A tensor is read when its numbers are asked for, and its file does not stay in memory for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from regard.models.family import ModelError, json_object
from regard.models.rules import StoredTensor, is_finite, listed

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.ckpt", "tf_model.h5")
SHARD = 5 * 10**9
"""Bytes of tensors in one file at most, when a checkpoint is written."""
_MAPPED = 2**26
"""Bytes that are read through one mapping of a file: the pages that were read count as the process's until it ends."""


def read_file(path: Path) -> bytes:
    """The content of a file of a checkpoint.

    Raises:
        ModelError: it is not there or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path.parent} is not a saved model: it has no {path.name}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def stored_tensors(place: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint's directory by name, in the order of its files.

    Raises:
        ModelError: there are no weights, or none in safetensors form; a file is missing, damaged or cannot be read.
    """
    if (place / WEIGHTS).is_file():
        return _File(place / WEIGHTS).tensors()
    if (place / INDEX).is_file():
        return _shards(place)
    pickles = [name for name in PICKLES if (place / name).is_file()]
    if pickles:
        raise ModelError(
            f"{place} has its weights as {pickles[0]}, in a form that can run any code when it is read: regard reads"
            f" {WEIGHTS} alone; load it where you trust it and save it with safe_serialization=True"
        )
    raise ModelError(f"{place} is not a saved model: it has no {WEIGHTS}")


def weight_files(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The files that hold these tensors: one, or shards and their index."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > SHARD:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    about = {"format": "pt"}
    if len(shards) == 1:
        return {WEIGHTS: save(shards[0], about)}
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = {name: save(shard, about) for name, shard in zip(names, shards, strict=True)}
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    return files | {INDEX: json.dumps(index, indent=2).encode() + b"\n"}


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        ModelError: it lists the tensors that hold some.
    """
    wrong = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if wrong:
        raise ModelError(f"{where} holds numbers that are not finite: {listed(wrong)}")


class _File:
    """A safetensors file whose tensors are read one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mapping: Any = None
        self._read = 0

    def tensors(self) -> dict[str, StoredTensor]:
        """All of them, by name."""
        found: dict[str, StoredTensor] = {}
        for name in self._open().keys():  # noqa: SIM118 (it is no dict, and has no other way)
            view = self._tensor(name)  # of which nothing is read
            found[name] = StoredTensor(view.shape, view.dtype, partial(self._numbers, name))
        return found

    def _numbers(self, name: str) -> Tensor:
        if self._read > _MAPPED:
            self._mapping = None
        tensor = self._tensor(name)
        self._read += tensor.nbytes
        return tensor

    def _tensor(self, name: str) -> Tensor:
        from safetensors import SafetensorError

        try:
            return self._open().get_tensor(name)
        except (SafetensorError, KeyError, ValueError) as error:
            raise self._damaged(error) from error

    def _open(self) -> Any:
        """The file, mapped into memory."""
        from safetensors import SafetensorError, safe_open

        if self._mapping is None:
            try:
                self._mapping, self._read = safe_open(self._path, framework="pt"), 0
            except FileNotFoundError:
                name = self._path.name
                raise ModelError(f"{self._path.parent} has no {name}, although its index names it") from None
            except (SafetensorError, KeyError, ValueError) as error:
                raise self._damaged(error) from error
            except OSError as error:
                raise ModelError(f"{self._path} cannot be read: {error.strerror or error}") from error
        return self._mapping

    def _damaged(self, error: Exception) -> ModelError:
        size = self._path.stat().st_size
        return ModelError(f"{self._path} is damaged or not in safetensors form ({size} bytes): {error}")


def _shards(place: Path) -> dict[str, StoredTensor]:
    where = place / INDEX
    names = json_object(read_file(where), str(where)).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{where} has no weight_map: an object with the file of each tensor")
    tensors: dict[str, StoredTensor] = {}
    for name in dict.fromkeys(names.values()):
        if Path(name).name != name:
            raise ModelError(f"{where} names the file {name!r}: it must be one in the same directory")
        tensors |= _File(place / name).tensors()
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ModelError(f"{where} names tensors that its files do not hold: {listed(missing)}")
    return tensors
