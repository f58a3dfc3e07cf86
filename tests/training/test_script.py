"""benchmarks/train_translator.py as it is run: from files to a saved model, and what is wrong in one line."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.training.test_translate import text

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "train_translator.py"
SMALL = "vocab_size=330 d_model=16 heads=2 encoder_layers=1 decoder_layers=2 feed_forward=16"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A Multi30k of four words."""
    from gzip import compress

    directory = tmp_path / "data"
    (directory / "raw").mkdir(parents=True)
    (directory / "tok").mkdir()
    for name, pairs in (("train", text(60)), ("val", text(5)), ("test_2016_flickr", text(6))):
        for language, lines in (("en", pairs.source), ("de", pairs.target)):
            content = "".join(line + "\n" for line in lines)
            (directory / "raw" / f"{name}.{language}").write_text(content)
            (directory / "raw" / f"{name}.{language}.gz").write_bytes(compress(content.encode()))
            tokenised = directory / "tok" / f"{name}.lc.norm.tok.{language}"
            tokenised.write_text(content.lower())
            tokenised.with_name(tokenised.name + ".gz").write_bytes(compress(content.lower().encode()))
    return directory


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    spec = importlib.util.spec_from_file_location("train_translator", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sizes = "" if "--lower-risk" in arguments else SMALL  # one that goes on has its own
    settings = [word for setting in f"{sizes} shards=1 warmup=1".split() for word in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quiet", "--threads", "1", *settings, *arguments])
    return script.main()


def test_trains_resumes_and_says_what_is_wrong(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    place = ["--data", str(data), "--out", str(out)]
    assert run(monkeypatch, *place, "--set", "schedule=inverse-sqrt", "--steps", "2") == 0
    assert (out / "model" / "config.json").is_file()
    capsys.readouterr()

    def refused(*arguments: str, words: str) -> None:
        assert run(monkeypatch, *place, "--set", "schedule=inverse-sqrt", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and words in line

    refused("--steps", "3", words="holds another run")
    refused("--steps", "3", "--resume", "--tokenised", words="but the run in")
    refused("--steps", "3", "--resume", "--pairs", "50", words="training data are 50 pairs")
    refused("--steps", "3", "--resume", "--set", "dropout=0.4", words="dropout is 0.4")
    (out / "metrics.jsonl").write_text("not JSON\n")
    refused("--steps", "3", "--resume", words="metrics.jsonl, line 1")
    (out / "metrics.jsonl").unlink()
    (out / "metrics.jsonl").mkdir()
    refused("--steps", "3", "--resume", words="metrics.jsonl")
    (out / "metrics.jsonl").rmdir()
    for checkpoint in (out / "checkpoints").glob("step-*"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    refused("--steps", "3", "--resume", words="cannot be read as safetensors")


def test_a_learning_rate_that_is_too_high_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "peak_learning_rate=1e30", "--set", "clip=null", "--set", "schedule=inverse-sqrt"]
    place = ["--data", str(data), "--out", str(tmp_path / "run"), "--steps", "20"]
    assert run(monkeypatch, *place, *settings) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is nan at step" in line or "is inf at step" in line


def test_ctrl_c_before_the_first_step_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("regard.training.data.read_lines", interrupt)
    assert run(monkeypatch, "--data", str(data), "--out", str(tmp_path / "run")) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_goes_on_by_minimum_risk(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ["--data", str(data), "--out"]
    assert run(monkeypatch, *place, str(tmp_path / "first"), "--set", "schedule=inverse-sqrt", "--steps", "2") == 0
    model = tmp_path / "first" / "model"
    lower = ["--lower-risk", str(model), "--set", "samples=2", "--steps", "3"]
    assert run(monkeypatch, *place, str(tmp_path / "lower"), *lower) == 0
    card = (tmp_path / "lower" / "model" / "README.md").read_text()
    assert "2 steps over" in card and "Then 3 steps of minimum risk training" in card and "2 translations" in card
    assert card.count("**Training**") == 1
