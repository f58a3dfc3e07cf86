"""The README is true: its library examples run, its commands work, its folders exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import Run
from tests.models.small_bert import as_sentence_encoder, small_bert
from tests.models.small_llama import small_checkpoint
from tests.models.small_whisper import small_whisper, speech_like, write_sound
from tests.pipelines.small_media import scene, small_model

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


WITH_MODELS = [command for command in _commands() if " -m " in command or command.startswith("regard train ")]
OWN = [command for command in _commands() if command not in WITH_MODELS]


def test_there_are_commands():
    assert len(OWN) >= 3 and len(WITH_MODELS) >= 6


@pytest.mark.parametrize("command", OWN)
def test_commands_work(command: str, tmp_path: Path):
    (tmp_path / "caption.txt").write_text("Two dogs play in the snow.\n", encoding="utf-8")
    (tmp_path / "captions.en").write_text("Two dogs play in the snow.\nA man sleeps.\n", encoding="utf-8")
    scene().save(tmp_path / "photo.png")
    write_sound(tmp_path / "speech.wav", speech_like(1.0))
    words = shlex.split(command)
    line = command.replace("regard", f"{shlex.quote(sys.executable)} -m regard", 1)
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, (words, done.stderr)
    assert len(list(tmp_path.iterdir())) > 4 or done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with small models of the names that the README uses, and what they are shown."""
    directory, made = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("made")
    places = {
        "minilm": as_sentence_encoder(small_bert(made / "minilm"), normalize=True),
        "bert": small_bert(made / "bert", "ForMaskedLM"),
        "sentiment": small_bert(made / "sentiment", "ForSequenceClassification", id2label={0: "bad", 1: "good"}),
        "vit": small_model("vit", made)[1],
        "smollm": small_checkpoint(made),
        "whisper": small_whisper(made)[1],
    }
    for name, place in places.items():
        place.rename(directory / name)
    (directory / "corpus.txt").write_text("Once upon a time a dog ran over the green grass.\n" * 60, encoding="utf-8")
    rows = "".join(f"It was {word} number {i},{word}\n" for i in range(20) for word in ("good", "bad"))
    (directory / "reviews.csv").write_text("review,stars\n" + rows, encoding="utf-8")
    scene().save(directory / "photo.png")
    write_sound(directory / "talk.wav", speech_like(1.0))
    return directory


@pytest.mark.parametrize("command", WITH_MODELS)
def test_commands_with_models_work(command: str, models: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(models)
    done = run(*shlex.split(re.sub(r"--steps \d+", "--steps 3", command))[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([a-z-]+)", "\n".join(_blocks("sh")), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}\b.*:", makefile, re.MULTILINE), target


def test_the_paths_it_names_exist():
    for path in re.findall(r"`((?:src|tests|benchmarks|docs)/[\w./-]*)`", README):
        assert (ROOT / path).exists(), path
