"""`regard train` as a user runs it: from files to a model, and what is wrong in one line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from regard.cli import main
from regard.models import ModelError, load
from regard.training.baselines import load_baseline
from regard.training.tasks.language_model import LanguageModelTask
from tests.training.media_data import write_images, write_tones

SMALL = ["d_model=16", "layers=1", "heads=2", "feed_forward=24", "batch_size=4", "validate_every=2", "watch_every=0"]
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]
_OF_BASELINES = [setting for setting in SMALL if not setting.startswith(("heads", "feed_forward"))]
TUNED = ["--set", "batch_size=4", "--set", "validate_every=2", "--set", "watch_every=0", "--threads", "1", "--quiet"]
BASELINE = [*(word for setting in _OF_BASELINES for word in ("--set", setting)), "--steps", "4", "--quiet"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs the command in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["regard", "train", *arguments])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return run


def test_language_model(run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    (tmp_path / "empty.txt").write_text("")
    base = ("language-model", "text.txt", "empty.txt", "--out", "run")
    small = (*SETTINGS, "--set", "context=8", "--characters", "--threads", "1", "--quiet")
    code, out, err = run(*base, *small, "--steps", "4")
    assert code == 0 and out.startswith("run/model: 4 steps, validation loss "), err
    assert err == ["empty.txt is left out: empty", "Use it: regard generate -m run/model"]
    code, _, err = run(*base, *small, "--steps", "4")
    assert (code, err) == (2, ["regard: run holds another run; resume it, or choose another directory"])
    assert run(*base, "--resume", "--quiet")[0] == 0  # the rest is as it was
    for arguments, words in (
        (("--resume", "--steps", "5"), "steps is 5, but the run in run has 4"),
        (("--set", "layer=3", "--out", "other"), "'layer=3' is no setting; it may be NAME=VALUE with one of"),
        (("--set", "layers=two", "--out", "other"), "layers is 'two'; it may be a whole number or null"),
        (("--size", "huge", "--out", "other"), "size is 'huge'; it may be 'tiny', 'small', 'medium', 'large'"),
        (("--set", "clip=0", *small[:-3], "--steps", "2", "--out", "other"), "clip is 0.0; it may be more than 0"),
        (("--model", "nowhere/at/all", "--out", "another"), "neither a directory nor the name of"),
    ):
        code, _, err = run(*base[:-2], *(() if "--out" in arguments else base[-2:]), *arguments)
        assert code == 2 and len(err) == 1 and words in err[0], (arguments, err)
    settings = [*small, "--set", "peak_learning_rate=1e30", "--set", "clip=null", "--steps", "9", "--out", "diverged"]
    code, _, err = run("language-model", "text.txt", *settings)
    assert code == 2 and len(err) == 1 and "so training stopped; " in err[0]


def test_a_baseline(run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    small = ("--set", "context=8", "--set", "d_model=16", "--characters", "--threads", "1", "--quiet", "--steps", "4")
    code, out, err = run("language-model", "text.txt", "--family", "lstm", *small, "--out", "run")
    assert code == 0 and out.startswith("run/model: 4 steps, validation loss ") and not err
    with pytest.raises(ModelError, match="is a recurrent-language-model, a baseline to compare with: it must be"):
        load("run/model")
    code, _, err = run("language-model", "text.txt", "--set", "family=tree", *small, "--out", "other")
    assert (code, err) == (2, ["regard: family is 'tree'; it may be 'transformer', 'rnn', 'lstm', 'gru'"])


def test_what_cannot_be_leaves_nothing_behind(run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    write_images(tmp_path / "photos", 12)
    (tmp_path / "reviews.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 8)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    wrong = ("d_model=15", "heads=2", "layer_decay=0.5")
    for out, *command in (
        ("own", "language-model", "text.txt", "--characters", "--set", "context=8"),
        ("new", "classify-image", "photos", "--set", "patch=7"),
        ("new", "classify-text", "reviews.csv", "--set", "vocab_size=30"),
    ):
        code, _, err = run(*command, *(word for one in wrong for word in ("--set", one)), "--out", out, "--quiet")
        assert code == 2 and len(err) == 1, err
        assert not (tmp_path / "new").exists()
        assert [path.name for path in (tmp_path / "own").iterdir()] == ["notes.txt"]
    small = ("--set", "context=8", "--characters", "--threads", "1", "--quiet", "--steps", "2")
    assert run("language-model", "text.txt", *SETTINGS[:8], *small, "--out", "own")[0] == 0
    code, _, err = run("language-model", "text.txt", "--characters", "--set", "d_model=15", "--out", "own", "--quiet")
    assert code == 2 and "own holds another run" in err[0] and (tmp_path / "own" / "checkpoints").is_dir()
    code, _, err = run("language-model", "text.txt", "--set", "d_model=15", "--out", "own", "--quiet", "--resume")
    assert code == 2 and (tmp_path / "own" / "recipe.json").is_file() and (tmp_path / "own" / "data").is_dir()


def test_what_is_not_a_run_is_not_touched(run, tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 8)
    for name in ("metrics.jsonl", "model", "data", "tokenizer"):
        place = tmp_path / name.partition(".")[0] / name
        place.parent.mkdir()
        place.write_text("mine")
        code, _, err = run("classify-text", "films.csv", "--out", place.parent.name, "--quiet")
        message = f"{place.parent.name}/{name} exists and belongs to no run; move it away, or choose another directory"
        assert (code, err) == (2, [f"regard: {message}"])
        assert [*place.parent.iterdir()] == [place] and place.read_text() == "mine"


def test_wrong_settings_are_one_line(run, tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 8)
    (tmp_path / "a.txt").write_text("one two three\n" * 30)
    small = [*SETTINGS[:8], "--set", "vocab_size=100", "--set", "max_pieces=16", "--quiet", "--out", "run"]
    for setting, words in (
        ("seed=-1", "seed is -1; it may be from 0 to 2 ** 63 - 1"),
        ("seed=99999999999999999999", "it may be from 0 to 2 ** 63 - 1"),
        ('betas=["a",1]', "it may be a list of 2 numbers, such as [0.9, 0.95]"),
        ("betas=[[1],2]", "it may be a list of 2 numbers, such as [0.9, 0.95]"),
        ("betas=0.9", "betas is 0.9; it may be a list of 2 numbers"),
        ("betas=[2,3]", "it may be 0 or more and less than 1"),
        ("vocab_size=1000000000000", "it may be from 1 to 10,000,000"),
        ("text=label", "text and label are both 'label'; they may be two columns"),
        ("d_model=2000000000", "there is not enough memory for "),
    ):
        code, _, err = run("classify-text", "films.csv", *small, "--set", setting)
        assert code == 2 and len(err) == 1 and words in err[0], (setting, err)
        assert not (tmp_path / "run").exists()
    settings = ("--set", "d_model=17", "--set", "heads=2", "--set", "vocab_size=270", "--out", "run", "--quiet")
    code, _, err = run("translate", "a.txt", "a.txt", *settings)
    assert code == 2 and len(err) == 1 and "the recipe's model cannot be" in err[0] and not (tmp_path / "run").exists()
    part = ("--set", "validation_fraction=.999", "--steps", "2")
    assert run("classify-text", "films.csv", *small, *part)[0] == 0
    huge = ("--steps", "1", "--set", "peak_learning_rate=1e30", "--set", "schedule=constant")
    code, _, err = run("classify-text", "films.csv", *small[:-1], "nan", *huge)
    assert code == 2 and "validation loss is nan at step 1" in err[0] and not (tmp_path / "nan" / "model").exists()


def test_folders_that_are_links_and_classes_that_vanish(run, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 12)
    write_images(tmp_path / "others", 4)
    (tmp_path / "photos" / "lie" / "more").symlink_to(tmp_path / "others" / "lie")
    (tmp_path / "photos" / "lie" / "round").symlink_to(tmp_path / "photos" / "lie")
    (tmp_path / "photos" / "gone").mkdir()
    (tmp_path / "photos" / "gone" / "a.png").write_bytes(b"no image")
    small = [*SETTINGS, "--set", "image_size=16", "--set", "patch=4", "--quiet", "--steps", "2", "--out", "run"]
    code, _, err = run("classify-image", "photos", *small)
    assert code == 0 and err[1] == "nothing can be read of the classes gone: they are left out", err
    written = json.loads((tmp_path / "run" / "data" / "train.json").read_bytes())["labels"]
    alone = len([*(tmp_path / "photos" / "lie").glob("*.png")]) + len([*(tmp_path / "others" / "lie").glob("*.png")])
    assert written.count("lie") == alone
    for path in (tmp_path / "photos" / "stand").iterdir():
        path.write_bytes(b"no image")
    code, _, err = run("classify-image", "photos", *small[:-1], "other")
    assert (
        code == 2 and "of what can be read, has only the class 'lie'" in err[0] and "are left out: it cannot" in err[0]
    )


def test_masked_language_model(run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 40)
    small = (*SETTINGS, "--set", "context=12", "--set", "vocab_size=100", "--quiet", "--steps", "4", "--out", "run")
    code, out, err = run("masked-language-model", "text.txt", *small)
    assert code == 0 and "accuracy" in out and err == ["Use it: regard fill -m run/model"]
    code, _, err = run("masked-language-model", "text.txt", *small, "--resume", "--set", "masked=2")
    assert (code, err) == (2, ["regard: masked is 2.0; it may be more than 0 and less than 1"])


def test_classify_text(run, tmp_path: Path) -> None:
    rows = "".join(f"a fine film {i},good\na dull film {i},bad\n" for i in range(12))
    (tmp_path / "films.csv").write_text("review,stars\n" + rows + ",good\n")
    columns = ("--text", "review", "--label", "stars")
    small = ("--set", "vocab_size=120", "--set", "max_pieces=16", *SETTINGS[:8], "--steps", "6", "--quiet")
    code, out, err = run("classify-text", "films.csv", *columns, *small, "--out", "run")
    assert code == 0 and "accuracy" in out and "macro_f1" in out, err
    assert err[0].startswith("1 row is left out: the text is missing (films.csv, line 26)")
    code, _, err = run("classify-text", "films.csv", "--out", "other", *small)
    assert (code, err) == (2, ["regard: films.csv has no column 'text'; it has 'review', 'stars'"])
    (tmp_path / "films.tsv").write_text(rows.replace(",", "\t"))
    named = ("--set", "columns=review,stars", *small, "--out", "tsv")
    code, out, err = run("classify-text", "films.tsv", *columns, *named)
    assert code == 0 and "accuracy" in out and err == ["Use it: regard classify -m tsv/model"]
    assert '"columns": "review,stars"' in (tmp_path / "tsv" / "recipe.json").read_text()


def test_classify_image(run, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 12)
    (tmp_path / "photos" / "lie" / "broken.png").write_bytes(b"no image")
    small = [*SETTINGS, "--set", "image_size=16", "--set", "patch=4", "--threads", "1", "--quiet"]
    code, out, err = run("classify-image", "photos", "--out", "run", *small, "--steps", "4")
    assert code == 0 and out.startswith("run/model: 4 steps, validation loss "), err
    assert err[0] == (
        "1 file is left out: it cannot be read (photos/lie/broken.png is not an image: Pillow knows no format like it)"
    )
    assert err[-1] == "Use it: regard classify -m run/model"
    assert run("classify-image", "photos", "--out", "run", "--resume", "--quiet")[0] == 0
    code, _, err = run("classify-image", "photos", "--from", "run/model", "--out", "tuned", *TUNED, "--steps", "2")
    assert code == 0, err
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("path,label\nphotos/lie/001.png,\n,lie\n")
    for data, words in (
        ("empty", "empty has no example with a class; there must be two classes or more"),
        ("photos/lie", "photos/lie has no example with a class"),
        ("table.csv", "table.csv has no example with a class"),
        ("nowhere", "nowhere does not exist; it may be a directory with a folder a class or a table (.csv, .tsv"),
    ):
        code, _, err = run("classify-image", data, "--out", "other", "--quiet")
        assert code == 2 and len(err) == 1 and words in err[0], err
        assert not (tmp_path / "other").exists()
    code, _, err = run("classify-image", "photos", "--out", "other", "--family", "resnet", "--quiet")
    assert code == 2 and err == ["regard: family is 'resnet'; it may be 'vit', 'convolutional', 'cnn'"]
    code, out, err = run(
        "classify-image", "photos", "--out", "cnn", "--family", "cnn", *BASELINE, "--set", "image_size=16"
    )
    assert code == 0 and out.startswith("cnn/model: 4 steps, validation loss ") and len(err) == 3, err
    network = load_baseline(tmp_path / "cnn" / "model").model
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 2)
    code, _, err = run("classify-image", "photos", "--out", "other", "--family", "cnn", "--set", "heads=2", "--quiet")
    assert code == 2 and err[-1] == "regard: heads is 2; it may be null with family 'cnn'"


def test_classify_audio(run, tmp_path: Path) -> None:
    write_tones(tmp_path / "words", 12)
    small = [*SETTINGS, "--set", "mels=16", "--set", "patch=8", "--threads", "1", "--quiet"]
    code, out, err = run("classify-audio", "words", "--out", "run", *small, "--steps", "4", "--precision", "bfloat16")
    assert code == 0 and out.startswith("run/model: 4 steps, validation loss "), err
    assert err == ["Use it: regard classify -m run/model"]
    code, _, err = run("classify-audio", "words", "--from", "run/model", "--out", "tuned", *TUNED, "--steps", "2")
    assert code == 0, err
    code, _, err = run("classify-image", "words", "--from", "run/model", "--out", "other", "--quiet")
    assert code == 2 and "is of the family audio spectrogram transformer: it must be a model of images" in err[0]
    code, _, err = run("classify-audio", "words", "--out", "other", "--precision", "float16", "--quiet")
    assert (code, err) == (2, ["regard: precision is 'float16'; it may be 'float32', 'bfloat16'"])


@pytest.mark.parametrize("family", ["cnn", "lstm"])
def test_baselines_of_sound(run, tmp_path: Path, family: str) -> None:
    write_tones(tmp_path / "words", 12)
    base = ("classify-audio", "words", "--family", family, *BASELINE, "--set", "mels=16")
    code, out, err = run(*base, "--out", "run")
    assert code == 0 and out.startswith("run/model: 4 steps, validation loss ") and not err
    assert len(load_baseline(tmp_path / "run" / "model").model(torch.zeros(2, 1, 16, 30))) == 2
    code, _, err = run(*base, "--out", "other", "--set", "patch=8")
    assert code == 2 and err == [f"regard: patch is 8; it may be null with family '{family}'"]
    code, _, err = run("classify-audio", "words", "--family", "tree", "--out", "other")
    assert code == 2 and err == ["regard: family is 'tree'; it may be 'ast', 'convolutional', 'cnn', 'lstm'"]


def test_translate(run, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    words = {"red": "rot", "dog": "Hund", "runs": "rennt", "old": "alt"}
    english = [" ".join((a, b)) for a in words for b in words] * 3
    (tmp_path / "a.en").write_text("".join(f"{line}\n" for line in english))
    (tmp_path / "a.de").write_text("".join(" ".join(words[w] for w in line.split()) + "\n" for line in english))
    table = "".join(f"{line}\t{' '.join(words[w] for w in line.split())}\n" for line in english)
    (tmp_path / "a.tsv").write_text("en\tde\n" + table + "\tleer\n")
    sizes = ["vocab_size=300", "d_model=16", "heads=2", "encoder_layers=1", "decoder_layers=1", "feed_forward=16"]
    small = [word for setting in [*sizes, "warmup=2", "checkpoint_every=2"] for word in ("--set", setting)]
    languages = ("--from", "en", "--to", "de", "--steps", "4", "--quiet")
    code, out, err = run("translate", "a.en", "a.de", *languages, *small, "--out", "run")
    assert code == 0 and "bleu" in out and err == ["Use it: regard translate -m run/model"]
    code, out, err = run("translate", "a.tsv", *languages, *small, "--out", "other")
    assert code == 0 and err[0] == "1 pair is left out: a side is empty (a.tsv, line 50)"
    code, _, err = run("translate", "a.en", "a.de", "a.tsv", "--out", "third")
    assert code == 2 and err == ["regard: 3 files are given; it may be two, line by line, or one table"]
    code, _, err = run("translate", "a.en", *languages, "--out", "third")
    assert code == 2 and "a.en is no table" in err[0]


def test_what_a_model_to_go_on_from_has_is_not_set(run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    small = (*SETTINGS, "--set", "context=8", "--characters", "--threads", "1", "--quiet", "--steps", "2")
    assert run("language-model", "text.txt", *small, "--out", "first")[0] == 0
    base = ("language-model", "text.txt", "--model", "first/model", "--set", "context=8", "--quiet", "--steps", "2")
    for setting in ("--size=large", "--characters", "--set=vocab_size=77", "--set=tied=false", "--family=lstm"):
        code, _, err = run(*base, setting, "--out", "second")
        assert code == 2 and len(err) == 1 and "it may be" in err[0] and not (tmp_path / "second").exists(), err
    assert run(*base, "--out", "second")[0] == 0


def test_after_a_loss_that_is_no_number_there_is_a_model_to_go_on_from(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    small = (*SETTINGS, "--set", "context=8", "--characters", "--threads", "1", "--quiet", "--steps", "8")
    usual = LanguageModelTask.validate
    found = iter([None, {"loss": float("nan")}])
    monkeypatch.setattr(LanguageModelTask, "validate", lambda self: next(found) or usual(self))
    code, _, err = run("language-model", "text.txt", *small, "--out", "run")
    assert code == 2 and len(err) == 1 and "validation loss is nan at step 4, so training stopped" in err[0]
    assert err[0].endswith("run/model is the model of step-00000002, which another run may go on from")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again = ("--model", "run/model", "--set", "context=8", "--quiet", "--steps", "2", "--out", "again")
    monkeypatch.setattr(sys, "argv", ["regard", "train", "language-model", "text.txt", *again])
    main()
    assert (tmp_path / "again" / "model" / "model.safetensors").is_file()


def test_translators_go_on_as_they_were_begun(run, tmp_path: Path) -> None:
    pairs = [
        (f"a {word} dog number {i}", f"ein {wort} Hund {i}") for i in range(20) for word, wort in (("big", "großer"),)
    ]
    (tmp_path / "a.en").write_text("".join(f"{source}\n" for source, _ in pairs))
    (tmp_path / "a.de").write_text("".join(f"{target}\n" for _, target in pairs))
    rows = [json.dumps({"en": source, "de": target}) for source, target in pairs]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"en": "a \\ud800", "de": "b"}']) + "\n")
    sizes = ("d_model=16", "encoder_layers=1", "decoder_layers=1", "heads=2", "feed_forward=24", "vocab_size=280")
    more = ("batch_tokens=200", "warmup=2", "watch_every=2", "optimiser=muon", "schedule=linear", "patience=9")
    small = [word for setting in (*sizes, *more) for word in ("--set", setting)]
    named = ("--from", "en", "--to", "de", "--quiet", "--steps", "4")
    code, _, err = run("translate", "a.jsonl", *named, *small, "--out", "run")
    assert code == 0 and "half a character (a.jsonl, line 21)" in err[0], err
    records = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert records.count('"attention"') == 2
    assert run("translate", "a.jsonl", "--resume", "--quiet", "--out", "run")[0] == 0
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["languages"] == ["en", "de"]
    code, _, err = run("translate", "a.jsonl", "--resume", "--to", "fr", "--quiet", "--out", "run")
    assert code == 2 and len(err) == 1
    # killed after the tokenizer was written
    assert run("translate", "a.en", "a.de", *named, *small, "--out", "other")[0] == 0
    for path in ("metrics.jsonl", "curves.png"):
        (tmp_path / "other" / path).unlink()
    shutil.rmtree(tmp_path / "other" / "checkpoints")
    (tmp_path / "other" / ".tokenizer.json.0123abcd.part").write_text("half")
    (tmp_path / "other" / ".model-0123abcd" / "new").mkdir(parents=True)
    (tmp_path / "other" / ".theirs.part").write_text("of somebody else")
    assert run("translate", "a.en", "a.de", "--resume", "--quiet", "--out", "other")[0] == 0
    assert [path.name for path in (tmp_path / "other").glob(".*")] == [".theirs.part"]
    code, _, err = run("translate", "a.en", "a.de", "--resume", "--steps", "9", "--quiet", "--out", "other")
    assert code == 2 and "steps is 9, but the run in other has 4" in err[0], err
    early = ("--set", "patience=1", "--set", "validate_every=1", "--set", "checkpoint_every=50", "--steps", "60")
    code, _, err = run(
        "translate", "a.en", "a.de", *named[:-2], *small[:-2], *early, "--set", "peak_learning_rate=9", "--out", "early"
    )
    assert code == 0 and (tmp_path / "early" / "model" / "model.safetensors").is_file(), err


def test_damaged_files_are_one_line(run, tmp_path: Path) -> None:
    whole = gzip.compress("".join(f"a dog {i} {i * i}\n" for i in range(400)).encode())
    (tmp_path / "a.en.gz").write_bytes(whole[:60] + bytes(40) + whole[100:])
    (tmp_path / "a.de").write_text("ein Hund\n" * 400)
    code, _, err = run("translate", "a.en.gz", "a.de", "--quiet", "--out", "run")
    assert code == 2 and len(err) == 1 and "a.en.gz: cannot be read" in err[0], err
    write_images(tmp_path / "photos", 12)
    os.rename(tmp_path / "photos" / "lie", os.fsencode(tmp_path / "photos") + b"/lie\xff")
    write_images(tmp_path / "others", 12)
    os.rename(tmp_path / "others" / "lie", tmp_path / "photos" / "lie")
    small = [*SETTINGS, "--set", "image_size=16", "--set", "patch=4", "--quiet", "--steps", "1", "--out", "images"]
    code, _, err = run("classify-image", "photos", *small, "--set", "crop=0.99")
    assert code == 0 and "the name of the class is no text: it has half a character" in err[0], err
    rows = "".join(
        f"photos/{path.parent.name}/{path.name},{path.parent.name}\n" for path in tmp_path.glob("photos/*e/*.png")
    )
    (tmp_path / "table.csv").write_text(f"path,label\n{rows}{'a' * 400},lie\n" + rows.replace("photos/", "./photos/"))
    code, _, err = run("classify-image", "table.csv", *small[:-1], "table")
    assert code in (0, 2) and all("Traceback" not in line for line in err), err
    for setting, words in (
        ("crop=1", "crop is 1.0; it may be 0 or more and less than 1"),
        ("speed=Infinity", "speed is inf; it may be from 1 to 4"),
        ("noise=NaN", "noise is nan; it may be from -100 to 200"),
    ):
        task = "classify-image" if setting == "crop=1" else "classify-audio"
        code, _, err = run(task, "photos", "--set", setting, "--quiet", "--out", "never")
        assert code == 2 and len(err) == 1 and words in err[0], err
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    code, _, err = run("language-model", "text.txt", "--characters", "--set", "kv_heads=3", "--quiet", "--out", "never")
    assert code == 2 and len(err) == 1 and "kv_heads is 3 with 4 heads; it may be a divisor of them" in err[0], err
