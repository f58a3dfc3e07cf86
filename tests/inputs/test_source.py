"""Where inputs come from: every way in which a file cannot be opened is one line that names it."""

import os
from pathlib import Path

import pytest

from regard.inputs.source import InputError, name_of, opened, reading


def test_files_and_bytes_are_the_same(tmp_path: Path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    for source in (path, str(path), b"abc"):
        with opened(source) as file:
            assert file.read() == b"abc"


@pytest.mark.parametrize("name", ["no.png", "", "a\0b.png", "\ud800", "n" * 5000, "no.png/x"])
def test_missing_files(tmp_path: Path, name: str):
    with pytest.raises(InputError) as caught, opened(f"{tmp_path}/{name}" if name else "no such file"):
        pass
    assert "\n" not in str(caught.value)
    assert "no" in str(caught.value)  # such file, name of a file


def test_what_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for path, said in [(tmp_path, "directory"), (tmp_path / "pipe", "pipe"), (tmp_path / "empty", "empty")]:
        with pytest.raises(InputError, match=f"^{path}.*{said}"), opened(path):
            pass
    with pytest.raises(InputError, match="0 bytes is empty"), opened(b""):
        pass
    with pytest.raises(TypeError, match="source is int"), opened(3):  # type: ignore[arg-type]
        pass


def test_errors_of_decoders_become_one_line():
    with pytest.raises(InputError, match=r"^a.png cannot be read: bad data$"), reading("a.png", "cannot be read"):
        raise SyntaxError("bad\n data")
    with pytest.raises(InputError, match="x: KeyError"), reading(b"", "x"):
        raise KeyError
    with pytest.raises(InputError, match="^kept$"), reading("a.png", "cannot be read"):
        raise InputError("kept")
    assert name_of(Path("b.png")) == "b.png"
