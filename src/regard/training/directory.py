"""The directory of a run: what it holds, whose it is, and that it is the same run that goes on there.

DIR/recipe.json                         what was asked for, and fingerprints of the data
DIR/tokenizer/, DIR/data/               what was made of the data, once
DIR/metrics.jsonl, DIR/curves.png, DIR/checkpoints/      see loop.py
DIR/model/                              the model, with the weights of the lowest validation loss
"""

import json
import shutil
import typing
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regard.files import remove_left_overs, replace_directory, write_atomically
from regard.training.errors import StorageError, TakenError, TrainingError

_OURS = (
    "recipe.json", "tokenizer", "tokenizer.json", "data", "metrics.jsonl", "curves.png", "checkpoints", "tensorboard",
    "model",
)  # fmt: skip
"""What a run writes into its directory."""
_DATA = tuple(
    f"{part}{field}.{kind}"
    for part in ("train", "validation")
    for field in ("", ".ids", ".lengths", ".labels")
    for kind in ("bin", "json")
)
"""What it writes into data/."""


@contextmanager
def left_as_it_was(out: Path) -> Generator[None]:
    """Keeps a new run off what is not its own, and takes away what it wrote where it fails before its first step.

    So a directory that others use loses nothing, and a corrected recipe can follow one that cannot be.

    Args:
        out: directory of the run.

    Raises:
        TrainingError: if it holds no run, but what a run would write.
    """
    new, there = not (out / "recipe.json").is_file(), out.is_dir()
    taken = next((name for name in _OURS if (out / name).exists()), None)
    if new and taken is not None:
        raise TrainingError(f"{out / taken} exists and belongs to no run; move it away, or choose another directory")
    try:
        yield
    except TakenError:  # by another process meanwhile
        raise
    except Exception:
        metrics = out / "metrics.jsonl"
        if new and out.is_dir() and not (metrics.is_file() and metrics.stat().st_size):
            with suppress(OSError):  # what went wrong before is what is to be said
                for path in (out / name for name in _OURS):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                if not there and not any(out.iterdir()):
                    out.rmdir()
        raise


def agree(path: Path, recipe: Any, data: Mapping[str, str], *, resume: bool, free: Collection[str]) -> None:
    """Write a recipe and fingerprints of the data, or hold them against those of the run that is to be resumed.

    Args:
        path: of the recipe.json.
        recipe: a dataclass.
        data: by name, what tells these data from others.
        resume: whether a run is to be continued, if there is one.
        free: the fields that may differ.

    Raises:
        TrainingError: if there is a run and it is not to be resumed, or it was of another recipe or other data.
    """
    asked: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    if path.is_file() and resume:
        recorded = read_record(path)
        before = {
            **json.loads(json.dumps(asdict(type(recipe)()))),
            **recorded,
        }  # a field that is newer than the run had its default
        for name, value in asked.items():
            if name not in free and before[name] != value:
                raise TrainingError(f"{name} is {value!r}, but the run in {path.parent} has {before[name]!r}")
        for name, value in data.items():
            was = recorded.get("data", {}).get(name, value)  # a run from before this was recorded may have any
            if was != value:
                raise TrainingError(
                    f"the {name} data are {value}, but the run in {path.parent} has {was}; give the same as before"
                )
        remove_left_overs(path.parent, _OURS)
        remove_left_overs(path.parent / "data", _DATA)
    elif path.is_file():
        raise TakenError(f"{path.parent} holds another run; resume it, or choose another directory")
    write_atomically(path, json.dumps({**asked, "data": dict(data)}, indent=2).encode())


def read_record(path: Path) -> dict[str, Any]:
    """The content of a recipe.json.

    Raises:
        TrainingError: if it holds none.
    """
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("data", {}), dict):
        raise TrainingError(f"{path} is damaged: it does not hold a recipe")
    return typing.cast(dict[str, Any], record)


def learnt_files(directory: Path, make: Callable[[], Mapping[str, bytes]]) -> dict[str, bytes]:
    """The files of a run's tokenizer, made and written where there are none.

    Raises:
        StorageError: if they cannot be written.
    """
    if not directory.is_dir():
        try:
            replace_directory(directory, make(), owned=())
        except OSError as error:
            raise StorageError(f"{directory} cannot be written: {error.strerror or error}") from error
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
