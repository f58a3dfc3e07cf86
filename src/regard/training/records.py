"""What a run writes down as it goes: metrics.jsonl, curves.png, and TensorBoard's files where they are asked for."""

import json
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from regard.files import write_atomically
from regard.training.curves import draw_curves
from regard.training.errors import StorageError, TrainingError


class Records:
    """The files in which a run keeps what it measured; used as a context.

    Args:
        out: directory of the run.
        step: the last step that counts; what an interrupted run recorded after it is taken out.
        tensorboard: also write for TensorBoard, to out/tensorboard.

    Raises:
        TrainingError: if metrics.jsonl is damaged, or tensorboard is not installed.
    """

    def __init__(self, out: Path, step: int, *, tensorboard: bool = False) -> None:
        self.path, self._curves = out / "metrics.jsonl", out / "curves.png"
        forget_after(self.path, step)
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            self._board = _Board(out / "tensorboard", step) if tensorboard else None
        except TrainingError:
            self._file.close()
            raise

    def __enter__(self) -> "Records":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:  # what is in the buffer is tried once more
            if error is None:
                raise StorageError(f"{self.path} cannot be written: {failure.strerror}") from failure
        finally:
            if self._board is not None:
                self._board.close(failed=error is not None)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record, a line; it has a step.

        Raises:
            StorageError: if it cannot be written.
        """
        try:
            print(json.dumps(record), file=self._file, flush=True)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from error
        if self._board is not None:
            self._board.add(record)

    def draw(self) -> None:
        """Draw all that was recorded so far.

        Raises:
            StorageError: if it cannot be written.
        """
        try:
            draw_curves(self.path, self._curves)
        except OSError as error:
            raise StorageError(f"{self._curves} cannot be written: {error.strerror or error}") from error


class _Board:
    """TensorBoard's files.

    Its library writes them in a thread of its own, which tells the whole world when the disk is full; here what it
    meets there is raised where the next record is written.
    """

    def __init__(self, directory: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError("tensorboard is not installed; install it, or train without --tensorboard") from error
        self._directory, self._before = directory, threading.excepthook
        with self._storing():
            self._writer: Any = SummaryWriter(str(directory), purge_step=step + 1)
        threading.excepthook = self._say

    def add(self, record: Mapping[str, Any]) -> None:
        """The numbers of a record.

        Raises:
            StorageError: if they cannot be written, or those before could not.
        """
        with self._storing():
            for name, value in _flat(record):
                if name != "step":
                    self._writer.add_scalar(name, value, record["step"])

    def close(self, *, failed: bool) -> None:
        """Write what is still to be written; after a failure as far as it goes.

        Raises:
            StorageError: if it cannot be.
        """
        try:
            with self._storing():
                self._writer.close()
        except StorageError:
            if not failed:
                raise
        finally:
            threading.excepthook = self._before

    @contextmanager
    def _storing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self._directory} cannot be written: {error.strerror or error}") from error

    def _say(self, failure: threading.ExceptHookArgs) -> None:
        """What a thread was ended by, but the want of space in TensorBoard's."""
        if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__name__ == "_AsyncWriterThread"):
            self._before(failure)


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of a record, those within another mapping under its name and theirs."""
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            found += _flat(cast(Mapping[str, Any], value), f"{prefix}{name}/")
        else:
            found.append((prefix + name, float(value)))
    return found


def forget_after(metrics: Path, step: int) -> None:
    """Take out what an interrupted run recorded after its last checkpoint; it will be recorded again.

    Raises:
        TrainingError: if a line of the file is no record.
    """
    if not metrics.is_file():
        return
    lines = metrics.read_bytes().splitlines(keepends=True)
    kept: list[bytes] = []
    for number, line in enumerate(lines, start=1):
        try:
            later = json.loads(line)["step"] > step
        except (LookupError, RecursionError, TypeError, ValueError) as error:
            if number == len(lines) and not line.endswith(b"\n"):  # it was being written when the run was killed
                break
            raise TrainingError(f"{metrics}, line {number}: not a record of a step ({type(error).__name__})") from error
        if later:
            break
        kept.append(line.rstrip(b"\n") + b"\n")
    write_atomically(metrics, b"".join(kept))
