"""Files appear whole or not at all; test_store.py holds the same of directories."""

import os
from pathlib import Path

import pytest

from regard.files import replace_directory, replacing, write_atomically


def test_replaces_and_keeps_permissions_and_links(tmp_path: Path):
    target, link = tmp_path / "target", tmp_path / "link"
    write_atomically(target, b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "target"]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: BaseException):
    path = tmp_path / "best.json"
    write_atomically(path, b"old")
    with pytest.raises(type(error)), replacing(path) as part:
        part.write_bytes(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["best.json"]


def test_a_failed_move_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "best.json"
    write_atomically(path, b"old")

    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["best.json"]


def test_names_as_long_as_they_may_be(tmp_path: Path):
    path = tmp_path / ("ü" * 127)
    write_atomically(path, b"new")
    replace_directory(tmp_path / ("ö" * 127), {"a": b"b"}, owned=())
    assert path.read_bytes() == b"new"


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = tmp_path / "model"
    replace_directory(directory, {"mine": b"1", "yours": b"2"}, owned=())

    def fail(*arguments: object, **settings: object) -> None:
        raise PermissionError("operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    replace_directory(directory, {"mine": b"3"}, owned=("mine",))
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == {"mine": b"3", "yours": b"2"}


def test_files_in_folders(tmp_path: Path):
    directory = tmp_path / "model"
    replace_directory(directory, {"a": b"1", "folder/a": b"2", "folder/b": b"3"}, owned=())
    (directory / "folder" / "yours").write_bytes(b"4")
    replace_directory(directory, {"folder/a": b"5"}, owned=("a", "folder/a", "folder/b"))
    found = {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    assert found == {"folder/a": b"5", "folder/yours": b"4"}
