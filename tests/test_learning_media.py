"""The learning benchmarks of images and sound: they run, are continued, report what was measured, and embed it."""

import dataclasses
import io
import json
import sys
import tarfile
import wave
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from regard.models.registry import embedded_models
from regard.training.baselines.frame_lstm import FrameLSTM, FrameLSTMConfig

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "learning"))

import cifar10
import contest
import plot
import spoken_digits

CHANGES = {"d_model": 8, "layers": 1, "heads": 2, "feed_forward": 8, "widths": (4, 4), "blocks": (0, 0, 0)}


def shrunk(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model very small, and few rates, seeds and looks."""
    config = dataclasses.replace(module.TRANSFORMER, **CHANGES)
    monkeypatch.setattr(module, "TRANSFORMER", config)
    recipe = dataclasses.replace(module.RECIPE, batch_size=8)
    first = dataclasses.replace(module.ENTRIES[0], recipe=recipe, rates=(0.001, 0.01))
    other = module.ENTRIES[1].make
    if module is spoken_digits:
        monkeypatch.setattr(module, "SEEDS", (1,))
        adamw = dataclasses.replace(recipe, optimiser="adamw")
        entry = contest.Entry("LSTM", lambda: FrameLSTM(FrameLSTMConfig(40, 4, 1, config.labels)), adamw, (0.01,))
        monkeypatch.setattr(module, "ENTRIES", (first, entry))
    else:
        monkeypatch.setattr(module, "ENTRIES", (first, contest.Entry("CNN", other, recipe, (0.01,))))
        monkeypatch.setattr(module, "LOOKS", 2)
    monkeypatch.setattr(contest, "LOOKS", 2)


def called(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        return module.main()
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Two speakers who say three digits, each a tone of its own, in the form of FSDD."""
    draw = np.random.default_rng(0)
    with tarfile.open(tmp_path / "recordings.tar.gz", "w:gz") as archive:
        for speaker in ("ann", "bob"):
            for digit in range(3):
                for index in (0, 5, 10, 11):
                    times = np.arange(2400) / 8000
                    samples = np.sin(2 * np.pi * (300 + 400 * digit) * times) + 0.1 * draw.normal(size=2400)
                    data = io.BytesIO()
                    with wave.open(data, "wb") as file:
                        file.setparams((1, 2, 8000, 0, "NONE", ""))
                        file.writeframes((8000 * samples).astype("<i2").tobytes())
                    member = tarfile.TarInfo(f"recordings/{digit}_{speaker}_{index}.wav")
                    member.size = data.tell()
                    data.seek(0)
                    archive.addfile(member, data)
    return tmp_path


def test_spoken_digits(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shrunk(spoken_digits, monkeypatch)
    out = tmp_path / "runs"
    always = ("--data", digits, "--out", out, "--budget", "0.3", "--tuning-budget", "0.2", "--quiet")
    assert called(spoken_digits, monkeypatch, *always) == 0
    first = capsys.readouterr().out
    results = {place.relative_to(out): json.loads(place.read_text()) for place in out.glob("**/result.json")}
    assert len(results) == 3 + 3 * 2  # rates that were tried; then the official split and two speakers for two models
    assert {place.parts[0] for place in results} == {"tuning", "official", "without-ann", "without-bob"}
    for split, count in (("official", 6), ("without-ann", 12)):
        place = out / split / "Transformer" / "seed-1"
        right, result = json.loads((place / "right.json").read_text()), json.loads((place / "result.json").read_text())
        assert len(right) == count and result["scores"]["accuracy"] == pytest.approx(sum(right) / count)
        assert f"{result['scores']['accuracy']:.4f}" in first
        assert json.loads((place / "recipe.json").read_text())["seed"] == 1

    assert called(spoken_digits, monkeypatch, *always) == 0  # all is done: nothing is trained, the same is said
    assert capsys.readouterr().out == first
    assert {p: json.loads((out / p).read_text()) for p in results} == results
    assert called(spoken_digits, monkeypatch, *always, "--report") == 0
    assert capsys.readouterr().out in first

    place = tmp_path / "embedded" / "spoken-digits"
    assert called(spoken_digits, monkeypatch, *always, "--embed", place) == 0
    saved = json.loads((place / "config.json").read_text())
    (score,) = saved["scores"].values()
    found = regard.pipeline(place)
    assert saved["torch_dtype"] == "float16" and "BY-SA" in (place / "LICENSE").read_text()
    recordings = spoken_digits.Recordings.read(digits)
    test = recordings.where(recordings.indices < 5)
    answers = found([(sound, 16_000) for sound in test.inputs[np.arange(6)]])  # pyright: ignore
    names = [spoken_digits.DIGITS[label] for label in test.labels]
    right = [answer.label == name for answer, name in zip(answers, names, strict=True)]  # pyright: ignore
    assert score == pytest.approx(sum(right) / 6, abs=1e-4)


def test_the_tuning_looks_at_no_recording_of_the_test(digits: Path):
    recordings = spoken_digits.Recordings.read(digits)
    assert sorted(set(recordings.speakers.tolist())) == ["ann", "bob"] and len(recordings.digits) == 24
    split = spoken_digits.tuning(recordings)
    assert (len(split.train), len(split.test)) == (12, 6)
    found = {split.name: split for split, _ in spoken_digits.splits(recordings)}
    assert (len(found["official"].train), len(found["official"].test)) == (18, 6)
    assert (len(found["without-ann"].train), len(found["without-ann"].test)) == (12, 12)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Forty squares of one colour a class, in the form of the shared CIFAR-10."""
    arrays: dict[str, np.ndarray] = {"classes": np.array(cifar10.CLASSES)}
    for part, count in (("train", 40), ("test", 20)):
        files: list[bytes] = []
        labels = np.arange(count, dtype=np.uint8) % 10
        for label in labels:
            data = io.BytesIO()
            Image.new("RGB", (32, 32), (25 * int(label), 255 - 25 * int(label), 90)).save(data, "JPEG", quality=95)
            files.append(data.getvalue())
        arrays[f"{part}_jpeg"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{part}_labels"] = labels
    np.savez(tmp_path / "cifar10.npz", **arrays)  # pyright: ignore
    return tmp_path


def test_cifar10(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shrunk(cifar10, monkeypatch)
    out, picture = tmp_path / "runs", tmp_path / "curves.png"
    always = ("--data", photographs, "--out", out, "--budget", "0.5", "--tuning-budget", "0.3", "--quiet")
    learnt = cifar10.read(photographs, "train")
    assert learnt.inputs[np.array([3])][0, :, 5, 5].tolist() == pytest.approx([75, 180, 90], abs=3)
    assert called(cifar10, monkeypatch, *always, "--only", "Transformer") == 0
    assert called(cifar10, monkeypatch, *always, "--report", picture) == 0
    result = json.loads((out / "Transformer" / "result.json").read_text())
    shown = capsys.readouterr().out
    assert f"| Transformer | {result['parameters']:,} | {result['scores']['accuracy']:.2%} |" in shown
    assert "CNN" not in shown and Image.open(picture).size == (plot.WIDTH, plot.HEIGHT)
    minutes, scores = contest.curve(out / "Transformer")
    assert len(minutes) == 2 and scores[-1] == result["scores"]["accuracy"]
    assert minutes == sorted(minutes) and minutes[-1] * 60 <= result["cpu_seconds"] * 1.001

    place = tmp_path / "embedded" / "photo-classes"
    assert called(cifar10, monkeypatch, *always, "--embed", place) == 0
    answer = regard.pipeline(place)(Image.new("RGB", (50, 40), "red"))  # pyright: ignore
    assert answer.label in cifar10.CLASSES  # pyright: ignore
    assert "photo-classes" not in embedded_models() or embedded_models()["photo-classes"] != place


def test_a_missing_run_and_missing_data_are_one_line(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shrunk(spoken_digits, monkeypatch)
    assert called(spoken_digits, monkeypatch, "--data", digits, "--out", tmp_path / "none", "--embed") == 2
    assert "holds no run that is done" in capsys.readouterr().err
    assert called(cifar10, monkeypatch, "--data", tmp_path, "--out", tmp_path / "none") == 2
    assert "cifar10.npz" in capsys.readouterr().err


def test_budget_interval_and_plot():
    low, high = contest.interval([True] * 90 + [False] * 10)
    assert 0.82 < low < 0.88 and 0.92 < high < 0.98
    one = plot.draw([plot.Curve("a", [0, 5, 10], [0.1, 0.6, 0.8]), plot.Curve("b", [], [])], "t")
    two = plot.draw([plot.Curve("a", [0, 5, 10], [0.1, 0.2, 0.8])], "t")
    assert one != two and Image.open(io.BytesIO(one)).format == "PNG"
    with pytest.raises(ValueError, match="curves is empty"):
        plot.draw([], "t")
