"""Relations on disk: one safetensors file, the statistics as its tensors and all else as JSON in its header.

    header   format_version, and "relations": JSON
    tensors  SITE.STEP.FIELD, with the number of the site, the step there, and a field of `Observation`

What calls were made of (queries, keys, values, masks) is not written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from regard.attention import Observation
from regard.attention.observation import SEEN
from regard.files import replacing

FORMAT_VERSION = "1"
_FIELDS = (*SEEN, "rows")


def write(path: str | os.PathLike[str], data: Mapping[str, Any], observations: list[list[Observation]]) -> None:
    """Writes what JSON can hold, and what was seen: a list of steps for each site.

    Raises:
        ValueError: JSON cannot hold `data`.
        OSError: it cannot be written; what was there stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for site, steps in enumerate(observations):
        for step, seen in enumerate(steps):
            held = {name: getattr(seen, name) for name in _FIELDS}
            tensors |= {f"{site}.{step}.{name}": t.cpu().contiguous() for name, t in held.items() if t is not None}
    text = json_of({**data, "steps": [len(steps) for steps in observations]})
    try:
        with replacing(path) as part:
            save_file(tensors, part, metadata={"format_version": FORMAT_VERSION, "relations": text})
    except SafetensorError as error:  # which wraps the system's errors
        raise OSError(f"{path} cannot be written: {error}") from error


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[list[Observation]]]:
    """What `write` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another format.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file; it may be one that Relations.save wrote")
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            # A copy: what is mapped would change, or crash, with the file.
            tensors: dict[str, Tensor] = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    if "relations" not in header or header.get("format_version") != FORMAT_VERSION:
        version = header.get("format_version")
        raise ValueError(f"{path} holds no relations of format_version {FORMAT_VERSION!r}, but of {version!r}")
    try:
        data: dict[str, Any] = json.loads(header["relations"])
        observations = [
            [_observation(tensors, f"{site}.{step}.") for step in range(steps)]
            for site, steps in enumerate(data["steps"])
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    return data, observations


def json_of(data: Mapping[str, Any]) -> str:
    """Data as JSON.

    Raises:
        ValueError: JSON cannot hold it.
    """
    try:
        return json.dumps(data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"about holds what JSON cannot: {error}") from error


def _observation(tensors: Mapping[str, Tensor], prefix: str) -> Observation:
    held: dict[str, Any] = {name: tensors[prefix + name] for name in _FIELDS if prefix + name in tensors}
    return Observation(**held)
