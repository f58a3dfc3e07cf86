"""The examples of docs/ run as they stand, and draw the figures that stand below them."""

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import docs.figures
from tests.command_line import Run

DOCS = Path(__file__).resolve().parents[1] / "docs"
NEEDS = re.compile(r'find_spec\(|Path\("/')  # what an example reads and the repository does not hold
RUN = ["observe.md", "faithful.md"]
EXAMPLES = [
    pytest.param(block, marks=[pytest.mark.real] if NEEDS.search(block) else [], id=f"{name} {number + 1}")
    for name in RUN
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), re.M | re.S)
    )
]


@pytest.mark.parametrize("block", EXAMPLES)
def test_examples_run(block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for package in re.findall(r'find_spec\("(\w+)"\)', block):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package}, whose files the example reads, is not installed")
    for path in re.findall(r'Path\("(/[^"]+)"', block):
        if not Path(path).exists():
            pytest.skip(f"there is no {path}, which the example reads")
    monkeypatch.chdir(DOCS.parent)
    monkeypatch.setattr(docs.figures, "FOLDER", tmp_path)
    exec(compile(block, "an example", "exec"), {"__name__": "example"})
    assert "print(" not in block or capsys.readouterr().out.strip()
    for name in re.findall(r'"([\w-]+\.png)"', block):
        for file in (tmp_path / name, DOCS / "figures" / name):
            assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size < 150_000


def test_every_figure_is_drawn_by_the_example_above_it():
    text = (DOCS / "observe.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(figures/([\w-]+\.png)\)", text)
    assert shown == re.findall(r'"([\w-]+\.png)"', text) == re.findall(r"docs.figures ([\w-]+\.png)`", text)
    assert {f.name for f in (DOCS / "figures").glob("*.png")} == {*shown}


def test_the_commands_of_faithful_run(tmp_path: Path, run: Run):
    """In order, with little data: the model is trained by the first of them, in a few steps."""
    text = (DOCS / "faithful.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    commands = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    kinds = [("dull", 0), ("fine", 1)]
    rows = "".join(f"a {word} film , number {i}\t{label}\n" for i in range(6) for word, label in kinds)
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(rows)
    aligned = tmp_path / "wordalign_deen"
    aligned.mkdir()
    (aligned / "test.en").write_text("a man .\n")
    (aligned / "test.de").write_text("ein mann .\n")
    (aligned / "de-en.ref.wa").write_text("1 0 0 S\n1 1 1 S\n")
    assert len(commands) >= 4
    for command in commands:
        done = run(*shlex.split(re.sub(r"--steps \d+", "--steps 2", command))[1:])
        assert done.returncode == 0 and done.stdout, (command, done.stderr)
    assert {"sst2.json", "alignment.json"} <= {path.name for path in tmp_path.iterdir()}


SETUP = ("make demo", ".venv/bin/python -m pip install", ". .venv/bin/activate")
WALK = (DOCS / "train.md").read_text(encoding="utf-8")


def test_the_walk_through_training_works(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    """Its data are made and its commands run, in order, each with a few steps."""
    monkeypatch.chdir(tmp_path)
    for name in ("README.md", "docs"):
        (tmp_path / name).symlink_to(DOCS.parent / name)
    few = re.sub(r"(--steps |steps=)\d+", r"\g<1>3", re.sub(r"range\(\d\d+\)", "range(12)", WALK))
    commands = 0
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", few, re.M | re.S):
        if language == "python":
            exec(compile(block, "train.md", "exec"), {"__name__": "example"})
            continue
        for line in block.splitlines():
            if line.startswith(SETUP):
                continue
            if line.startswith("cat "):
                done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
            else:
                done = run(*shlex.split(line)[1:])
            assert done.returncode == 0, (line, done.stderr)
            commands += 1
    assert commands >= 12
    for page in ("circle.html", "rising.html", "pairs.html"):
        assert "<html" in (tmp_path / page).read_text(encoding="utf-8")
    for name in ("writer", "reviews", "shapes", "tones", "tuned", "library", "pairs", "risk"):
        assert {"README.md", "config.json", "model.safetensors"} <= {
            p.name for p in Path("runs", name, "model").iterdir()
        }
