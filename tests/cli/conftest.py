"""The command in the process of the tests, where everything is imported already."""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from regard.cli import main


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: bytes
    stderr: bytes


Regard = Callable[..., Result]


@pytest.fixture
def regard(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Regard]:
    """`regard` with these arguments and this standard input."""

    def run(*args: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["regard", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        return Result(code, *capfdbinary.readouterr())

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)
