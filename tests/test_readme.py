"""The README is true: its library examples run, its commands work, its folders exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(_blocks("python"))))
def test_library_examples_run(number: int, capsys: pytest.CaptureFixture[str]):
    exec(compile(_blocks("python")[number], f"README example {number + 1}", "exec"), {})
    if "print(" in _blocks("python")[number]:
        assert capsys.readouterr().out.strip()


def _commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in _blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("regard ")]


def test_there_are_commands():
    assert len(_commands()) >= 3


@pytest.mark.parametrize("command", _commands())
def test_commands_work(command: str, tmp_path: Path):
    (tmp_path / "caption.txt").write_text("Two dogs play in the snow.\n", encoding="utf-8")
    (tmp_path / "captions.en").write_text("Two dogs play in the snow.\nA man sleeps.\n", encoding="utf-8")
    words = shlex.split(command)
    line = command.replace("regard", f"{shlex.quote(sys.executable)} -m regard.cli", 1)
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, (words, done.stderr)
    assert len(list(tmp_path.iterdir())) > 2 or done.stdout


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([a-z-]+)", "\n".join(_blocks("sh")), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}\b.*:", makefile, re.MULTILINE), target


def test_the_paths_it_names_exist():
    for path in re.findall(r"`((?:src|tests|benchmarks|docs)/[\w./-]*)`", README):
        assert (ROOT / path).exists(), path
